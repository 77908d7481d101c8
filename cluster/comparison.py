"""Trained runs on the same tasks: the paired difference of their results, with its interval.

Tasks differ much from each other. Pairs need far fewer of them to tell two runs apart than two
separate intervals do.
"""

from __future__ import annotations

import dataclasses
import html
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster.progress import Line
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import bundle, protocol, schema, storage
from metatrain.core import InputError, Meta, Norm, Purpose, Scores
from metatrain.isolation import isolated
from metatrain.metrics import Metric
from metatrain.names import few
from metatrain.plain import to_json
from metatrain.recipe import Recipe
from metatrain.start import prepare

log = logging.getLogger(__name__)

THREADS = 1
TABLE = "comparison.json"
# which tasks an evaluation draws, of one family
DRAWN_BY = ("split", "seed", "tasks", "tasks_per_ticket")


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """What two runs give, on the same tasks if it is paired, and how far the second is ahead."""

    first: str
    second: str
    metric: Metric
    first_mean: float
    first_ci95: float
    first_protocol: str
    second_mean: float
    second_ci95: float
    second_protocol: str
    paired: bool  # whether both were measured on the same tasks
    tasks: int  # of the second run
    tested_on: str  # the tasks of the first run, in words
    difference: float  # mean of second - first
    ci95: float  # half the width of its 95 % interval

    @property
    def verdict(self) -> str:
        """Whether the interval of the difference holds zero."""
        return "a tie" if abs(self.difference) <= self.ci95 else "a difference"

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        return asdict(self) | {"metric": self.metric.name, "verdict": self.verdict}

    def __repr__(self) -> str:
        pairs = f"over {self.tasks} tasks" if self.paired else "on different tasks"
        return (
            f"Comparison({self.metric.name} of {self.second!r} minus {self.first!r}: "
            f"{self.difference:.4f} +- {self.ci95:.4f} {pairs}, {self.verdict})"
        )

    def _repr_html_(self) -> str:
        shown = [
            (self.first, self.first_mean, self.first_ci95),
            (self.second, self.second_mean, self.second_ci95),
            (f"difference: {self.verdict}", self.difference, self.ci95),
        ]
        body = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{mean:.4f}</td><td>± {width:.4f}</td></tr>"
            for name, mean, width in shown
        )
        cells = [f"{self.tasks} tasks", html.escape(self.metric.name), "95 %"]
        head = "".join(f"<th>{cell}</th>" for cell in cells)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class _Side(NamedTuple):
    """A trained run, with the evaluation that it is compared by."""

    place: str
    recipe: Recipe
    meta: Meta
    norm: Norm

    @property
    def metric(self) -> Metric:
        return self.recipe.family.metric


def compare(first: str, others: Sequence[str], *, unpaired: bool = False) -> list[Comparison]:
    """Compare each of the other runs with the first one. A run is its folder or its bundle.

    Each run adapts as its own evaluation says, on the tasks that both evaluations draw; the norm is
    that of the first run.

    unpaired: if the evaluations draw other tasks, compare the two means all the same, each by its
        own protocol. The interval of their difference is then that of independent means.

    Raises InputError for other tasks if not `unpaired`, and for another metric.
    """
    sides = [_loaded(place) for place in (first, *others)]
    known = sides[0]
    for other in sides[1:]:
        _check_metric(known, other)
        if not unpaired:
            _check_tasks(known, other)
    sides = [side._replace(norm=known.norm) if _same(known, side) else side for side in sides]
    with isolated(THREADS), Line(sum(side.recipe.evaluation.tasks for side in sides), 0) as line:
        found: list[tuple[Tensor, str]] = []
        for side in sides:
            before = sum(len(values) for values, _ in found)
            found.append(_results(side, _shown(line, side, before)))
    return [
        _difference(known, other, *found[0], *measured, paired=_same(known, other))
        for other, measured in zip(sides[1:], found[1:], strict=True)
    ]


def check_free(folder: Path, runs: Sequence[str]) -> None:
    """Raise InputError if a folder holds the comparison of other runs."""
    try:
        known = json.loads((folder / TABLE).read_bytes())
        before = [known[0]["first"], *(each["second"] for each in known)]
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        before = ["something else"]
    if before != list(runs):
        raise InputError(
            f"{folder / TABLE} is of {few(before)}", remedy="give another folder as --output"
        )


def leave(found: Sequence[Comparison], folder: Path) -> list[Path]:
    """Write comparison.json and comparison.png, and return their paths."""
    from metatrain import figures

    known = figures.Interval(found[0].first, found[0].first_mean, found[0].first_ci95)
    means = [figures.Interval(each.second, each.second_mean, each.second_ci95) for each in found]
    ahead = [figures.Interval(each.second, each.difference, each.ci95) for each in found]
    paired = all(each.paired for each in found)
    tasks = "the same tasks" if paired else "not all of them the same tasks"
    title = f"{found[0].tested_on}: {tasks}"
    picture = figures.comparison([known, *means], ahead, found[0].metric, title)
    table = folder / TABLE
    storage.write(str(table), to_json([each.record() for each in found], indent=1).encode())
    return [table, figures.save(picture, folder / "comparison.png")]


def _loaded(place: str) -> _Side:
    recipe, meta = bundle.load(bundle.find(place) or place)
    return _Side(place, recipe, meta, recipe.evaluation.norms()[0])


def _shown(line: Line, side: _Side, before: int) -> Callable[[int], None]:
    tasks = side.recipe.evaluation.tasks
    return lambda done: line.show(before + done, f"{side.place}: {done}/{tasks} tasks")


def _difference(
    first: _Side,
    second: _Side,
    a: Tensor,
    first_protocol: str,
    b: Tensor,
    second_protocol: str,
    *,
    paired: bool,
) -> Comparison:
    setting = first.recipe.setting("score")
    (mean_a, ci95_a), (mean_b, ci95_b) = _interval(a), _interval(b)
    difference, ci95 = mean_b - mean_a, math.hypot(ci95_a, ci95_b)
    if paired:
        difference, ci95 = _interval(b - a)
    return Comparison(
        first=first.place,
        second=second.place,
        metric=first.metric,
        first_mean=mean_a,
        first_ci95=ci95_a,
        first_protocol=first_protocol,
        second_mean=mean_b,
        second_ci95=ci95_b,
        second_protocol=second_protocol,
        paired=paired,
        tasks=len(b),
        tested_on=f"{setting.family.describe()}, {setting.split} split",
        difference=difference,
        ci95=ci95,
    )


def _check_metric(first: _Side, second: _Side) -> None:
    if first.metric != second.metric:
        raise InputError(
            f"{first.place} is measured by {first.metric.name}, and {second.place} by "
            f"{second.metric.name}",
            remedy="compare runs of one metric",
        )


def _same(first: _Side, second: _Side) -> bool:
    return _drawn(first.recipe) == _drawn(second.recipe)


def _check_tasks(first: _Side, second: _Side) -> None:
    """Refuse runs whose evaluations draw other tasks."""
    ours, theirs = _drawn(first.recipe), _drawn(second.recipe)
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{first.place} and {second.place} were not tested on the same tasks, {key} is "
                f"{ours.get(key)!r} and {theirs.get(key)!r}",
                remedy="compare runs whose evaluations draw the same ones, or pass --unpaired to "
                "compare their means all the same",
            )


def _drawn(recipe: Recipe) -> dict[str, Any]:
    """All that decides which tasks an evaluation draws."""
    setting = recipe.setting("score")
    family = {f"family.{key}": value for key, value in schema.flatten(schema.dump(setting.family))}
    return family | {f"evaluation.{key}": getattr(setting, key) for key in DRAWN_BY}


def _results(side: _Side, show: Callable[[int], None]) -> tuple[Tensor, str]:
    """[tasks] the metric after adaptation, and its protocol."""
    evaluation = dataclasses.replace(side.recipe.evaluation, norm=side.norm)
    if evaluation.ensemble is not None:
        log.warning("%s is compared without its evaluation's ensemble", side.place)
        evaluation = dataclasses.replace(evaluation, ensemble=None)
    prepared = prepare(dataclasses.replace(side.recipe, evaluation=evaluation))
    setting = prepared.setting("score")
    worker = Worker(prepared, choose_plan(prepared, 0, THREADS)[0])
    worker.load(0, worker.layout.flatten(side.meta))
    parts: list[Tensor] = []
    for ticket in setting.tickets():
        found, _ = worker.compute(ticket)
        assert isinstance(found, Scores)
        (measured,) = found.curves.values()
        parts.append(measured[side.metric.name][:, -1])
        show(sum(map(len, parts)))
    values = torch.cat(parts).double()
    bad = int((~values.isfinite()).sum())
    if bad:
        raise InputError(
            f"{side.place} has no finite {side.metric.name} on {bad} of {len(values)} tasks, "
            "so the difference is not known",
            remedy="lower the inner rate, or the number of inner steps, of the evaluation's "
            "algorithm",
        )
    return values, protocol.of_score(prepared, Purpose("score"), side.recipe.outer.steps)


def _interval(values: Tensor) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))
