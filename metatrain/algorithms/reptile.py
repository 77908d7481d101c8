"""Reptile (Nichol, Achiam, Schulman 2018, arXiv 1803.02999)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_in_place, inner_loop, inner_optimizers
from metatrain.bounds import EXAMPLES, RATE, bounded, check_bounds
from metatrain.core import OWN, Context, InputError, Meta, Params, Penalty, Problem, Update
from metatrain.core.problems import chunks, labelled
from metatrain.core.values import count

STEPS = f"{OWN}steps"  # that the second moments have seen; that of NAME is OWN + NAME


@dataclass(frozen=True, kw_only=True)
class Reptile:
    """Move towards the adapted parameters.

        theta <- theta + eps mean_i (phi_i - theta)                       (algorithm 2)

    phi_i is theta after `inner_steps` of an optimizer. The outer step eps is the learner's rate
    under SGD; `outer.schedule: linear` anneals it to zero. The authors' Adam carries its second
    moments from task to task. With `carries_moments` they are in `Meta.state`: each task starts
    from their mean over the tasks of the last outer step, in evaluations from that of training.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["reptile"] = "reptile"
    inner_optimizer: inner_optimizers.Name = "adam"
    """What makes a step of a gradient: `adam` (beta1 = 0), `sgd`, `momentum` (0.9) or `rmsprop`."""
    carries_moments: bool = False
    """Whether tasks start from Adam's second moments of the last outer step, or from none."""
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate."""
    inner_steps: int = bounded(least=1, most=10_000)
    """Inner steps."""
    inner_batch: int | None = bounded(None, least=1, most=EXAMPLES)
    """Support examples of an inner step; `null`: all."""
    penalty: Penalty | None = None
    """Penalty on the size of what adapts, such as `{l2: 0.01}`; `null`: none."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.carries_moments and self.inner_optimizer != "adam":
            expected = "adam, whose moments can be carried"
            raise InputError("inner_optimizer", got=self.inner_optimizer, expected=expected)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        if self.inner_batch is not None:
            labelled(problem, "leave algorithm.inner_batch out")
        model, state = inner_loop.init_whole(problem, generator), problem.state()
        if self.carries_moments:
            state |= {OWN + name: torch.zeros_like(p) for name, p in model.items()}
            state[STEPS] = torch.zeros(())
        return Meta(model, {}, state)

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        for phi, _ in self._descend(problem, meta, task, context):
            yield {name: p.clone() for name, p in phi.items()}

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        total, state = count(tasks), inner_loop.tracked(problem, meta, tasks)
        direction = {name: theta.clone() for name, theta in meta.model.items()}
        if self.carries_moments:
            state |= {OWN + name: torch.zeros_like(theta) for name, theta in direction.items()}
            state[STEPS] = meta.state[STEPS] + self.inner_steps
        start, after = inner_loop.start(meta, tasks), []
        before = [inner_loop.first_task_metrics(problem, start, tasks, context)]
        for chunk in chunks(problem, tasks):
            *_, (phi, second) = self._descend(problem, meta, chunk, context)
            for name, p in direction.items():
                p.sub_(phi[name].sum(0), alpha=1 / total)
            for name, p in second.items():
                state[OWN + name].add_(p.sum(0), alpha=1 / total)
            with torch.no_grad():
                after.append(problem.query(phi, chunk, context))
        metrics = inner_loop.means(before, "before") | inner_loop.means(after, "after")
        return Update(Meta(direction, {}, state), total, metrics)

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context
    ) -> Iterator[tuple[Params, Params]]:
        second = {name: meta.state[OWN + name] for name in meta.model if self.carries_moments}
        return inner_in_place.descend(
            lambda phi, batch: problem.support_loss(phi, task, context, batch),
            inner_loop.start(meta, task),
            names=list(meta.model),
            batches=inner_loop.batches(problem, task, context, self.inner_batch, self.inner_steps),
            optimizer=self.inner_optimizer,
            lr=self.inner_lr,
            penalty=self.penalty,
            moments=inner_in_place.Moments(meta.state[STEPS], second) if second else None,
        )
