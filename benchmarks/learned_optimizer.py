"""A learned optimizer against tuned Adam, on networks and tasks other than those of its training.

    metatrain train recipes/sinusoid_learned_optimizer_short.yaml --set output=runs/optimizer
    python benchmarks/learned_optimizer.py runs/optimizer

Both make as many steps on the same support sets, from the same fresh networks. Adam's rate, and
whether it falls linearly to zero, are those of the least query loss on validation tasks: of the
setting itself ("tuned here") or of the one that the optimizer was trained on ("tuned there"). The
numbers are mean query losses of test tasks. A difference is paired, with its 95 % interval: below 0
the learned optimizer is better.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from measure import machine, table, write
from torch import Tensor

from cluster.workers.plan import choose_plan
from metatrain import bundle, schema
from metatrain.algorithms import LearnedOptimizer, inner_loop
from metatrain.algorithms.inner_optimizers import OPTIMIZERS
from metatrain.core import (
    Context,
    Meta,
    Params,
    Problem,
    Purpose,
    Split,
    Ticket,
    chunks,
    generator_for,
)
from metatrain.recipe import Recipe
from metatrain.start import prepare

GROUP = 50  # tasks that are computed at once
RATES = [10 ** (-k / 4) for k in range(1, 15)]  # 0.56 to 0.0003
GLYPHS = {"name": "fewshot", "data": "glyphs", "ways": 5, "shots": 10, "queries": 10}
SETTINGS: dict[str, dict[str, Any]] = {
    "as trained": {},
    "4 times as wide": {"model": {"name": "mlp", "hidden": [128, 128]}},
    "twice as deep": {"model": {"name": "mlp", "hidden": [32, 32, 32, 32]}},
    "a quarter of the steps": {"steps": 0.25},
    "4 times as many steps": {"steps": 4},
    "linear functions": {
        "family": {"name": "linear_regression", "shots": [64, 64], "queries": 64},
    },
    "Gaussian processes": {
        "family": {"name": "gaussian_process", "shots": [64, 64], "queries": 64},
    },
    "glyphs": {"family": GLYPHS},
    "glyphs, convolutions": {
        "family": GLYPHS,
        "model": {"name": "conv4", "filters": 8, "pool": "stride", "norm": "none"},
    },
}


class Adam(NamedTuple):
    """How Adam was tuned."""

    lr: float
    falls: bool

    def __str__(self) -> str:
        return f"{self.lr:.2g}{', falling' if self.falls else ''}"


class Bound(NamedTuple):
    """A setting in which networks are trained."""

    problem: Problem
    algorithm: LearnedOptimizer
    recipe: Recipe

    def groups(self, split: Split, tasks: int) -> Iterator[tuple[Any, Context]]:
        """Tasks, and what decides the networks that are trained for them."""
        for part in range(-(-tasks // GROUP)):
            ticket = Ticket("score", split, 0, part)
            seed = self.recipe.evaluation.seed
            drawn = generator_for(seed, ticket, "tasks")
            found = self.recipe.family.sample(drawn, min(GROUP, tasks - part * GROUP), split)
            context = Context(ticket, generator_for(seed, ticket, "adaptation"))
            for chunk in chunks(self.problem, found):
                yield chunk, context

    def losses(self, trained: Iterable[tuple[Iterator[Params], Any, Context]]) -> Tensor:
        """[tasks] query losses after the last step."""
        found = []
        for steps, task, context in trained:
            (params,) = deque(steps, maxlen=1)
            with torch.no_grad():
                found.append(self.problem.query(params, task, context)["loss"])
        return torch.cat(found)

    def learned(self, meta: Meta, split: Split, tasks: int) -> Tensor:
        return self.losses(
            (self.algorithm.adapt(self.problem, meta, task, context), task, context)
            for task, context in self.groups(split, tasks)
        )

    def adam(self, meta: Meta, adam: Adam, split: Split, tasks: int) -> Tensor:
        return self.losses(
            (self._adam(meta, adam, task, context), task, context)
            for task, context in self.groups(split, tasks)
        )

    def tuned(self, meta: Meta, tasks: int) -> Adam:
        every = [Adam(lr, falls) for lr in RATES for falls in (False, True)]
        return min(every, key=lambda adam: _key(self.adam(meta, adam, "val", tasks)))

    def _adam(self, meta: Meta, adam: Adam, task: Any, context: Context) -> Iterator[Params]:
        start = next(self.algorithm.adapt(self.problem, meta, task, context))
        names, steps = [*self.problem.init(torch.Generator())], self.algorithm.inner_steps
        rates = [adam.lr * (1 - k / steps if adam.falls else 1) for k in range(steps)]
        return inner_loop.descend(
            lambda phi: self.problem.support_loss(phi, task, context),
            start,
            rates=[dict.fromkeys(names, rate) for rate in rates],
            order=0,
            generator=context.generator,
            optimizer=OPTIMIZERS["adam"],
        )


def bound(recipe: Recipe, changed: dict[str, Any]) -> Bound:
    """The recipe with another model, family or number of steps."""
    tree = schema.dump(recipe)
    steps = round(recipe.algorithm.inner_steps * changed.get("steps", 1))
    tree["algorithm"] |= {"inner_steps": steps}
    tree |= {key: value for key, value in changed.items() if key != "steps"}
    tree |= {"evaluation": {"seed": recipe.evaluation.seed}, "validation": {}, "evaluations": {}}
    other = schema.parse(Recipe, tree, "benchmarks/learned_optimizer.py")
    prepared = prepare(other)
    path = choose_plan(prepared, 0, 1)[0].path
    return Bound(prepared.bind(Purpose("score"), path), other.algorithm, other)


def _key(losses: Tensor) -> float:
    mean = float(losses.mean())
    return mean if math.isfinite(mean) else math.inf


def _difference(ours: Tensor, theirs: Tensor) -> str:
    apart = ours - theirs
    return f"{float(apart.mean()):+.3g} ± {1.96 * float(apart.std()) / len(apart) ** 0.5:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="folder of a run of the algorithm learned_optimizer")
    parser.add_argument("--tasks", type=int, default=300, help="test tasks of each setting")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe, meta = bundle.load(bundle.find(arguments.run) or arguments.run)
    there, rows = None, []
    for name, changed in SETTINGS.items():
        setting = bound(recipe, changed)
        here = setting.tuned(meta, arguments.tasks // 3)
        there = there or here
        ours = setting.learned(meta, "test", arguments.tasks)
        best, moved = (setting.adam(meta, a, "test", arguments.tasks) for a in (here, there))
        rows.append(
            [
                name,
                f"{float(ours.mean()):.4g}",
                f"{float(best.mean()):.4g} ({here})",
                _difference(ours, best),
                f"{float(moved.mean()):.4g}",
                _difference(ours, moved),
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    header = "setting | learned | Adam, tuned here | difference | Adam, tuned there | difference"
    protocol = f"{recipe.name}, {arguments.tasks} test tasks of a setting; {machine()}"
    write("learned_optimizer", f"{protocol}\n\n{table(header.split(' | '), rows)}")


if __name__ == "__main__":
    main()
