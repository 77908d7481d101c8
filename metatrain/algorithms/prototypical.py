"""Prototypical networks (Snell, Swersky, Zemel 2017, arXiv 1703.05175)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import Context, Meta, Params, Problem, Update, labelled
from metatrain.models.heads import BIAS, WEIGHT


@dataclass(frozen=True, kw_only=True)
class Prototypical:
    """Classify by the distance to each class's prototype, the mean of its support features.

        c_k = 1/|S_k| sum_{(x, y) in S_k} f(x)                            (equation 1)
        p(y = k | x) = softmax_k(-|f(x) - c_k|^2)                         (equation 2)
                     = softmax_k(2 c_k . f(x) - |c_k|^2)                  (section 2.4)

    Adapting computes the head. Only the network's body is learned, so that training and test may
    have other numbers of ways. With `head: {name: cosine}` it compares by scale * cos(f(x), c_k).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["prototypical"] = "prototypical"

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_without(
            problem, generator, (WEIGHT,), "linear or cosine", each_class=True
        )
        model.pop(BIAS, None)  # a cosine head has none
        return Meta(model, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        """Before adaptation all classes are equally probable."""
        phi = inner_loop.start(meta, task)
        features, classes = labelled(problem).embed(phi, task, context)  # [T, S, F], [T, S, ways]
        prototypes = classes.mT @ features / classes.sum(1)[..., None]  # [T, ways, F]
        head = {WEIGHT: 2 * prototypes, BIAS: -prototypes.square().sum(-1)}
        yield phi | {name: torch.zeros_like(p) for name, p in head.items()}
        yield phi | head

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return inner_loop.mean_gradient(self.adapt, problem, meta, tasks, context)
