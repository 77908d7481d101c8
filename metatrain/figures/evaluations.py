"""The evaluations of a run beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metatrain.evaluate import Score
from metatrain.figures.curves import DASHES
from metatrain.figures.style import as_written, scale
from metatrain.names import shortened

LONGEST = 16  # columns of an evaluation's name
MARKS = "s^Dvx*"  # of baselines


@as_written
def evaluations(scores: Sequence[tuple[str, Score]], shots: Sequence[int], title: str) -> Figure:
    """Draw the result of each named evaluation, and its baselines on the same tasks.

    shots: support examples of each, if nothing else tells the evaluations apart; else empty.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    x = list(shots) or list(range(len(scores)))
    order = sorted(range(len(scores)), key=lambda i: x[i])
    x, found = [x[i] for i in order], [scores[i][1] for i in order]
    names = dict.fromkeys(name for score in found for name in score.baselines)
    for name, dashes, mark in zip(names, cycle(DASHES), cycle(MARKS), strict=False):
        axes.plot(
            x,
            [score.baselines.get(name, math.nan) for score in found],
            color="tab:gray",
            linestyle=dashes if shots else "none",
            marker=mark,
            markersize=5,
            label=name.replace("_", " "),
        )
    axes.errorbar(
        x,
        [score.mean for score in found],
        yerr=[score.ci95 for score in found],
        color="tab:blue",
        linestyle="-" if shots else "none",
        marker="o",
        capsize=3,
        label="after adaptation",
    )
    if shots:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        short = shortened([name for name, _ in scores], LONGEST)
        axes.set_xticks(x, [short[name] for name, _ in scores], rotation=20)
        axes.margins(x=0.15)
    metric = found[0].metric
    axes.set(xlabel="support examples" if shots else "", title=title)
    axes.set_ylabel(f"{metric.name} (95 % interval)")
    axes.title.set_fontsize("medium")
    scale(axes, metric)
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    axes.grid(alpha=0.3)
    return figure
