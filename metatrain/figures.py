"""Pictures of runs, from plain data. Each function returns a matplotlib figure; `save` writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metatrain.evaluate import Score

Row = Mapping[str, float]  # one line of metrics.jsonl


def learning_curve(rows: Sequence[Row], metric: str, title: str) -> Figure:
    """The metric against outer steps, before and after adaptation, on training and on validation tasks."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    _line(axes, rows, f"train/{metric}_before", "training tasks, before adaptation", color="tab:gray", smooth=True)
    _line(axes, rows, f"train/{metric}_after", "training tasks, after adaptation", color="tab:blue", smooth=True)
    before, after = f"val/{metric}_before", f"val/{metric}_after"
    _line(axes, rows, before, "validation tasks, before", color="tab:gray", linestyle="--")
    _line(axes, rows, after, "validation tasks, after (95 % interval)", color="tab:orange", marker="o")
    validated = [row for row in rows if after in row]
    if validated:
        steps = [row["step"] for row in validated]
        low = [row[after] - row[f"{after}_ci95"] for row in validated]
        high = [row[after] + row[f"{after}_ci95"] for row in validated]
        axes.fill_between(steps, low, high, color="tab:orange", alpha=0.25, linewidth=0)
    axes.set(xlabel="outer step", ylabel=metric, title=title)
    _scale(axes, metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def adaptation_curve(scores: Sequence[tuple[str, Score]], title: str) -> Figure:
    """The metric on held-out tasks after each inner step, one line per (label, score)."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for label, score in scores:
        axes.errorbar(score.steps, score.curve, yerr=score.curve_ci95, marker="o", capsize=3, label=label)
    score = scores[0][1]
    for name, value in score.baselines.items():
        axes.axhline(value, color="tab:gray", linestyle="--", label=f"{name.replace('_', ' ')} on pixels")
    axes.set(xlabel="inner step", ylabel=f"{score.metric} (95 % interval, {score.tasks} tasks)", title=title)
    _scale(axes, score.metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    return path


def _line(axes: Axes, rows: Sequence[Row], name: str, label: str, smooth: bool = False, **style: str) -> None:
    steps = [row["step"] for row in rows if name in row]
    values = [row[name] for row in rows if name in row]
    if smooth and len(values) > 100:  # means over a hundredth of the run
        size = len(values) // 100
        whole = len(values) // size * size
        steps = steps[size - 1 : whole : size]
        values = [sum(values[i : i + size]) / size for i in range(0, whole, size)]
    if values:
        axes.plot(steps, values, label=label, **style)  # type: ignore[arg-type]


def _scale(axes: Axes, metric: str) -> None:
    if metric == "accuracy":
        axes.set_ylim(0, 1.02)
    else:
        axes.set_yscale("log")
