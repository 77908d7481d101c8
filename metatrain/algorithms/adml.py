"""Adversarial meta-learning (Yin, Tang, Xu, Wang 2018, arXiv 1806.03316)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.algorithms.maml import MAML
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import (
    FGSM,
    TRAINING_ONLY,
    Context,
    Meta,
    Params,
    Problem,
    Update,
    attackable,
    chunks,
    joined,
)


@dataclass(frozen=True, kw_only=True)
class ADML:
    """Adapt to clean and to adversarial examples, and descend the query losses crossed.

        x_adv   = x + epsilon / 255 * sign(grad_x L)
        phi_adv = theta - inner_lr * grad_theta L_i(theta), on the support set x_adv
        phi     = theta - inner_lr * grad_theta L_i(theta), on the support set x
        theta <- theta - beta grad_theta 1/2 sum_i [L_i(phi_adv), on queries x
                                                    + L_i(phi), on queries x_adv]

    Support examples are moved against theta, queries against the phi that predicts them. The paper
    takes the two outer steps one after the other; here it is one, along their mean. With epsilon 0
    it is MAML, to the bit.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["adml"] = "adml"
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate."""
    inner_steps: int = bounded(1, least=1, most=10_000)
    """Inner steps."""
    epsilon: float = bounded(least=0, most=255, metadata=TRAINING_ONLY)
    """Most that a pixel moves in training, in units of 1/255."""
    first_order: bool = field(default=False, metadata=TRAINING_ONLY)
    """Hold the inner gradient constant."""
    adapts: tuple[str, ...] = ("*",)
    """Patterns of the parameters that the inner loop changes."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def _maml(self) -> MAML:
        return MAML(
            inner_lr=self.inner_lr,
            inner_steps=self.inner_steps,
            first_order=self.first_order,
            adapts=self.adapts,
        )

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        return self._maml.init(attackable(problem), generator)

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._maml.adapt(problem, meta, task, context)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        clean, tasks = attackable(problem).in_floats(tasks)
        attack = FGSM(epsilon=self.epsilon)
        adversarial = joined(
            [
                clean.attack_support(attack, inner_loop.start(meta, chunk), chunk, context)
                for chunk in chunks(clean, tasks)
            ]
        )
        return _mean(
            self._maml.update(clean, meta, adversarial, context),
            self._maml.update(clean.attack_queries(attack), meta, tasks, context),
        )


def _mean(one: Update, other: Update) -> Update:
    """The mean of two updates by the same tasks."""
    parts = zip(one.direction, other.direction, strict=True)
    direction = Meta(*({name: (p + b[name]) / 2 for name, p in a.items()} for a, b in parts))
    metrics = {name: (value + other.metrics[name]) / 2 for name, value in one.metrics.items()}
    return one._replace(direction=direction, metrics=metrics)
