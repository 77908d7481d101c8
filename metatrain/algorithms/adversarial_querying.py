"""Adversarial querying (Goldblum, Fowl, Goldstein 2020, arXiv 1910.00982)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from metatrain.algorithms.maml import MAML
from metatrain.algorithms.prototypical import Prototypical
from metatrain.algorithms.ridge import Ridge
from metatrain.bounds import bounded, check_bounds
from metatrain.core import (
    PGD,
    TRAINING_ONLY,
    Context,
    Meta,
    Params,
    Problem,
    Update,
    attackable,
)


@dataclass(frozen=True, kw_only=True)
class AdversarialQuerying:
    """Train a learner on query examples that are moved against what it adapted to.

        phi_i = the learner, adapted to clean support examples of task i
        x_adv = argmax L(phi_i, x_adv), |x_adv - x| <= epsilon / 255      (by `steps` of PGD)
        theta <- theta - beta grad_theta sum_i L(phi_i, x_adv)

    Adaptation sees no attack: it costs what the learner's does. The loss of moved examples is
    differentiated with x_adv held constant. With epsilon 0 it is the learner, to the bit.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["adversarial_querying"] = "adversarial_querying"
    learner: Annotated[MAML | Prototypical | Ridge, Field(discriminator="name")]
    """What adapts: `maml`, `prototypical` or `ridge`, with its keys."""
    epsilon: float = bounded(8.0, least=0, most=255, metadata=TRAINING_ONLY)
    """Most that a pixel of a query moves in training, in units of 1/255."""
    steps: int = bounded(7, least=1, most=1000, metadata=TRAINING_ONLY)
    """Steps of an attack in training."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        return self.learner.init(attackable(problem), generator)

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self.learner.adapt(problem, meta, task, context)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        clean, tasks = attackable(problem).in_floats(tasks)
        attacked = clean.attack_queries(PGD(epsilon=self.epsilon, steps=self.steps))
        return self.learner.update(attacked, meta, tasks, context)
