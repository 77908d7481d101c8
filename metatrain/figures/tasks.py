"""Pictures of a few tasks and of what adaptation does to their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metatrain.core import Task
from metatrain.figures.style import as_written
from metatrain.names import shortened

LONGEST = 16  # columns of a task's name


@as_written
def fits(task: Task, predictions: Sequence[tuple[int, Tensor]], title: str) -> Figure:
    """Draw curves fitted to the support points of T functions of one variable.

    predictions: (adaptation step, [T, Q, 1]) each, of the queries.
    """
    figure, panels = _panels(title, len(task.support_x), sharey=True)
    styles = [(":", "tab:gray"), ("--", "tab:blue"), ("-", "tab:orange")]
    for t, axes in enumerate(panels):
        x, known_x = task.query_x[t, :, 0], task.support_x[t, :, 0]
        axes.plot(x, task.query_y[t, :, 0], color="0.75", linewidth=5, label="the function")
        for (step, y), (line, colour) in zip(predictions, styles[-len(predictions) :], strict=True):
            axes.plot(x, y[t, :, 0], color=colour, linestyle=line, label=when(step))
        axes.plot(known_x, task.support_y[t, :, 0], "k^", markersize=7, label="support points")
        axes.set_xlabel("x")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("y")
    _legend_below(figure)
    return figure


@as_written
def forecasts(task: Task, predictions: Sequence[tuple[int, Tensor]], title: str) -> Figure:
    """Draw T series: the part in the support set, and forecasts of the rest.

    predictions: (adaptation step, [T, Q, 1]) each, of the rest.
    """
    tasks, seen = task.support_y.shape[:2]
    figure, panels = _panels(title, tasks, sharey=True)
    styles = [("--", "tab:blue"), ("-", "tab:orange")]
    ahead = np.arange(seen, seen + task.query_y.shape[1])
    for t, axes in enumerate(panels):
        whole = torch.cat([task.support_y[t, :, 0], task.query_y[t, :, 0]])
        axes.plot(whole, color="0.75", linewidth=5, label="the series")
        axes.plot(task.support_y[t, :, 0], "k^", markersize=5, label="support set")
        for (step, y), (line, colour) in zip(predictions, styles, strict=True):
            axes.plot(ahead, y[t, :, 0], color=colour, linestyle=line, marker=".", label=when(step))
        axes.set_xlabel("time")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("y")
    _legend_below(figure)
    return figure


@as_written
def agreement(
    truth: Tensor,
    predictions: Sequence[tuple[int, Tensor]],
    names: Sequence[str],
    quantity: str,
    title: str,
) -> Figure:
    """Draw predicted against true numbers [T, Q] of T named tasks.

    predictions: (adaptation step, [T, Q]) each.
    """
    figure, panels = _panels(title, len(names), 3.9, sharex=True, sharey=True)
    figure.set_figwidth(max(3.6 * len(names), 6.0))  # as wide as the legend
    short = shortened([*names, quantity], LONGEST)
    styles = [("s", "tab:blue"), ("o", "tab:orange")]
    for t, axes in enumerate(panels):
        point = (float(truth[t, 0]), float(truth[t, 0]))
        axes.axline(point, slope=1, color="0.75", linewidth=5, label="no error")
        for (step, predicted), (marker, colour) in zip(
            predictions, styles[-len(predictions) :], strict=True
        ):
            axes.plot(truth[t], predicted[t], marker, color=colour, alpha=0.8, label=when(step))
        axes.set_title(short[names[t]], fontsize="small")
        axes.set_xlabel(f"true {short[quantity]}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"predicted {short[quantity]}")
    _legend_below(figure)
    return figure


@as_written
def walks(
    places: Tensor,
    found: Sequence[tuple[int, Tensor, Tensor]],
    title: str,
    expert: tuple[Tensor, Tensor] | None = None,
) -> Figure:
    """Draw walks in the plane to T `places` [T, 2].

    found: (adaptation step, positions [T, N, H, 2], alive [T, N, H]) each.
    expert: positions and alive of those who know the place.
    """
    figure, panels = _panels(title, len(places), 4.0, sharey=True, sharex=True)
    colours = ["tab:gray", "tab:blue", "tab:orange"]
    drawn = [
        (when(step), positions, alive, colour)
        for (step, positions, alive), colour in zip(found, colours[-len(found) :], strict=True)
    ]
    if expert is not None:
        drawn.insert(0, ("the expert", *expert, "tab:green"))
    for t, axes in enumerate(panels):
        for name, positions, alive, colour in drawn:
            for n in range(min(5, positions.shape[1])):
                x, y = positions[t, n, alive[t, n].bool()].T
                label = name if n == 0 else None
                axes.plot(x, y, color=colour, alpha=0.6, linewidth=1, label=label)
        axes.plot(*places[t], "k*", markersize=14, label="the goal")
        axes.plot(0, 0, "ko", markersize=5, label="the start")
        axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axes.grid(alpha=0.3)
    _legend_below(figure)
    return figure


@as_written
def trial(
    lines: Sequence[tuple[int, Tensor]],
    levels: Mapping[str, float],
    title: str,
    axis_names: tuple[str, str] = ("step of the episode", "mean reward"),
) -> Figure:
    """Draw the mean reward of each step of an episode, between levels to compare it with.

    lines: (adaptation step, [H]) each.
    axis_names: what is counted, and what is drawn of each.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    draw_trial(figure.subplots(), lines, levels, axis_names)
    figure.axes[0].set_title(title)
    return figure


def draw_trial(
    axes: Axes,
    lines: Sequence[tuple[int, Tensor]],
    levels: Mapping[str, float],
    axis_names: tuple[str, str] = ("step of the episode", "mean reward"),
) -> None:
    """Draw what `trial` has."""
    colours = ["tab:blue", "tab:orange"][-len(lines) :]
    for (step, rewards), colour in zip(lines, colours, strict=True):
        label = when(step) if len(lines) > 1 else "the policy"
        axes.plot(range(1, len(rewards) + 1), rewards, color=colour, marker="o", label=label)
    for (name, level), style in zip(levels.items(), ["--", ":", "-."], strict=False):
        axes.axhline(level, color="tab:gray", linestyle=style, label=name.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1])
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)


def when(step: int) -> str:
    """Return the name of a step of adaptation: of an inner step, or of an example read."""
    return {0: "before adaptation", 1: "after 1 adaptation step"}.get(
        step, f"after {step} adaptation steps"
    )


def _panels(
    title: str, tasks: int, height: float = 3.6, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel for each task, side by side."""
    figure = Figure(figsize=(3.6 * tasks, height), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    return figure, list(np.ravel(figure.subplots(1, tasks, **shared)))


def _legend_below(figure: Figure) -> None:
    """Draw one legend for all axes, which show the same."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")
