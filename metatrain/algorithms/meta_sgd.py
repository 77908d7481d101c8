"""Learned inner rates: Meta-SGD (Li et al. 2017) and those of MAML++ (Antoniou et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop, inner_optimizers
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import TRAINING_ONLY, Context, Meta, Params, Penalty, Problem, Update


@dataclass(frozen=True, kw_only=True)
class MetaSGD:
    """MAML that learns its inner rates alpha along with the initialisation.

        phi = theta - alpha * grad_theta L(theta)        (Li et al., arXiv 1707.09835, equation 2)

    With rates="parameter" alpha has a number for each number of theta, which all steps share. With
    "layer_step" it has one for each tensor and each step (Antoniou et al., arXiv 1810.09502,
    section 4: LSLR). Rates may become negative. They are in `Meta.algorithm` as rate.NAME or
    rate.STEP.NAME: `outer.groups` can give "algorithm.*" an outer rate of its own.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["meta_sgd"] = "meta_sgd"
    initial_lr: float = bounded(above=0, most=RATE, metadata=TRAINING_ONLY)
    """Where all inner rates start."""
    inner_steps: int = bounded(1, least=1, most=10_000)
    """Inner steps."""
    inner_optimizer: inner_optimizers.Name = "sgd"
    """What makes a step of a gradient: `sgd`, `momentum` (0.9), `rmsprop` or `adam`."""
    penalty: Penalty | None = None
    """Penalty on the size of what adapts, such as `{l2: 0.01}`; `null`: none."""
    rates: Literal["parameter", "layer_step"] = "parameter"
    """`parameter`: a rate for each number; `layer_step`: one for each tensor and step."""
    adapts: tuple[str, ...] = ("*",)
    """Patterns of the parameters that the inner loop changes."""
    recompute: bool = field(default=False, metadata=TRAINING_ONLY)
    """Compute inner steps again in the backward pass: less memory, more time."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_whole(problem, generator)
        alpha: Params = {}
        for name in inner_loop.adapting(list(model), self.adapts):
            shape = model[name].shape if self.rates == "parameter" else ()
            alpha |= {self._key(k, name): torch.full(shape, self.initial_lr) for k in self._steps}
        return Meta(model, alpha, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._descend(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return inner_loop.mean_gradient(
            partial(self._descend, order=2), problem, meta, tasks, context
        )

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        adapting = inner_loop.adapting(list(meta.model), self.adapts)
        rates = [
            {name: meta.algorithm[self._key(k, name)] for name in adapting} for k in self._steps
        ]
        return inner_loop.descend(
            lambda phi: problem.support_loss(phi, task, context),
            inner_loop.start(meta, task),
            rates=rates,
            order=order,
            generator=context.generator,
            optimizer=inner_optimizers.OPTIMIZERS[self.inner_optimizer],
            penalty=self.penalty,
            recompute=self.recompute,
        )

    @property
    def _steps(self) -> range:
        return range(self.inner_steps)

    def _key(self, step: int, name: str) -> str:
        return f"rate.{name}" if self.rates == "parameter" else f"rate.{step}.{name}"
