"""Relation networks (Sung et al. 2018, arXiv 1711.06025)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from metatrain.algorithms import inner_loop
from metatrain.algorithms.matching import given_support, learn
from metatrain.core import Context, InputError, Meta, Params, Problem, Update, labelled
from metatrain.models.heads import SCORES, SUPPORT, TARGETS


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Classify by a learned relation of an example and each class.

        r_k = sigmoid(g([c_k, f(x)])),  c_k = mean of f(x_i) over the support set's class k
                                                                          (equation 1)
        loss = mean over queries and classes of (r_k - 1(y = k))^2        (equation 2)

    Adapting gives the head the features and classes of the support set. Nothing that is learned
    belongs to a class, so that training and test may have other numbers of ways. The model must
    have `head: {name: pairs}`, whose outputs are logits of r. Scores outside training are those
    of every algorithm: accuracy, and the cross-entropy of these logits.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["relation"] = "relation"

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_without(
            problem, generator, (SUPPORT, TARGETS), "pairs", each_class=True
        )
        if not any(name.startswith(SCORES) for name in model):
            raise InputError(
                "relation needs a head that scores pairs, and the network has none",
                remedy="choose one that has, with model.head.name pairs",
            )
        return Meta(model, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return given_support(problem, meta, task, context)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return learn(labelled(problem).with_loss(squared_error), meta, tasks, context)


def squared_error(logits: Tensor, target: Tensor) -> Tensor:
    """[T]: of scores sigmoid(logits) [T, Q, ways] and classes [T, Q]."""
    wanted = one_hot(target, logits.shape[-1])
    return (logits.sigmoid() - wanted).square().mean((1, 2))
