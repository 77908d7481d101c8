"""Learning by reading into a memory (Hochreiter et al. 2001; Santoro et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.algorithms.proximal import Proximal
from metatrain.core import (
    TRAINING_ONLY,
    Context,
    InputError,
    Labelled,
    Meta,
    Params,
    Problem,
    Update,
    recordable,
)
from metatrain.models.heads import HIDDEN


@dataclass(frozen=True, kw_only=True)
class Recurrent:
    """Adapt by reading: see each support example with the target of the one before it.

        h_t = cell(h_{t-1}, (f(x_t), y_{t-1})),   prediction_t = g(h_t)

    (Santoro et al. 2016, arXiv 1605.06065.) No weight changes in adaptation. The network learns to
    predict the query examples, each on its own, after any number of support examples: the loss is
    the mean over t = 0, ..., S. With losses="last" it is that after all of them, as SNAIL has it
    (Mishra et al. 2018, arXiv 1707.03141). The model must have a head that reads: `memory`, `mann`
    or `snail`.

    In a reinforcement problem this is RL2 (Duan et al. 2016, arXiv 1611.02779): an episode is a
    whole trial, in which the memory gets each action and its reward, and the policy gradient goes
    through all of it.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["recurrent"] = "recurrent"
    losses: Literal["all", "last"] = field(default="all", metadata=TRAINING_ONLY)
    """Learn from `all` predictions along the support set, or from the `last` one only."""
    proximal: Proximal | None = field(default=None, metadata=TRAINING_ONLY)
    """In a reinforcement problem PPO as the outer step, such as `{epochs: 4}`; `null`: one step."""

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        if self.proximal is not None:
            recordable(problem)
        model = problem.init(generator)
        if HIDDEN not in model:
            raise InputError(
                "recurrent needs a network with a memory",
                remedy="set model.head.name to memory, mann or snail",
            )
        return Meta(model, {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        phi = inner_loop.start(meta, task)
        # A policy's memory is a part of its episodes.
        return problem.read(phi, task, context) if isinstance(problem, Labelled) else iter([phi])

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        last = self.losses == "last" and isinstance(problem, Labelled)  # else there is but one
        weights = None if last else repeat(1.0)
        gradient = (self.proximal or inner_loop).mean_gradient
        return gradient(self.adapt, problem, meta, tasks, context, weights=weights)
