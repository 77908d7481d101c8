"""Pictures of benchmarks/curves.py, from points alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from cluster.config import RunConfig
from metatrain import figures
from metatrain.metrics import Metric


class Point(NamedTuple):
    """A score at a place of a line."""

    x: float | str
    label: str
    value: float
    ci95: float = 0.0


AXES = {
    "classes": "training classes",
    "shots": "support images of a class at test",
    "ways": "classes of a task, in training and test",
    "steps": "adaptation step",
    "scratch": "gradient step on the support set",
    "folds": "part of the training classes that is tested",
}


def draw(name: str, points: Sequence[Point], config: RunConfig, path: Path) -> Path:
    """Write the picture of a curve."""
    metric = config.family.metric
    title = f"{config.name}, {config.outer.steps} outer steps"
    if name == "cross_domain":
        return figures.save(matrix(points, metric, title), path)
    if name == "folds":
        return figures.save(folds(points, metric, title), path)
    return figures.save(lines(points, metric, AXES[name], title), path)


@figures.as_written
def matrix(points: Sequence[Point], metric: Metric, title: str) -> Figure:
    """A cell for each data set that trained (rows) and each that is tested (columns)."""
    rows = list(dict.fromkeys(point.label for point in points))
    columns = list(dict.fromkeys(str(point.x) for point in points))
    values = np.full((len(rows), len(columns)), np.nan)
    figure = Figure(figsize=(2.5 + 1.4 * len(columns), 1.8 + 0.8 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for point in points:
        at = rows.index(point.label), columns.index(str(point.x))
        values[at] = point.value
        text = metric.interval(point.value, point.ci95).replace(" ± ", "\n± ")
        axes.text(at[1], at[0], text, ha="center", va="center")
    limits = (0, 1) if metric.shown == "percent" else (None, None)
    axes.imshow(values, "Blues", vmin=limits[0], vmax=limits[1], alpha=0.6, aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="tested on", ylabel="trained on", title=f"{title}: {metric.name}")
    axes.title.set_fontsize("medium")
    return figure


@figures.as_written
def lines(points: Sequence[Point], metric: Metric, xlabel: str, title: str) -> Figure:
    """A line for each label. Steps that begin at 0 are linear up to 10, the rest is logarithmic."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label in dict.fromkeys(point.label for point in points):
        x, value, width = zip(
            *sorted((p.x, p.value, p.ci95) for p in points if p.label == label), strict=True
        )
        if any(width):
            axes.errorbar(x, value, yerr=width, marker="o", capsize=3, label=label)
        else:
            style = ":" if label == "chance" else "--"
            axes.plot(x, value, linestyle=style, marker=".", color="0.5", label=label)
    ticks = sorted({float(point.x) for point in points})
    if ticks[0] == 0:
        axes.set_xscale("symlog", linthresh=10)
        ticks = [tick for tick in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if tick <= ticks[-1]]
    else:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=xlabel, ylabel=f"{metric.name} (95 % interval over tasks)", title=title)
    axes.title.set_fontsize("medium")
    figures.scale(axes, metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


@figures.as_written
def folds(points: Sequence[Point], metric: Metric, title: str) -> Figure:
    """A dot for each part with its interval over tasks, and the mean of the parts."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    x, values = [int(point.x) for point in points], [point.value for point in points]
    widths = [point.ci95 for point in points]
    axes.errorbar(x, values, yerr=widths, linestyle="", marker="o", capsize=3)
    middle, spread = mean(values), stdev(values) if len(values) > 1 else 0.0
    label = f"mean {metric.text(middle)}, standard deviation of parts {metric.width(spread)}"
    axes.axhline(middle, color="tab:orange", linestyle="--", label=label)
    axes.axhspan(middle - spread, middle + spread, color="tab:orange", alpha=0.15)
    axes.set_xticks(x)
    axes.set(xlabel=AXES["folds"], ylabel=f"{metric.name} (95 % interval over tasks)", title=title)
    axes.title.set_fontsize("medium")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure
