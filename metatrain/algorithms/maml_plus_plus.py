"""MAML++: how to train your MAML (Antoniou, Edwards, Storkey 2019, arXiv 1810.09502)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop, inner_per_step
from metatrain.bounds import RATE, STEPS, bounded, check_bounds
from metatrain.core import TRAINING_ONLY, Context, Meta, Params, Problem, Update, count


@dataclass(frozen=True, kw_only=True)
class MAMLPlusPlus:
    """MAML with losses, rates, normalisations and derivatives of each inner step.

        theta <- theta - beta grad_theta sum_i sum_k v_k L_i(phi_i,k)     (section 4: MSL)
        phi_k+1 = phi_k - alpha_k grad L(phi_k), alpha_k of each tensor   (LSLR)

    In epoch e of E, v_k = (1 - e/E) / K, and v_K is the rest of 1; then v_K = 1. Parameters of
    `per_step` do not adapt and differ from step to step (BNWB): phi_k = theta + delta_k. With
    `norm: running` the statistics of their layers do, too (BNRS).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["maml_plus_plus"] = "maml_plus_plus"
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate, at which learned ones start."""
    inner_steps: int = bounded(5, least=1, most=10_000)
    """Inner steps."""
    learns_rates: bool = True
    """Whether each tensor learns a rate for each step."""
    per_step: tuple[str, ...] = ()
    """Patterns of the parameters with a value for each step, such as `["*.norm.*"]`."""
    epoch_steps: int = bounded(500, least=1, most=STEPS, metadata=TRAINING_ONLY)
    """Outer steps of an epoch."""
    multi_step_epochs: int = bounded(10, least=0, most=STEPS, metadata=TRAINING_ONLY)
    """Epochs until the loss after the last inner step counts alone."""
    first_order_epochs: int = bounded(0, least=0, most=STEPS, metadata=TRAINING_ONLY)
    """Epochs that hold the inner gradient constant."""
    adapts: tuple[str, ...] = ("*",)
    """Patterns of the parameters that the inner loop changes."""
    recompute: bool = field(default=False, metadata=TRAINING_ONLY)
    """Compute inner steps again in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_whole(problem, generator)
        meta = inner_per_step.init(model, problem.state(), self.per_step, self.inner_steps)
        names = inner_per_step.adapting(model, self.adapts, self.per_step)
        for key in (f"rate.{k}.{name}" for name in names for k in range(self.inner_steps)):
            if self.learns_rates:
                meta.algorithm[key] = torch.tensor(self.inner_lr)
        return meta

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._descend(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        weights, order = self.phase(context.ticket.step)
        adapt = partial(self._descend, order=order)
        found = inner_loop.mean_gradient(adapt, problem, meta, tasks, context, weights=weights)
        adapted = self.adapt(problem, meta, tasks, context)
        found.direction.state.update(inner_per_step.tracked(problem, meta, tasks, adapted))
        return found

    def phase(self, step: int) -> tuple[tuple[float, ...] | None, inner_loop.Order]:
        """The losses' weights at phi_0, phi_1, ..., None for the last alone; which derivatives."""
        epoch, early = step // self.epoch_steps, self.inner_steps - 1
        order: inner_loop.Order = 1 if epoch < self.first_order_epochs else 2
        if epoch >= self.multi_step_epochs:
            return None, order
        v = (1 - epoch / self.multi_step_epochs) / self.inner_steps
        return (0.0, *[v] * early, 1 - early * v), order

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        names = inner_per_step.adapting(meta.model, self.adapts, self.per_step)
        yield (phi := inner_loop.start(meta, task))
        for k in range(self.inner_steps):
            rates = {n: meta.algorithm.get(f"rate.{k}.{n}", self.inner_lr) for n in names}
            *_, phi = inner_loop.descend(
                lambda phi: problem.support_loss(phi, task, context),
                phi,
                rates=[rates],
                order=order,
                generator=context.generator,
                recompute=self.recompute,
            )
            phi = phi | inner_per_step.at(meta, k + 1, count(task))
            yield phi
