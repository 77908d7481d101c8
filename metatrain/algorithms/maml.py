"""Model-agnostic meta-learning (Finn, Abbeel, Levine 2017, arXiv 1703.03400)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.algorithms import inner_loop
from metatrain.core import Context, InputError, Meta, Params, Problem, Update


@dataclass(frozen=True, kw_only=True)
class MAML:
    """Descend the query loss after adaptation, theta <- theta - beta grad_theta sum_i L_i(phi_i)  (algorithm 1), where

        phi_i = theta - inner_lr * grad_theta L_i(theta)                                          (equation 1)

    is taken `inner_steps` times. The losses are means over examples: the paper's code sums over the ways, so that its
    inner rate is `inner_lr / ways`. `first_order` holds the inner gradient constant (section 5.2); the query gradient
    is still taken at phi. `frozen` names what the inner loop leaves alone, by pattern: "*.norm.*" for the paper's nets,
    "body.*" for ANIL (Raghu et al. 2020).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["maml"] = "maml"
    inner_lr: float
    inner_steps: int = 1
    first_order: bool = False
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.inner_steps < 1:
            raise InputError(f"inner_steps must be at least 1, got {self.inner_steps}")
        if self.inner_lr <= 0:
            raise InputError(f"inner_lr must be positive, got {self.inner_lr}")

    def init(self, model: Params, generator: torch.Generator) -> Meta:
        return Meta(model, {}, {})

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        yield from self._descend(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        def query_after_adaptation(meta: Meta, task: Any) -> dict[str, Tensor]:
            *_, phi = self._descend(problem, meta, task, context, order=1 if self.first_order else 2)
            return problem.query(phi, task, context)

        return inner_loop.mean_gradient(problem, query_after_adaptation, meta, tasks, context)

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        return inner_loop.descend(
            problem,
            meta.model,
            task,
            context,
            lr=self.inner_lr,
            steps=self.inner_steps,
            frozen=self.frozen,
            order=order,
        )
