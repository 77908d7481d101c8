"""A vector of meta-knowledge: models of single tasks, averaged (Finn et al. 2017, appendix C)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.algorithms import inner_loop
from metatrain.algorithms.inner_optimizers import OPTIMIZERS, Name
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import OWN, TRAINING_ONLY, Context, Meta, Params, Problem, Update, count

STEPS = f"{OWN}steps"  # outer steps that the vector is the mean of; that of NAME is OWN + NAME


@dataclass(frozen=True, kw_only=True)
class MetaKnowledge:
    """Start from the main model plus the mean of models that learned a task each.

        phi_i = a network of its own after `model_steps` of Adam on L_i
        v = the mean of the phi_i of all outer steps
        theta = theta_0 + factor * v, from which a task is learned

    theta_0 is the network that training starts from; its direction is 0. v is in `Meta.state`.
    `aggregate` makes one vector of a ticket's models, and v is the mean of these by tasks.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["meta_knowledge"] = "meta_knowledge"
    inner_lr: float = bounded(above=0, most=RATE)
    """Learning rate with which a task is learned from theta."""
    inner_steps: int = bounded(1, least=1, most=10_000)
    """Steps with which a task is learned from theta."""
    factor: float = bounded(1.0, least=-RATE, most=RATE)
    """Factor of the vector."""
    aggregate: Literal["mean", "weighted", "median"] = "mean"
    """What a ticket's models become: `mean`, `weighted` by exp(-query loss), or `median`."""
    model_lr: float = bounded(0.01, above=0, most=RATE, metadata=TRAINING_ONLY)
    """Learning rate of the models of single tasks."""
    model_steps: int = bounded(500, least=1, most=10_000, metadata=TRAINING_ONLY)
    """Steps of Adam that such a model is trained for."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_whole(problem, generator)
        vector = {OWN + name: torch.zeros_like(p) for name, p in model.items()}
        return Meta(model, {}, problem.state() | vector | {STEPS: torch.zeros(())})

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        start = inner_loop.start(meta._replace(model=self._theta(meta)), task)
        rates = [dict.fromkeys(meta.model, self.inner_lr)] * self.inner_steps
        return _learn(problem, start, task, context, rates, "sgd")

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        seeds = range(seed := context.generator.initial_seed(), seed + count(tasks))
        start = inner_loop.start(meta, tasks) | inner_loop.fresh(problem, meta, seeds)
        before = [inner_loop.first_task_metrics(problem, start, tasks, context)]
        rates = [dict.fromkeys(meta.model, self.model_lr)] * self.model_steps
        (phi,) = deque(_learn(problem, start, tasks, context, rates, "adam"), maxlen=1)
        with torch.no_grad():
            after = [problem.query(phi, tasks, context)]
        state = inner_loop.tracked(problem, meta._replace(model=self._theta(meta)), tasks)
        state[STEPS] = seen = meta.state[STEPS] + 1
        for name in meta.model:
            vector = self._aggregated(phi[name], after[0]["loss"])
            state[OWN + name] = torch.lerp(meta.state[OWN + name], vector, 1 / seen)
        # 0, and not finite if the vector is not: the learner leaves such an update out.
        still = {name: 0 * state[OWN + name] for name in meta.model}
        metrics = inner_loop.means(before, "before") | inner_loop.means(after, "after")
        return Update(Meta(still, {}, state), len(seeds), metrics)

    def _theta(self, meta: Meta) -> Params:
        return {n: p + self.factor * meta.state[OWN + n] for n, p in meta.model.items()}

    def _aggregated(self, models: Tensor, losses: Tensor) -> Tensor:  # [T, *shape] -> [*shape]
        if self.aggregate == "weighted":
            return torch.tensordot(torch.softmax(-losses, 0), models, 1)
        return models.mean(0) if self.aggregate == "mean" else models.median(0).values


def _learn(
    problem: Problem, start: Params, task: Any, context: Context, rates: Any, optimizer: Name
) -> Iterator[Params]:
    return inner_loop.descend(
        lambda phi: problem.support_loss(phi, task, context),
        start,
        rates=rates,
        order=0,
        generator=context.generator,
        optimizer=OPTIMIZERS[optimizer],
    )
