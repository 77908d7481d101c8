"""What meta-learning algorithms share: gradient descent on support sets, and the meta-gradient
through adaptation.

Both work on a ticket's tasks at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.core import Context, InputError, Meta, Params, Problem, Update, chunks, count, take

Order = Literal[0, 1, 2]
Rates = Mapping[
    str, float | Tensor
]  # name of what adapts -> its inner rate, a number or of the parameter's shape
MOMENTUM = 0.1  # of running statistics: PyTorch's


def expand(params: Params, tasks: int) -> Params:
    """Give each task the shared parameters: [*shape] -> [T, *shape], without a copy."""
    return {name: p[None].expand(tasks, *p.shape) for name, p in params.items()}


def start(meta: Meta, task: Any) -> Params:
    """The tasks' parameters before adaptation, [T, *shape] each: the initialisation, and all that
    is not descended.
    """
    return expand(meta.model | meta.state | meta.frozen, count(task))


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that match a pattern; InputError where a pattern matches none."""
    if not patterns:
        raise InputError(
            "adapts is empty, so that nothing would", remedy='give patterns such as "head.*"'
        )
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"adapts has a pattern {pattern!r} that matches no parameter",
                remedy=(f"choose among {', '.join(names)}"),
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def descend(
    problem: Problem,
    phi: Params,
    task: Any,
    context: Context,
    *,
    rates: Sequence[Rates],
    order: Order,
    recompute: bool = False,
) -> Iterator[Params]:
    """phi_{k+1} = phi_k - rates_k * grad L_support(phi_k).  Yields phi_0, phi_1, ..., [T, *shape]
    each.

    There is a step for each of `rates`; what it does not name stays as it is. `order` says which
    derivatives of phi_k with respect to phi_0 can be taken: all of them (2), with the gradient held
    constant (1, first-order MAML), or none (0: every step forgets the one before). With `recompute`
    a step keeps its parameters and not its graph, which the backward pass computes again.
    """
    yield phi
    for rate in rates:
        if order == 0:
            phi = {name: p.detach().requires_grad_(name in rate) for name, p in phi.items()}
        take_step = partial(_step, problem, task, context, create_graph=order == 2)
        phi = phi | (
            _recomputed(take_step, phi, rate, context)
            if recompute and order == 2
            else take_step(phi, rate)
        )
        yield {name: p.detach() for name, p in phi.items()} if order == 0 else phi


def _step(
    problem: Problem, task: Any, context: Context, phi: Params, rate: Rates, *, create_graph: bool
) -> Params:
    """What of phi adapts, one step on."""
    with torch.enable_grad():
        loss = problem.support_loss(
            phi, task, context
        ).sum()  # a sum, since no task's loss knows another's phi
        leaves = [phi[name] for name in rate]
        gradient = torch.autograd.grad(
            loss, leaves, create_graph=create_graph, materialize_grads=True
        )
    return {
        name: _less(p, rate[name], g) for name, p, g in zip(rate, leaves, gradient, strict=True)
    }


def _less(p: Tensor, rate: float | Tensor, g: Tensor) -> Tensor:
    """p - rate * g as one operation, which halves those of the derivative, too."""
    return (
        torch.addcmul(p, rate, g, value=-1)
        if isinstance(rate, Tensor)
        else torch.sub(p, g, alpha=rate)
    )


def _recomputed(
    take_step: Callable[..., Params], phi: Params, rate: Rates, context: Context
) -> Params:
    """The step, of which nothing is kept but what it started from; random numbers are drawn again
    as they were.
    """
    learned = {name: lr for name, lr in rate.items() if isinstance(lr, Tensor)}

    def step(create_graph: bool, *tensors: Tensor) -> list[Tensor]:
        start, rates = (
            dict(zip(phi, tensors, strict=False)),
            dict(zip(learned, tensors[len(phi) :], strict=True)),
        )
        stepped = take_step(start, {**rate, **rates}, create_graph=create_graph)
        return [stepped[name] for name in rate]

    stepped = _Recomputed.apply(step, context.generator, *phi.values(), *learned.values())
    return dict(zip(rate, stepped, strict=True))


class _Recomputed(torch.autograd.Function):
    """Checkpointing (Chen et al. 2016, arXiv 1604.06174) of a function that takes derivatives
    itself.
    """

    @staticmethod
    def forward(
        ctx: Any, step: Callable[..., list[Tensor]], generator: torch.Generator, *tensors: Tensor
    ) -> Any:
        ctx.step, ctx.generator, ctx.drawn = step, generator, generator.get_state()
        ctx.save_for_backward(*tensors)
        found = step(False, *(t.detach().requires_grad_() for t in tensors))
        return tuple(p.detach() for p in found)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        leaves = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        drawn = ctx.generator.get_state()
        ctx.generator.set_state(ctx.drawn)
        with torch.enable_grad():
            found = ctx.step(True, *leaves)
        ctx.generator.set_state(drawn)
        wanted = [
            leaf for leaf, needed in zip(leaves, ctx.needs_input_grad[2:], strict=True) if needed
        ]
        gradients = iter(torch.autograd.grad(found, wanted, cotangents, allow_unused=True))
        return (
            None,
            None,
            *(next(gradients) if needed else None for needed in ctx.needs_input_grad[2:]),
        )


def mean_gradient(
    adapt: Callable[[Problem, Meta, Any, Context], Iterator[Params]],
    problem: Problem,
    meta: Meta,
    tasks: Any,
    context: Context,
    *,
    every_step: bool = False,
) -> Update:
    """The gradient, with respect to `meta`, of the mean over the tasks of the query loss after
    `adapt`.

    With `every_step` it is the mean of the losses at all the steps that `adapt` yields. Each chunk
    of tasks has a backward pass, accumulated in place, so that memory does not grow with the
    ticket. The metrics before adaptation are those of the first task only: to compute all of them
    would take a fifth of the time.
    """
    leaves = Meta(
        {name: p.detach().requires_grad_() for name, p in meta.model.items()},
        {name: p.detach().requires_grad_() for name, p in meta.algorithm.items()},
        meta.state,
        meta.frozen,
    )
    total = count(tasks)
    before, after = [], []
    for chunk in chunks(problem, tasks):
        steps = adapt(problem, leaves, chunk, context)
        if every_step:
            found = [problem.query(phi, chunk, context) for phi in steps]
            before += found[:-1][:1]  # none where adapting is no step at all
        else:
            unadapted = next(
                steps
            )  # with a graph: what an algorithm computes before its first step stays in it
            if not before:
                before = [of_first(problem, unadapted, chunk, context)]
            (adapted,) = deque(steps, maxlen=1)
            found = [problem.query(adapted, chunk, context)]
        (torch.stack([f["loss"] for f in found]).mean(0).sum() / total).backward()
        after.append({name: value.detach() for name, value in found[-1].items()})
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
        seen = problem.statistics(meta.model | meta.frozen, tasks)
    return {name: torch.lerp(p, seen[name], MOMENTUM) for name, p in meta.state.items()}


@torch.no_grad()
def of_first(problem: Problem, phi: Params, task: Any, context: Context) -> dict[str, Tensor]:
    """The metrics of the first task."""
    return problem.query({name: p[:1] for name, p in phi.items()}, take(task, 0), context)


def means(found: Sequence[dict[str, Tensor]], when: str) -> dict[str, Tensor]:
    """Mean over the tasks of each metric, as "loss_before" and the like."""
    names = found[0] if found else ()
    return {f"{name}_{when}": torch.cat([f[name].detach() for f in found]).mean() for name in names}


def minibatches(
    size: int, batch: int, steps: int, tasks: int, generator: torch.Generator
) -> Tensor:
    """[steps, T, batch] indices below `size`: for each task shuffles of all, one after another, cut
    into batches.
    """
    shuffles = -(-steps * batch // size)
    order = torch.rand(tasks, shuffles, size, generator=generator).argsort(-1)
    return order.flatten(1)[:, : steps * batch].unflatten(1, (steps, batch)).transpose(0, 1)


def _gradients(leaves: Params) -> Params:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}
