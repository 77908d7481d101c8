"""Curves of a run: training, adaptation, what the algorithm learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle, pairwise
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from metatrain.evaluate import Score
from metatrain.figures.style import as_written, scale
from metatrain.metrics import Metric

SEVERAL = 6  # lines of adaptation that a legend inside of the axes leaves room for
BLOCKS = 60  # points of a training curve: each a mean over outer steps, with its interval
# Of baselines, which are all grey.
DASHES = ["--", ":", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (1, 4)), (0, (12, 3))]
ALGORITHM = "algorithm."  # how metrics begin that an algorithm has learned

Row = Mapping[str, float]  # one line of metrics.jsonl


@as_written
def learning_curve(rows: Sequence[Row], metric: Metric, title: str) -> Figure:
    """Draw the metric by outer step, before and after adaptation, in training and validation."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for when, colour in (("before", "tab:gray"), ("after", "tab:blue")):
        steps, means, widths = _blocks(rows, f"train/{metric.name}_{when}")
        if steps:
            which = " (the first of each ticket)" if when == "before" else ""
            label = f"training tasks, {when} adaptation{which}"
            _band(axes, steps, means, widths, color=colour, label=label)
    validated = [row for row in rows if f"val/{metric.name}_after" in row]
    if validated:
        steps = [row["step"] for row in validated]
        after, width = (
            [row.get(f"val/{metric.name}_{name}", 0.0) for row in validated]
            for name in ("after", "after_ci95")
        )
        before = [row.get(f"val/{metric.name}_before", math.nan) for row in validated]
        if not all(map(math.isnan, before)):
            label = "validation tasks, before adaptation"
            axes.plot(steps, before, color="black", linestyle=":", label=label)
        label = "validation tasks, after adaptation"
        _band(axes, steps, after, width, color="tab:orange", marker="o", label=label)
    axes.set(xlabel="outer step", ylabel=f"{metric.name} (shaded: 95 % interval)", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    scale(axes, metric)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


@as_written
def pretraining_curve(rows: Sequence[Row], metric: Metric, title: str) -> Figure:
    """Draw the loss and the metric on the examples of each step, by step."""
    names = ["loss", metric.name]
    if all(row.get("train/loss_after") == row.get(f"train/{metric.name}_after") for row in rows):
        names = [metric.name]  # of numbers, both may be the squared error
    figure = Figure(figsize=(2 + 3.5 * len(names), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        steps, means, widths = _blocks(rows, f"train/{name}_after")
        if steps:
            _band(axes, steps, means, widths, color="tab:blue")
        shade = " (shaded: 95 % interval)" if any(widths) else ""
        axes.set(xlabel="step", ylabel=f"{name}{shade}")
        axes.grid(alpha=0.3)
    figure.suptitle(f"{title}; each step's own examples", fontsize="medium")
    return figure


@as_written
def adaptation_curve(scores: Sequence[tuple[str, Score]], title: str) -> Figure:
    """Draw the metric on held-out tasks after each adaptation step, one line per (label, score).

    A line is the mean with its interval. If tasks diverged, it is the median of the others with
    their quartiles.
    """
    many = len(scores) > SEVERAL
    figure = Figure(figsize=(10 if many else 7, 4.2), layout="constrained")
    axes = figure.subplots()
    if many:
        axes.set_prop_cycle(color=colormaps["turbo"](np.linspace(0, 1, len(scores))))
    diverged = any(any(score.curve_diverged) for _, score in scores)
    for label, score in scores:
        if diverged:
            low, high = zip(*score.curve_quartiles, strict=True)
            _between(axes, score.steps, score.curve_median, low, high, marker="o", label=label)
        else:
            axes.errorbar(
                score.steps, score.curve, yerr=score.curve_ci95, marker="o", capsize=3, label=label
            )
    score = scores[0][1]
    for (name, value), dashes in zip(score.baselines.items(), cycle(DASHES), strict=False):
        axes.axhline(value, color="tab:gray", linestyle=dashes, label=name.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = f"95 % interval, {score.tasks} tasks"
    if diverged:
        most = max(score.diverged for _, score in scores)
        title = f"{title}; {most} of {score.tasks} tasks diverged"
        shown = "median and quartiles of the others"
    axes.set(xlabel="adaptation step", ylabel=f"{score.metric.name} ({shown})", title=title)
    axes.title.set_fontsize("medium")
    scale(axes, score.metric)
    if many:
        figure.legend(loc="outside right upper", fontsize="x-small")
    else:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


@as_written
def learned_parameters(rows: Sequence[Row], title: str) -> Figure:
    """Draw what an algorithm learns besides the network, such as inner rates, by outer step.

    A line is the mean of a tensor.
    """
    names = sorted({name for row in rows for name in row if name.startswith(ALGORITHM)})
    figure = Figure(figsize=(9, max(4.2, 0.25 * len(names))), layout="constrained")
    axes = figure.subplots()
    if names:
        axes.set_prop_cycle(color=colormaps["turbo"](np.linspace(0, 1, len(names))))
    found = [row for row in rows if any(name in row for name in names)]
    for name in names:
        values = [row.get(name, math.nan) for row in found]
        axes.plot([row["step"] for row in found], values, label=name.removeprefix(ALGORITHM))
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel="outer step", ylabel="mean over the tensor", title=title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    axes.grid(alpha=0.3)
    return figure


def _blocks(rows: Sequence[Row], name: str) -> tuple[list[float], list[float], list[float]]:
    """Return last step, mean and half the 95 % interval of blocks of rows; the last is longer.

    The interval is 0 if a block has fewer than four rows.
    """
    found = [row for row in rows if name in row]
    size = max(1 if len(found) < 40 else 4, len(found) // BLOCKS)
    steps, means, widths = [], [], []
    ends = [*range(size, len(found) - size + 1, size), len(found)] if found else []
    for start, end in pairwise([0, *ends]):
        values = [row[name] for row in found[start:end]]
        steps.append(found[end - 1]["step"])
        means.append(mean(values))
        widths.append(1.96 * stdev(values) / math.sqrt(len(values)) if len(values) >= 4 else 0.0)
    return steps, means, widths


def _band(
    axes: Axes, x: list[float], y: list[float], width: list[float], color: str, **style: Any
) -> None:
    if len(x) == 1:
        style = {"marker": "o"} | style
    low, high = ([a + sign * w for a, w in zip(y, width, strict=True)] for sign in (-1, 1))
    _between(axes, x, y, low, high, color=color, **style)


def _between(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    **style: Any,
) -> None:
    """Draw a line in a shaded band of its colour."""
    (line,) = axes.plot(x, y, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.25, linewidth=0)
