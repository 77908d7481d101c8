"""The inner loop: gradient descent on support sets, for a ticket's tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.core import Context, Meta, Params, Problem, Update, count, take

Order = Literal[0, 1, 2]


def expand(params: Params, tasks: int) -> Params:
    """Give each task the shared parameters: [*shape] -> [T, *shape], without a copy."""
    return {name: p.expand(tasks, *p.shape) for name, p in params.items()}


def descend(
    problem: Problem,
    params: Params,
    task: Any,
    context: Context,
    *,
    lr: float,
    steps: int,
    frozen: Sequence[str] = (),
    order: Order,
) -> Iterator[Params]:
    """phi_0 = theta;  phi_{k+1} = phi_k - lr * grad L_support(phi_k).  Yields phi_0, phi_1, ..., [T, *shape] each.

    `order` says which derivatives of phi_k with respect to theta can be taken: all of them (2), with the gradient held
    constant (1, first-order MAML), or none (0: every step forgets the one before). Parameters whose names match a
    pattern of `frozen` stay as they are.
    """
    phi = expand(params, count(task))
    adapting = [name for name in phi if not any(fnmatchcase(name, pattern) for pattern in frozen)]
    yield phi
    for _ in range(steps):
        if order == 0:
            phi = {name: p.detach().requires_grad_(name in adapting) for name, p in phi.items()}
        with torch.enable_grad():
            loss = problem.support_loss(phi, task, context).sum()  # a sum, since no task's loss knows another's phi
            gradient = torch.autograd.grad(loss, [phi[name] for name in adapting], create_graph=order == 2)
        stepped = {name: phi[name] - lr * g for name, g in zip(adapting, gradient, strict=True)}
        phi = phi | stepped
        yield {name: p.detach() for name, p in phi.items()} if order == 0 else phi


Objective = Callable[[Meta, Any], dict[str, Tensor]]


def mean_gradient(problem: Problem, objective: Objective, meta: Meta, tasks: Any, context: Context) -> Update:
    """The gradient, with respect to `meta`, of the mean over the tasks of `objective(meta, tasks)["loss"]`.

    This is the one place that decides how a ticket's tasks share the computation: all in one batched graph, or one
    after the other with a backward pass each, accumulated in place, so that memory does not grow with the tasks.
    """
    leaves = Meta(
        {name: p.detach().requires_grad_() for name, p in meta.model.items()},
        {name: p.detach().requires_grad_() for name, p in meta.algorithm.items()},
        meta.state,
    )
    total = count(tasks)
    chunks = [tasks] if problem.path == "batched" else [take(tasks, i) for i in range(total)]
    before, after = [], []
    for chunk in chunks:
        with torch.no_grad():
            before.append(problem.query(expand(meta.model, count(chunk)), chunk, context))
        found = objective(leaves, chunk)
        (found["loss"].sum() / total).backward()
        after.append(found)
    return Update(
        Meta(_gradients(leaves.model), _gradients(leaves.algorithm), meta.state),
        total,
        means(before, "before") | means(after, "after"),
    )


def means(found: Sequence[dict[str, Tensor]], when: str) -> dict[str, float]:
    """Mean over all tasks of each metric, as "loss_before" and the like."""
    return {f"{name}_{when}": float(torch.cat([f[name].detach() for f in found]).mean()) for name in found[0]}


def minibatches(size: int, batch: int, steps: int, tasks: int, generator: torch.Generator) -> Tensor:
    """[steps, T, batch] indices below `size`: for each task shuffles of all, one after another, cut into batches."""
    shuffles = -(-steps * batch // size)
    order = torch.rand(tasks, shuffles, size, generator=generator).argsort(-1)
    return order.flatten(1)[:, : steps * batch].unflatten(1, (steps, batch)).transpose(0, 1)


def _gradients(leaves: Params) -> Params:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}
