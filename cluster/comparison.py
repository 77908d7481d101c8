"""Two trained runs on the same tasks: the paired difference of their results, with its interval.

Tasks differ much from each other. Pairs need far fewer of them to tell two runs apart than two
separate intervals do.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster.progress import Line
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import bundle, schema
from metatrain.core import InputError, Meta, Norm, Scores
from metatrain.isolation import isolated
from metatrain.recipe import Recipe
from metatrain.start import prepare

THREADS = 1
# which tasks an evaluation draws, of one family
DRAWN_BY = ("split", "seed", "tasks", "tasks_per_ticket")


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """What two runs give on the same tasks, and how far the second is from the first."""

    first: str
    second: str
    metric: str
    norm: Norm  # whose statistics normalised query examples, for both: the first run's
    tasks: int
    first_mean: float
    first_ci95: float
    second_mean: float
    second_ci95: float
    difference: float  # mean of second - first over the tasks
    ci95: float  # 1.96 * standard deviation of the differences / sqrt(tasks)

    @property
    def verdict(self) -> str:
        """Whether the interval of the difference holds zero."""
        return "a tie" if abs(self.difference) <= self.ci95 else "a difference"

    def lines(self) -> list[str]:
        """Both means, and then the difference."""
        return [
            f"{self.first}: {self.first_mean:.4f} +- {self.first_ci95:.4f}",
            f"{self.second}: {self.second_mean:.4f} +- {self.second_ci95:.4f}",
            f"paired difference over {self.tasks} tasks: {self.difference:.4f} +- {self.ci95:.4f}: "
            f"{self.verdict}",
        ]

    def __repr__(self) -> str:
        return (
            f"Comparison({self.metric} of {self.second!r} minus {self.first!r}: "
            f"{self.difference:.4f} +- {self.ci95:.4f} over {self.tasks} tasks, {self.verdict})"
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
        head = (
            f"<tr><th>{self.tasks} tasks</th><th>{html.escape(self.metric)}</th><th>95 %</th></tr>"
        )
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def compare(first: str, second: str) -> Comparison:
    """Evaluate two runs' folders or bundles on the tasks that both evaluations draw.

    Each run adapts as its own evaluation says; the norm is that of the first run.
    """
    (recipe, meta), (other, other_meta) = (
        bundle.load(bundle.find(place) or place) for place in (first, second)
    )
    _check_tasks(first, recipe, second, other)
    setting = recipe.setting("score")
    norm, metric = setting.norm[0], setting.family.metric.name
    with isolated(THREADS), Line(2 * setting.tasks, 0) as line:

        def show(place: str, before: int) -> Callable[[int], None]:
            return lambda done: line.show(before + done, f"{place}: {done}/{setting.tasks} tasks")

        a = _results(first, recipe, meta, norm, show(first, 0))
        b = _results(second, other, other_meta, norm, show(second, setting.tasks))
    (mean_a, ci95_a), (mean_b, ci95_b), (difference, ci95) = (
        _interval(a),
        _interval(b),
        _interval(b - a),
    )
    return Comparison(
        first=first,
        second=second,
        metric=metric,
        norm=norm,
        tasks=len(a),
        first_mean=mean_a,
        first_ci95=ci95_a,
        second_mean=mean_b,
        second_ci95=ci95_b,
        difference=difference,
        ci95=ci95,
    )


def _check_tasks(first: str, recipe: Recipe, second: str, other: Recipe) -> None:
    """Refuse runs whose evaluations draw other tasks."""
    ours, theirs = _drawn(recipe), _drawn(other)
    for key in ours | theirs:
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{first} and {second} were not tested on the same tasks, {key} is "
                f"{ours.get(key)!r} and {theirs.get(key)!r}",
                remedy="compare runs whose evaluations draw the same ones",
            )


def _drawn(recipe: Recipe) -> dict[str, Any]:
    """All that decides which tasks an evaluation draws."""
    setting = recipe.setting("score")
    family = {f"family.{key}": value for key, value in schema.flatten(schema.dump(setting.family))}
    return family | {f"evaluation.{key}": getattr(setting, key) for key in DRAWN_BY}


def _results(
    place: str, recipe: Recipe, meta: Meta, norm: Norm, show: Callable[[int], None]
) -> Tensor:
    """[tasks] the metric after adaptation."""
    recipe = dataclasses.replace(
        recipe, evaluation=dataclasses.replace(recipe.evaluation, norm=norm)
    )
    prepared = prepare(recipe)
    setting = prepared.setting("score")
    worker = Worker(prepared, choose_plan(prepared, 0, THREADS)[0])
    worker.load(0, worker.layout.flatten(meta))
    parts: list[Tensor] = []
    for ticket in setting.tickets():
        found, _ = worker.compute(ticket)
        assert isinstance(found, Scores)
        (measured,) = found.curves.values()
        parts.append(measured[setting.family.metric.name][:, -1])
        show(sum(map(len, parts)))
    values = torch.cat(parts).double()
    bad = int((~values.isfinite()).sum())
    if bad:
        raise InputError(
            f"{place} has no finite {setting.family.metric.name} on {bad} of {len(values)} tasks, "
            "so the difference is not known",
            remedy="lower the inner rate, or the number of inner steps, of the evaluation's "
            "algorithm",
        )
    return values


def _interval(values: Tensor) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval."""
    return float(values.mean()), float(1.96 * values.std() / math.sqrt(len(values)))
