"""How an evaluation told classes apart: how right its confidence is, and what it confuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from metatrain.evaluate import Score
from metatrain.figures.style import as_written

LONGEST = 24  # characters of a class's name


def reliability(scores: Sequence[tuple[str, Score]], title: str) -> Figure:
    """Draw accuracy by confidence, one line per (label, score)."""
    lines = [(name, s.measures["ece"], s.details["reliability"]) for name, s in scores]
    return calibration(lines, title)


@as_written
def calibration(
    lines: Sequence[tuple[str, float, Sequence[Mapping[str, float]]]], title: str
) -> Figure:
    """Draw accuracy by confidence, one line per (label, ECE, bins); points are as large as bins.

    Bins have no intervals: the predictions of a task depend on each other. Guo et al. 2017,
    arXiv 1706.04599, figure 1.
    """
    figure = Figure(figsize=(7, 6.2 + 0.2 * len(lines)), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="tab:gray", linestyle="--", label="as right as confident")
    for label, error, rows in lines:
        x, y, examples = (
            [row[key] for row in rows] for key in ("confidence", "accuracy", "examples")
        )
        said = f"{label}: ECE {error:.4f}, {sum(examples):,} predictions"
        (line,) = axes.plot(x, y, label=said)
        axes.scatter(x, y, [200 * n / sum(examples) for n in examples], color=line.get_color())
    axes.set(
        xlim=(0, 1.02),
        ylim=(0, 1.02),
        xlabel="confidence in the predicted class (area of a dot: share of the predictions)",
        ylabel="accuracy",
        title=title,
    )
    axes.title.set_fontsize("medium")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    axes.grid(alpha=0.3)
    return figure


@as_written
def confusion(score: Score, title: str) -> Figure:
    """Draw how many of each class's examples are predicted as each class, in percent."""
    details: Mapping[str, Any] = score.details
    names = [row["name"] for row in details["classes"]]
    names = [name if len(name) <= LONGEST else f"{name[: LONGEST - 3]}..." for name in names]
    matrix = details["confusion"]
    size = 2.5 + 0.4 * len(names)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    shares = [[100 * n / max(sum(row), 1) for n in row] for row in matrix]
    picture = axes.imshow(shares, vmin=0, vmax=100, cmap="Blues")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="% of the true class's examples")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize="small")
    axes.set_yticks(range(len(names)), names, fontsize="small")
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            if share >= 0.5:
                colour = "white" if share > 50 else "black"
                text = f"{share:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize="x-small")
    tasks = score.tasks - score.diverged
    title = f"{title}\n{sum(map(sum, matrix)):,} predictions in {tasks} tasks; a row adds to 100 %"
    axes.set(xlabel="predicted", ylabel="true", title=title)
    axes.title.set_fontsize("medium")
    return figure
