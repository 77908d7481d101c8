"""In-context learning: a network that reads the support set (Müller et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import Context, InputError, Meta, Params, Problem, Update, labelled
from metatrain.models.heads import PRIOR, SUPPORT, TARGETS


@dataclass(frozen=True, kw_only=True)
class InContext:
    """Predict from the support set D in one forward pass, with weights that all tasks share.

        loss = -E_D log q(y | x, D)                                       (arXiv 2112.10510, eq. 2)

    The expectation is over tasks that a prior draws, and q is what the network says. So the best q
    is the posterior predictive distribution p(y | x, D) of that prior (the paper's corollary 1.1),
    and with a squared error it is the posterior mean. No weight changes in adaptation.

    Before adaptation the network has read nothing. It knows the prior then if tasks of no support
    example are among those that it learns from. The model must have `head: {name: transformer}`, or
    `cells`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["in_context"] = "in_context"

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        labelled(problem)
        model = problem.init(generator)
        if PRIOR not in model:
            raise InputError(
                "in_context needs a network that reads a support set as a whole",
                remedy="set model.head.name to transformer or cells",
            )
        read = (SUPPORT, TARGETS)
        return Meta({n: p for n, p in model.items() if n not in read}, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        phi = inner_loop.start(meta, task)
        features, targets = labelled(problem).embed(phi, task, context)  # [T, S, F], [T, S, C]
        yield phi | {SUPPORT: features[:, :0], TARGETS: targets[:, :0]}
        yield phi | {SUPPORT: features, TARGETS: targets}

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return inner_loop.mean_gradient(self.adapt, problem, meta, tasks, context)
