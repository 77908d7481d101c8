"""Matching networks (Vinyals et al. 2016, arXiv 1606.04080)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import Context, Meta, Params, Problem, Update, labelled
from metatrain.models.heads import SCORES, SUPPORT, TARGETS


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Classify by attention to the support examples (x_i, y_i).

        p(y | x) = sum_i a(x, x_i) y_i                                    (equation 1)
        a(x, x_i) = softmax_i(scale * cos(f(x), g(x_i)))                  (section 2.1.1)

    f and g are the network's features; with the head's `reads` above 0 they depend on the support
    set S as well: f(x, S) and g(x_i, S), the full context embeddings (section 2.1.2).

    Adapting gives the head the features and classes of the support set. Nothing that is learned
    belongs to a class, so that training and test may have other numbers of ways. The paper's scale
    is 1; here it starts at 10. The model must have `head: {name: attention}`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["matching"] = "matching"

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_without(
            problem, generator, (SUPPORT, TARGETS), "attention", each_class=True
        )
        return Meta(model, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return given_support(problem, meta, task, context)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return learn(problem, meta, tasks, context)


def learn(problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
    """The mean gradient of networks whose head compares with a support set."""
    update = inner_loop.mean_gradient(given_support, problem, meta, tasks, context)
    if not any(name.startswith(SCORES) for name in meta.state):
        return update
    # Statistics of the head are of pairs, which there are only with a support set.
    with torch.no_grad():
        *_, phi = given_support(problem, meta, tasks, context)
        seen = problem.statistics(phi, tasks)
    pairs = ((name, p, seen[name]) for name, p in meta.state.items())
    state = {name: torch.lerp(p, new, inner_loop.MOMENTUM) for name, p, new in pairs}
    return update._replace(direction=update.direction._replace(state=state))


def given_support(problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
    """Parameters whose head compares with a support set: first without, then with its classes.

    Without them all classes are equally probable.
    """
    phi = inner_loop.start(meta, task)
    features, classes = labelled(problem).embed(phi, task, context)  # [T, S, F], [T, S, ways]
    uniform = torch.full_like(classes, 1 / classes.shape[-1])
    yield phi | {SUPPORT: features, TARGETS: uniform}
    yield phi | {SUPPORT: features, TARGETS: classes}
