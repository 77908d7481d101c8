"""Model-agnostic meta-learning (Finn, Abbeel, Levine 2017, arXiv 1703.03400)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop, inner_optimizers
from metatrain.algorithms.proximal import Proximal
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import (
    TRAINING_ONLY,
    Context,
    Meta,
    Params,
    Penalty,
    Problem,
    Update,
    recordable,
)


@dataclass(frozen=True, kw_only=True)
class MAML:
    """Descend the query loss after adaptation.

        theta <- theta - beta grad_theta sum_i L_i(phi_i)                 (algorithm 1)
        phi_i = theta - inner_lr * grad_theta L_i(theta)                  (equation 1)

    The second equation is applied `inner_steps` times. Losses are means over examples. The paper's
    code sums over the ways: its inner rate is `inner_lr / ways`. In a reinforcement problem the
    losses are those of policy gradients (algorithm 3).

    The paper's nets have adapts=("*.conv.*", "head.*"). ("head.*",) is ANIL (Raghu et al. 2020,
    arXiv 1909.09157), ("body.*",) is BOIL (Oh et al. 2021, arXiv 2008.08882).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["maml"] = "maml"
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate."""
    inner_steps: int = bounded(1, least=1, most=10_000)
    """Inner steps."""
    inner_optimizer: inner_optimizers.Name = "sgd"
    """What makes a step of a gradient: `sgd`, `momentum` (0.9), `rmsprop` or `adam`."""
    penalty: Penalty | None = None
    """Penalty on the size of what adapts, such as `{l2: 0.01}`; `null`: none."""
    objective: Literal["query", "support+query"] = field(default="query", metadata=TRAINING_ONLY)
    """Examples whose loss after adaptation is descended: `query` or `support+query`."""
    first_order: bool = field(default=False, metadata=TRAINING_ONLY)
    """Hold the inner gradient constant (section 5.2 of the paper)."""
    adapts: tuple[str, ...] = ("*",)
    """Patterns of the parameters that the inner loop changes."""
    recompute: bool = field(default=False, metadata=TRAINING_ONLY)
    """Compute inner steps again in the backward pass: less memory, more time."""
    proximal: Proximal | None = field(default=None, metadata=TRAINING_ONLY)
    """In a reinforcement problem PPO as the outer step, such as `{epochs: 4}`; `null`: one step."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        if self.proximal is not None:
            recordable(problem)
        model = inner_loop.init_whole(problem, generator)
        inner_loop.adapting(list(model), self.adapts)
        return Meta(model, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._descend(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        adapt = partial(self._descend, order=1 if self.first_order else 2)
        both = self.objective == "support+query"
        gradient = (self.proximal or inner_loop).mean_gradient
        return gradient(adapt, problem, meta, tasks, context, with_support=both)

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        rate = dict.fromkeys(inner_loop.adapting(list(meta.model), self.adapts), self.inner_lr)
        return inner_loop.descend(
            lambda phi: problem.support_loss(phi, task, context),
            inner_loop.start(meta, task),
            rates=[rate] * self.inner_steps,
            order=order,
            generator=context.generator,
            optimizer=inner_optimizers.OPTIMIZERS[self.inner_optimizer],
            penalty=self.penalty,
            recompute=self.recompute,
        )
