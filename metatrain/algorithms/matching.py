"""Matching networks (Vinyals et al. 2016, arXiv 1606.04080), without full context embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import Context, Meta, Params, Problem, Update, labelled
from metatrain.models.heads import SUPPORT, TARGETS


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Classify by attention to the support examples (x_i, y_i).

        p(y | x) = sum_i a(x, x_i) y_i                                    (equation 1)
        a(x, x_i) = softmax_i(scale * cos(f(x), f(x_i)))                  (section 2.1.1)

    Adapting gives the head the features and classes of the support set. Only the body and the scale
    are learned, so that training and test may have other numbers of ways. The paper's scale is 1;
    here it starts at 10. The model must have `head: {name: attention}`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["matching"] = "matching"

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_without(problem, generator, (SUPPORT, TARGETS), "attention")
        return Meta(model, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        """Before adaptation all classes are equally probable."""
        phi = inner_loop.start(meta, task)
        features, classes = labelled(problem).embed(phi, task, context)  # [T, S, F], [T, S, ways]
        uniform = torch.full_like(classes, 1 / classes.shape[-1])
        yield phi | {SUPPORT: features, TARGETS: uniform}
        yield phi | {SUPPORT: features, TARGETS: classes}

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return inner_loop.mean_gradient(self.adapt, problem, meta, tasks, context)
