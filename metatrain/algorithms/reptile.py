"""Reptile (Nichol, Achiam, Schulman 2018, arXiv 1803.02999)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.algorithms import inner_loop
from metatrain.bounds import EXAMPLES, RATE, bounded, check_bounds
from metatrain.core import Context, Meta, Params, Problem, Update, chunks, count, labelled


@dataclass(frozen=True, kw_only=True)
class Reptile:
    """Move towards the adapted parameters.

        theta <- theta + eps mean_i (phi_i - theta)                       (algorithm 2)

    phi_i is theta after `inner_steps` of an optimizer. Adam has beta1 = 0 and starts fresh for each
    task; the authors' code carries its second moments from task to task. The outer step eps is the
    learner's rate under SGD; `outer.schedule: linear` anneals it to zero.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["reptile"] = "reptile"
    inner_optimizer: Literal["sgd", "adam"] = "adam"
    """`adam` (beta1 = 0, fresh for each task) or `sgd`."""
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate."""
    inner_steps: int = bounded(least=1, most=10_000)
    """Inner steps."""
    inner_batch: int | None = bounded(None, least=1, most=EXAMPLES)
    """Support examples of an inner step; `null`: all."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        if self.inner_batch is not None:
            labelled(problem, "leave algorithm.inner_batch out")
        return Meta(inner_loop.init_whole(problem, generator), {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        phi = {k: p.detach().clone() for k, p in inner_loop.start(meta, task).items()}
        # Both optimizers work element by element: one on all tasks' parameters is one for each.
        optimizer = self._optimizer([phi[name].requires_grad_() for name in meta.model])
        yield {k: p.detach().clone() for k, p in phi.items()}
        for batch in self._batches(problem, task, context):
            optimizer.zero_grad()
            with torch.enable_grad():
                problem.support_loss(phi, task, context, batch).sum().backward()
            optimizer.step()
            yield {k: p.detach().clone() for k, p in phi.items()}

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        total = count(tasks)
        direction = {name: theta.clone() for name, theta in meta.model.items()}
        start, after = inner_loop.start(meta, tasks), []
        before = [inner_loop.first_task_metrics(problem, start, tasks, context)]
        for chunk in chunks(problem, tasks):
            *_, phi = self.adapt(problem, meta, chunk, context)
            for name, p in direction.items():
                p.sub_(phi[name].sum(0), alpha=1 / total)
            with torch.no_grad():
                after.append(problem.query(phi, chunk, context))
        metrics = inner_loop.means(before, "before") | inner_loop.means(after, "after")
        return Update(Meta(direction, {}, inner_loop.tracked(problem, meta, tasks)), total, metrics)

    def _optimizer(self, params: list[Tensor]) -> torch.optim.Optimizer:
        # torch's: nothing is differentiated here, and a fused Adam is one pass over the parameters.
        if self.inner_optimizer == "sgd":
            return torch.optim.SGD(params, lr=self.inner_lr)
        return torch.optim.Adam(
            params,
            lr=self.inner_lr,
            betas=(0.0, 0.999),
            fused=True,
            capturable=params[0].is_cuda,  # a CUDA graph may be made of it
        )

    def _batches(self, problem: Problem, task: Any, context: Context) -> list[Tensor | None]:
        if self.inner_batch is None:
            return [None] * self.inner_steps
        size, tasks = labelled(problem).support_size(task), count(task)
        drawn = inner_loop.minibatches(
            size, self.inner_batch, self.inner_steps, tasks, context.generator
        )
        return list(drawn.to(task[0].device))
