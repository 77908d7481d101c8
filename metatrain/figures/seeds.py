"""Scores of one recipe that was trained from several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from metatrain.figures.comparisons import Interval
from metatrain.figures.style import as_written
from metatrain.metrics import Metric


@as_written
def over_seeds(scores: Mapping[str, Sequence[Interval]], metric: Metric, title: str) -> Figure:
    """Draw each seed's value with the interval of its tasks, and below it the mean of the seeds.

    scores: by heading; the last interval of each is that of the mean, between seeds.
    """
    heights = [len(rows) for rows in scores.values()]
    figure = Figure(figsize=(7, 0.8 + sum(0.7 + 0.35 * n for n in heights)), layout="constrained")
    factor = 100 if metric.shown == "percent" else 1
    unit = " in %" if metric.shown == "percent" else ""
    all_axes = figure.subplots(len(scores), squeeze=False, height_ratios=[2 + n for n in heights])
    for axes, (heading, rows) in zip(all_axes[:, 0], scores.items(), strict=True):
        for at, row in enumerate(rows):
            colour = "tab:blue" if at < len(rows) - 1 else "tab:orange"
            value, width = factor * row.value, factor * row.ci95
            axes.errorbar(value, at, xerr=width, color=colour, marker="o", capsize=4)
        axes.axvline(factor * rows[-1].value, color="tab:orange", linestyle="--", alpha=0.6)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_title(heading, fontsize="small")
        axes.grid(axis="x", alpha=0.3)
    all_axes[-1, 0].set_xlabel(
        f"{metric.name}{unit} (blue: 95 % interval over tasks; orange: over seeds)"
    )
    figure.suptitle(title, fontsize="medium")
    return figure
