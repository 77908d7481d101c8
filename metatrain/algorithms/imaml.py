"""Implicit MAML (Rajeswaran, Finn, Kakade, Levine 2019, arXiv 1909.04630)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import grad

from metatrain.algorithms import conjugate_gradients, inner_loop
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import TRAINING_ONLY, Context, Meta, Params, Problem, Update
from metatrain.core.problems import chunks, labelled
from metatrain.core.values import count


@dataclass(frozen=True, kw_only=True)
class IMAML:
    """Descend the query loss at the minimum of the support loss near theta.

        phi_i = argmin_phi L_i(phi) + lambda/2 |phi - theta|^2            (equation 3)
        d phi_i / d theta = (I + hessian L_i(phi_i) / lambda)^-1          (lemma 1)
        theta <- theta - eta mean_i (d phi_i / d theta) grad L_i(phi_i)   (algorithms 1 and 2)

    Gradient descent finds phi_i, and conjugate gradients the product of the inverse: the gradient
    does not know the way to phi_i, and memory does not grow with `inner_steps`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["imaml"] = "imaml"
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate."""
    inner_steps: int = bounded(least=1, most=10_000)
    """Inner steps."""
    proximity: float = bounded(2.0, above=0, most=RATE)
    """Weight lambda of the distance to the initial parameters."""
    cg_steps: int = bounded(5, least=1, most=10_000, metadata=TRAINING_ONLY)
    """Steps of conjugate gradients."""
    damping: float = bounded(0.0, least=0, most=RATE, metadata=TRAINING_ONLY)
    """Added to lambda in conjugate gradients, which it steadies; the authors' code has 10."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        labelled(problem)  # a policy's loss is another one each time, and has no minimum
        return Meta(inner_loop.init_whole(problem, generator), {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        start = inner_loop.start(meta, task)

        def loss(phi: Params) -> Tensor:
            apart = [(phi[n] - start[n]).square().flatten(1).sum(1) for n in meta.model]
            near = self.proximity / 2 * torch.stack(apart).sum(0)
            return problem.support_loss(phi, task, context) + near

        return inner_loop.descend(
            loss,
            start,
            rates=[dict.fromkeys(meta.model, self.inner_lr)] * self.inner_steps,
            order=0,
            generator=context.generator,
        )

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        total, start, after = count(tasks), inner_loop.start(meta, tasks), []
        before = [inner_loop.first_task_metrics(problem, start, tasks, context)]
        mean = {name: torch.zeros_like(p) for name, p in meta.model.items()}
        for chunk in chunks(problem, tasks):
            (phi,) = deque(self.adapt(problem, meta, chunk, context), maxlen=1)
            weights = [phi[name].requires_grad_() for name in mean]
            found = problem.query(phi, chunk, context)
            slope = grad(found["loss"].sum(), weights, materialize_grads=True)
            product = self._jacobian(problem.support_loss(phi, chunk, context), weights)
            solved = conjugate_gradients.solve(product, slope, self.cg_steps)
            for p, x in zip(mean.values(), solved, strict=True):
                p.add_(x.sum(0), alpha=1 / total)
            after.append({name: value.detach() for name, value in found.items()})
        metrics = inner_loop.means(before, "before") | inner_loop.means(after, "after")
        return Update(Meta(mean, {}, inner_loop.tracked(problem, meta, tasks)), total, metrics)

    def _jacobian(
        self, loss: Tensor, weights: Sequence[Tensor]
    ) -> Callable[[Sequence[Tensor]], list[Tensor]]:
        """v -> (I + hessian / (lambda + damping)) v, of the loss with respect to the weights."""
        slope = grad(loss.sum(), weights, create_graph=True, materialize_grads=True)

        def product(v: Sequence[Tensor]) -> list[Tensor]:
            along = torch.stack([(g * part).sum() for g, part in zip(slope, v, strict=True)]).sum()
            curved = grad(along, weights, retain_graph=True, materialize_grads=True)
            stiffness = self.proximity + self.damping
            return [part + h / stiffness for part, h in zip(v, curved, strict=True)]

        return product
