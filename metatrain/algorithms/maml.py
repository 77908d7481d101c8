"""Model-agnostic meta-learning (Finn, Abbeel, Levine 2017, arXiv 1703.03400)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import TRAINING_ONLY, Context, InputError, Meta, Params, Problem, Update


@dataclass(frozen=True, kw_only=True)
class MAML:
    """Descend the query loss after adaptation, theta <- theta - beta grad_theta sum_i L_i(phi_i)
    (algorithm 1), where

        phi_i = theta - inner_lr * grad_theta L_i(theta)
        (equation 1)

    is taken `inner_steps` times. The losses are means over examples: the paper's code sums over the
    ways, so that its inner rate is `inner_lr / ways`. `first_order` holds the inner gradient
    constant (section 5.2); the query gradient is still taken at phi. In a reinforcement problem the
    losses are those of policy gradients (algorithm 3).

    Only parameters whose names match a pattern of `adapts` change in the inner loop: ("*.conv.*",
    "head.*") in the paper's nets, ("head.*",) in ANIL (Raghu et al. 2020, arXiv 1909.09157),
    ("body.*",) in BOIL (Oh et al. 2021, arXiv 2008.08882). With `recompute` the backward pass
    computes each step's graph again, instead of keeping all: more time, and less memory where steps
    are many.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["maml"] = "maml"
    inner_lr: float
    inner_steps: int = 1
    first_order: bool = field(default=False, metadata=TRAINING_ONLY)
    adapts: tuple[str, ...] = ("*",)
    recompute: bool = field(default=False, metadata=TRAINING_ONLY)

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise InputError(f"inner_steps must be at least 1, got {self.inner_steps}")
        if self.inner_lr <= 0:
            raise InputError(f"inner_lr must be positive, got {self.inner_lr}")

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = problem.init(generator)
        inner_loop.matching(list(model), self.adapts)
        return Meta(model, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._descend(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        adapt = partial(self._descend, order=1 if self.first_order else 2)
        return inner_loop.mean_gradient(adapt, problem, meta, tasks, context)

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        rate = dict.fromkeys(inner_loop.matching(list(meta.model), self.adapts), self.inner_lr)
        phi = inner_loop.start(meta, task)
        return inner_loop.descend(
            problem,
            phi,
            task,
            context,
            rates=[rate] * self.inner_steps,
            order=order,
            recompute=self.recompute,
        )
