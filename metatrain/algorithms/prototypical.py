"""Prototypical networks (Snell, Swersky, Zemel 2017, arXiv 1703.05175)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import Context, InputError, Meta, Params, Problem, Update
from metatrain.models.heads import BIAS, WEIGHT


@dataclass(frozen=True, kw_only=True)
class Prototypical:
    """Classify by the distance to the mean of the features of each class's support examples,

        c_k = 1/|S_k| sum_{(x, y) in S_k} f(x)
        (equation 1) p(y = k | x) = softmax_k(-|f(x) - c_k|^2) = softmax_k(2 c_k . f(x) - |c_k|^2)
        (equation 2, section 2.4)

    so that adapting is computing the head: only the network's body is learned, and tasks of any
    number of ways can be trained and tested on. A model with `head: {name: cosine}` compares by
    scale * cos(f(x), c_k) instead.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["prototypical"] = "prototypical"

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        if problem.targets != "classes":
            raise InputError(
                "prototypical tells classes apart, and these tasks have none",
                remedy=("choose another algorithm"),
            )
        model = problem.init(generator)
        if WEIGHT not in model:
            raise InputError(
                "prototypical needs a network that ends in a head of weights, such as conv4 or mlp"
            )
        learned = {name: p for name, p in model.items() if name not in (WEIGHT, BIAS)}
        return Meta(learned, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        """Before adaptation all classes are equally probable."""
        phi = inner_loop.start(meta, task)
        features, classes = problem.embed(phi, task, context)  # [T, S, F], [T, S, ways] one-hot
        prototypes = classes.mT @ features / classes.sum(1)[..., None]  # [T, ways, F]
        head = {WEIGHT: 2 * prototypes, BIAS: -prototypes.square().sum(-1)}
        yield phi | {name: torch.zeros_like(p) for name, p in head.items()}
        yield phi | head

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return inner_loop.mean_gradient(self.adapt, problem, meta, tasks, context)
