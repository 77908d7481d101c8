"""A learned optimizer: an MLP makes the steps that train a network from its initial weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from metatrain.algorithms import evolution, inner_loop, mlp_optimizer
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import TRAINING_ONLY, Context, InputError, Meta, Params, Problem, Update, count


@dataclass(frozen=True, kw_only=True)
class LearnedOptimizer:
    """Learn to train: each task has a fresh network, and an MLP makes its K steps.

        u_b = Adam's direction at step k with beta_1 = b and beta_2 = 0.999
        s, c_b = MLP(u_0, u_.5, u_.9, u_.99, phi, k / K, 1 / k)
        phi <- phi - exp(s) (c_g g + sum_b c_b u_b),   g = grad L(phi)

    All coordinates share the MLP. c_g is a constant that it learns. At first the others are, too,
    and make Adam's steps: a nominal term, as in Harrison et al. 2022 (arXiv 2209.11208). It learns
    from the query loss after the last step: by the gradient through all steps (Andrychowicz et al.
    2016, arXiv 1606.04474), or by evolution strategies (Metz et al. 2019, arXiv 1810.10180).
    `Meta.algorithm` is the MLP, and `Meta.model` is empty: it trains networks of any size.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["learned_optimizer"] = "learned_optimizer"
    inner_steps: int = bounded(least=1, most=10_000)
    """K, steps on the whole support set."""
    initial_lr: float = bounded(0.01, above=0, most=RATE, metadata=TRAINING_ONLY)
    """Learning rate of Adam, whose steps are those of the untrained MLP."""
    units: int = bounded(32, least=1, most=1024)
    """Units of the MLP's hidden layer."""
    gradient: Literal["unrolled", "evolution"] = field(default="unrolled", metadata=TRAINING_ONLY)
    """How the MLP learns: `unrolled`, through all steps, or `evolution`, which keeps no graph."""
    deviation: float = bounded(0.01, above=0, most=RATE, metadata=TRAINING_ONLY)
    """Standard deviation of the noise that evolution adds to the MLP."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        inner_loop.init_whole(problem, generator)
        if problem.state():
            raise InputError(
                "norm running is of one network, and this algorithm trains one for each task",
                remedy="choose another norm",
            )
        return Meta({}, mlp_optimizer.weights(self.units, self.initial_lr, generator), {})

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._train(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        if self.gradient == "evolution":
            return evolution.mean_gradient(
                self.adapt, problem, meta, tasks, context, deviation=self.deviation
            )
        adapt = partial(self._train, order=2)
        return inner_loop.mean_gradient(adapt, problem, meta, tasks, context)

    def _train(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        # The tensor draws: the GPU cannot make networks, and does not repeat such an update.
        seeds = torch.empty(count(task), dtype=torch.int64).random_(generator=context.generator)
        fresh = inner_loop.fresh(problem, meta, seeds.tolist())
        start = {name: p.requires_grad_(order > 0) for name, p in fresh.items()}
        return inner_loop.descend(
            lambda phi: problem.support_loss(phi, task, context),
            inner_loop.start(meta, task) | start,
            rates=[dict.fromkeys(start, 1.0)] * self.inner_steps,
            order=order,
            generator=context.generator,
            optimizer=mlp_optimizer.optimizer(meta.algorithm, self.inner_steps),
        )
