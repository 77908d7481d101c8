"""Several runs beside each other: their scores, and how far each is from the first one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metatrain.figures.style import as_written
from metatrain.metrics import Metric


class Interval(NamedTuple):
    """A named value with half the width of its 95 % interval."""

    name: str
    value: float
    ci95: float


@as_written
def comparison(
    scores: Sequence[Interval], differences: Sequence[Interval], metric: Metric, title: str
) -> Figure:
    """Draw each run's score, and beside it its difference from the first run's.

    differences: one for each of `scores` but the first.
    """
    figure = Figure(figsize=(9, 1.6 + 0.45 * len(scores)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _rows(left, scores, metric)
    _rows(right, [Interval(scores[0].name, 0.0, 0.0), *differences], metric)
    right.axvline(0, color="tab:gray", linestyle="--")
    percent = metric.shown == "percent"
    unit = "points" if percent else metric.name
    left.set(xlabel=f"{metric.name}{', %' if percent else ''} (95 % interval)")
    right.set(xlabel=f"difference from the first, {unit} (95 % interval)")
    left.set_yticks(range(len(scores)), [score.name for score in scores])
    left.invert_yaxis()
    figure.suptitle(title, fontsize="medium")
    return figure


def _rows(axes: Axes, rows: Sequence[Interval], metric: Metric) -> None:
    factor = 100 if metric.shown == "percent" else 1
    for at, row in enumerate(rows):
        axes.errorbar(factor * row.value, at, xerr=factor * row.ci95, marker="o", capsize=3)
    axes.grid(axis="x", alpha=0.3)
