"""What meta-learning algorithms share: gradient descent on support sets, and the meta-gradient through adaptation.

Both work on a ticket's tasks at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.core import Context, InputError, Meta, Params, Problem, Update, count, take

Order = Literal[0, 1, 2]
Rates = Mapping[str, float | Tensor]  # name of what adapts -> its inner rate, a number or of the parameter's shape
MOMENTUM = 0.1  # of running statistics: PyTorch's


def expand(params: Params, tasks: int) -> Params:
    """Give each task the shared parameters: [*shape] -> [T, *shape], without a copy."""
    return {name: p.expand(tasks, *p.shape) for name, p in params.items()}


def start(meta: Meta, task: Any) -> Params:
    """The tasks' parameters before adaptation, [T, *shape] each: the initialisation, and what training tracked."""
    return expand(meta.model | meta.state, count(task))


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; InputError where a pattern matches none."""
    if not patterns:
        raise InputError('adapts is empty, so that nothing would: give patterns such as "head.*"')
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"adapts has a pattern {pattern!r} that matches no parameter: choose among {', '.join(names)}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def descend(
    problem: Problem, phi: Params, task: Any, context: Context, *, rates: Sequence[Rates], order: Order
) -> Iterator[Params]:
    """phi_{k+1} = phi_k - rates_k * grad L_support(phi_k).  Yields phi_0, phi_1, ..., [T, *shape] each.

    There is a step for each of `rates`; what it does not name stays as it is. `order` says which derivatives of phi_k
    with respect to phi_0 can be taken: all of them (2), with the gradient held constant (1, first-order MAML), or none
    (0: every step forgets the one before).
    """
    yield phi
    for rate in rates:
        if order == 0:
            phi = {name: p.detach().requires_grad_(name in rate) for name, p in phi.items()}
        with torch.enable_grad():
            loss = problem.support_loss(phi, task, context).sum()  # a sum, since no task's loss knows another's phi
            leaves = [phi[name] for name in rate]
            gradient = torch.autograd.grad(loss, leaves, create_graph=order == 2, materialize_grads=True)
        stepped = {name: phi[name] - rate[name] * g for name, g in zip(rate, gradient, strict=True)}
        phi = phi | stepped
        yield {name: p.detach() for name, p in phi.items()} if order == 0 else phi


def mean_gradient(
    adapt: Callable[[Problem, Meta, Any, Context], Iterator[Params]],
    problem: Problem,
    meta: Meta,
    tasks: Any,
    context: Context,
    *,
    every_step: bool = False,
) -> Update:
    """The gradient, with respect to `meta`, of the mean over the tasks of the query loss after `adapt`.

    With `every_step` it is the mean of the losses at all the steps that `adapt` yields. This is the one place that
    decides how a ticket's tasks share the computation: all in one batched graph, or one after the other with a backward
    pass each, accumulated in place, so that memory does not grow with the tasks.
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
        steps = adapt(problem, leaves, chunk, context)
        if every_step:
            found = trained = [problem.query(phi, chunk, context) for phi in steps]
        else:
            unadapted = next(steps)  # with a graph: what an algorithm computes before its first step stays in it
            with torch.no_grad():
                found = [problem.query(unadapted, chunk, context)]
            (adapted,) = deque(steps, maxlen=1)
            found += (trained := [problem.query(adapted, chunk, context)])
        (torch.stack([f["loss"] for f in trained]).mean(0).sum() / total).backward()
        before += found[:-1][:1]  # none where adapting is no step at all
        after.append(found[-1])
    return Update(
        Meta(_gradients(leaves.model), _gradients(leaves.algorithm), tracked(problem, meta, tasks)),
        total,
        means(before, "before") | means(after, "after"),
    )


def tracked(problem: Problem, meta: Meta, tasks: Any) -> Params:
    """`meta.state`, moved towards what the tasks say that it should be."""
    if not meta.state:
        return {}
    with torch.no_grad():
        seen = problem.statistics(meta.model, tasks)
    return {name: torch.lerp(p, seen[name], MOMENTUM) for name, p in meta.state.items()}


def means(found: Sequence[dict[str, Tensor]], when: str) -> dict[str, float]:
    """Mean over all tasks of each metric, as "loss_before" and the like."""
    names = found[0] if found else ()
    return {f"{name}_{when}": float(torch.cat([f[name].detach() for f in found]).mean()) for name in names}


def minibatches(size: int, batch: int, steps: int, tasks: int, generator: torch.Generator) -> Tensor:
    """[steps, T, batch] indices below `size`: for each task shuffles of all, one after another, cut into batches."""
    shuffles = -(-steps * batch // size)
    order = torch.rand(tasks, shuffles, size, generator=generator).argsort(-1)
    return order.flatten(1)[:, : steps * batch].unflatten(1, (steps, batch)).transpose(0, 1)


def _gradients(leaves: Params) -> Params:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}
