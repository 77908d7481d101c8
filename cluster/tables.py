"""The tables that commands print: a run's scores, and the runs of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from metatrain.evaluate import Score
from metatrain.names import counted, printable

if TYPE_CHECKING:
    from cluster.comparison import Comparison
    from cluster.spread import Spread


def of_scores(scores: Sequence[Score]) -> Table:
    """A row for each of a few inner steps, each further score, each measure and each baseline."""
    first = scores[0]
    diverged = any(any(score.curve_diverged) for score in scores)
    table = Table(f"{first.metric.name} on {first.tasks} tasks")
    for name in ("mean", "95 %", *(("median", "quartiles", "diverged") if diverged else ())):
        table.add_column(name, justify="right")
    if first.baselines:
        table.add_column("on the same tasks, the result is")
    for i in first.table_steps():
        step, is_result = first.steps[i], i == len(first.steps) - 1
        name = _adapted(step, len(first.steps)) + (
            f", norm {first.norm}" if len(scores) > 1 else ""
        )
        cells = [f"{name} (result)" if is_result else name, *_measured(first, i, diverged)]
        table.add_row(*cells, style="bold" if is_result else None)

    def add(score: Score) -> None:
        name = f"{_adapted(score.steps[-1], len(score.steps))}, norm {score.norm}"
        other = f"{score.evaluation} on {score.tasks} tasks: " if score.evaluation else ""
        table.add_row(other + name, *_measured(score, -1, diverged))

    for score in scores[1:]:
        if not score.evaluation:
            add(score)
    for measure, value in first.measures.items():
        table.add_row(measure.replace("_", " "), f"{value:.4f}" if isfinite(value) else "none")
    for score in scores[1:]:
        if score.evaluation:
            add(score)
    empty = [""] * (len(table.columns) - 4)
    each: dict[str, Score] = {}  # of each evaluation, by its first norm
    for score in scores:
        each.setdefault(score.evaluation, score)
    for score in each.values():
        of = f"{score.evaluation}: " if score.evaluation else ""
        for name, value in score.baselines.items():
            steps = score.baseline_steps.get(name)
            after = "" if not steps else f", after {counted(steps, 'step')}"
            width = f"± {score.metric.width(score.baseline_ci95[name])}"
            cells = [of + name.replace("_", " ") + after, score.metric.text(value), width, *empty]
            table.add_row(*cells, score.difference(name))
    return table


def of_comparisons(found: Sequence[Comparison]) -> Table:
    """Return a row for the first run and one for each other, with its difference from the first."""
    first = found[0]
    metric, table = first.metric, Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("run", first.metric.name, "less the first", ""):
        table.add_column(name, overflow="fold")
    table.add_row(printable(first.first), metric.interval(first.first_mean, first.first_ci95))
    for each in found:
        tasks = f"over {each.tasks} tasks, {'paired' if each.paired else 'not the same ones'}"
        table.add_row(
            printable(each.second),
            metric.interval(each.second_mean, each.second_ci95),
            metric.difference(each.difference, each.ci95),
            f"{each.verdict}, {tasks}",
        )
    return table


def of_seeds(spread: Spread) -> Table:
    """Return a row for each training seed, and one for all of them together."""
    table = Table(spread.heading())
    table.add_column("95 %", justify="right")
    for at, (label, text) in enumerate(spread.rows()):
        table.add_row(label, text, style="bold" if at == len(spread.seeds) else None)
    return table


def of_runs(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for each run or sweep that `metatrain.runs` lists."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "kind", "when", "steps", "result", "folder"):
        table.add_column(name, overflow="fold")
    for row in rows:
        steps = "" if row["steps"] is None else f"{row['steps']} of {row['of']}"
        lost = f", {row['diverged']} tasks diverged" if row["diverged"] else ""
        when = "" if row["when"] is None else f"{row['when']:%Y-%m-%d %H:%M}"
        table.add_row(
            printable(row["name"]),
            row["kind"],
            when,
            steps,
            (row["result"] or "") + lost,
            printable(row["folder"]),
        )
    return table


def _adapted(step: int, steps: int) -> str:
    if steps == 1:
        return "after adaptation"
    return {0: "before adaptation", 1: "after 1 step"}.get(step, f"after {step} steps")


def _measured(score: Score, i: int, diverged: bool) -> list[str]:
    """Return the cells of the ith of the score's steps."""
    text = score.metric.text
    low, high = map(text, score.curve_quartiles[i])
    lost = (
        [text(score.curve_median[i]), f"{low} to {high}", str(score.curve_diverged[i])]
        if diverged
        else []
    )
    return [text(score.curve[i]), f"± {score.metric.width(score.curve_ci95[i])}", *lost]
