"""Shared parts of algorithms: descent on support sets, and the meta-gradient through adaptation.

Both work on a ticket's tasks at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.algorithms.inner_optimizers import Optimizer, Rates, State, sgd
from metatrain.algorithms.recompute import recomputed
from metatrain.core import (
    OWN,
    Context,
    InputError,
    Labelled,
    Meta,
    Params,
    Penalty,
    Problem,
    Update,
    chunks,
    count,
    labelled,
    take,
)
from metatrain.models.heads import FAST, PRIOR, SCORES, SUPPORT

Order = Literal[0, 1, 2]
SGD = sgd()
MOMENTUM = 0.1  # of running statistics: PyTorch's


def expand(params: Params, tasks: int) -> Params:
    """Give each task the shared parameters: [*shape] -> [T, *shape], without a copy."""
    return {name: p[None].expand(tasks, *p.shape) for name, p in params.items()}


def start(meta: Meta, task: Any) -> Params:
    """The tasks' parameters before adaptation, [T, *shape] each, and all fixed values."""
    held = {name: p for name, p in meta.state.items() if not name.startswith(OWN)}
    return expand(meta.model | held | meta.frozen, count(task))


def init_whole(problem: Problem, generator: torch.Generator) -> Params:
    """Fresh parameters of a network; InputError if its head needs a support set."""
    model = problem.init(generator)
    if SUPPORT in model:
        pairs = any(name.startswith(SCORES) for name in model)
        fits = "meta_networks" if FAST in model else "relation" if pairs else "matching"
        fits = "in_context" if PRIOR in model else fits
        raise InputError(
            "this algorithm gives the network's head no support set to compare with",
            remedy=f"set model.head.name to linear, or algorithm.name to {fits}",
        )
    return model


def fresh(problem: Problem, meta: Meta, seeds: Iterable[int]) -> Params:
    """Parameters of a network of its own for each seed, [T, *shape] each."""
    drawn = [problem.init(torch.Generator().manual_seed(seed)) for seed in seeds]
    like = next(iter(meta.flat().values()))
    return {name: torch.stack([each[name] for each in drawn]).to(like) for name in drawn[0]}


def init_without(
    problem: Problem,
    generator: torch.Generator,
    names: Sequence[str],
    heads: str,
    *,
    each_class: bool = False,
) -> Params:
    """Fresh parameters but for those of a head that an algorithm computes for each task's classes.

    heads: those that have them, such as "linear".
    each_class: whether a support set must have each class.

    Raises InputError if the tasks have no classes, or the network has no such parameters.
    """
    if not (isinstance(problem, Labelled) and problem.classes):
        raise InputError(
            "this algorithm tells classes apart, and these tasks have none",
            remedy="choose another algorithm",
        )
    if each_class and getattr(problem, "lacks_classes", False):
        raise InputError(
            "this algorithm needs support examples of each class, and these tasks may lack some",
            remedy="choose another algorithm, such as in_context, ridge or maml",
        )
    model = problem.init(generator)
    for name in names:
        if name not in model:
            raise InputError(
                f"this algorithm computes {name}, and the network has none",
                remedy=f"choose one that has, such as with model.head.name {heads}",
            )
    if SUPPORT in model and SUPPORT not in names:
        raise InputError(
            "this algorithm gives the network's head no support set to compare with",
            remedy=f"set model.head.name to {heads}",
        )
    return {name: p for name, p in model.items() if name not in names}


def adapting(names: Sequence[str], patterns: Sequence[str], key: str = "adapts") -> list[str]:
    """The names that match a pattern; InputError if a pattern of this key matches none."""
    if not patterns:
        raise InputError(
            f"{key} is empty, so no parameter would adapt", remedy='give patterns such as "head.*"'
        )
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"a pattern of {key}",
                got=pattern,
                expected=f"one that matches a parameter: {', '.join(names)}",
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def descend(
    loss: Callable[[Params], Tensor],
    phi: Params,
    *,
    rates: Sequence[Rates],
    order: Order,
    generator: torch.Generator,
    optimizer: Optimizer = SGD,
    penalty: Penalty | None = None,
    recompute: bool = False,
) -> Iterator[Params]:
    """phi_{k+1} = phi_k - rates_k * grad loss(phi_k).  Yields phi_0, phi_1, ..., [T, *shape] each.

    loss: [T] of the tasks' parameters; no task's loss knows the parameters of another.
    rates: for each step those of the parameters that adapt in it, the same ones in all steps.
    order: which derivatives of phi_k with respect to phi_0 can be taken: all of them (2), those
        with the gradient held constant (1, first-order MAML), or none (0: every step forgets the
        one before).
    generator: draws the random numbers of the loss, if it has any.
    optimizer: decides the step from the gradient.
    penalty: on what adapts, which the loss gets besides.
    recompute: of order 2; keep a step's parameters and not its graph, which the backward pass
        computes again.
    """
    yield phi
    state = optimizer.init({name: phi[name].detach() for name in rates[0]})
    for rate in rates:
        if order == 0:
            phi = {name: p.detach().requires_grad_(name in rate) for name, p in phi.items()}
        take_step = partial(_step, loss, optimizer, penalty, create_graph=order == 2)
        if recompute and order == 2:
            stepped, state = recomputed(take_step, phi, state, rate, generator)
        else:
            stepped, state = take_step(phi, state, rate)
        phi = phi | stepped
        yield {name: p.detach() for name, p in phi.items()} if order == 0 else phi


def _step(
    loss: Callable[[Params], Tensor],
    optimizer: Optimizer,
    penalty: Penalty | None,
    phi: Params,
    state: State,
    rate: Rates,
    *,
    create_graph: bool,
) -> tuple[Params, State]:
    """What of phi adapts, and the optimizer's state, one step later."""
    adapting = {name: phi[name] for name in rate}
    with torch.enable_grad():
        gradients = torch.autograd.grad(
            loss(phi).sum(),
            list(adapting.values()),
            create_graph=create_graph,
            materialize_grads=True,
        )
        if penalty is not None:
            of = adapting.values() if create_graph else [p.detach() for p in adapting.values()]
            pairs = zip(gradients, of, strict=True)
            gradients = tuple(g + penalty.gradient(p) for g, p in pairs)
    return optimizer.update(dict(zip(rate, gradients, strict=True)), state, adapting, rate)


def mean_gradient(
    adapt: Callable[[Problem, Meta, Any, Context], Iterator[Params]],
    problem: Problem,
    meta: Meta,
    tasks: Any,
    context: Context,
    *,
    weights: Iterable[float] | None = None,
    with_support: bool = False,
) -> Update:
    """The gradient, with respect to `meta`, of the mean query loss of the tasks after `adapt`.

    Each chunk of tasks has a backward pass, accumulated in place, so that memory does not grow with
    the ticket.

    weights: of the losses at the steps that `adapt` yields, the first before adaptation; the loss
        is their weighted mean. Without them only the last step counts. The metrics before
        adaptation are then those of the first task: to compute all takes a fifth of the time.
    with_support: add the loss of the support set after adaptation; without weights.
    """
    leaves = Meta(
        {name: p.detach().requires_grad_() for name, p in meta.model.items()},
        {name: p.detach().requires_grad_() for name, p in meta.algorithm.items()},
        meta.state,
        meta.frozen,
    )
    total = count(tasks)
    before: list[dict[str, Tensor]] = []
    after: list[dict[str, Tensor]] = []
    for chunk in chunks(problem, tasks):
        steps = adapt(problem, leaves, chunk, context)
        if weights is None:
            unadapted = next(steps)  # with the graph of what comes before the first step
            if not before:
                before = [first_task_metrics(problem, unadapted, chunk, context)]
            (adapted,) = deque(steps, maxlen=1)
            found = problem.query(adapted, chunk, context)
            loss = found["loss"]
            if with_support:
                loss = loss + problem.support_loss(adapted, chunk, context)
        else:
            pairs = zip(steps, weights, strict=False)
            each = [(_query(problem, phi, chunk, context, weight), weight) for phi, weight in pairs]
            before += [metrics for metrics, _ in each[:-1][:1]]  # empty if adaptation has no step
            found = each[-1][0]
            weighted = torch.stack([weight * metrics["loss"] for metrics, weight in each])
            loss = weighted.sum(0) / sum(weight for _, weight in each)
        (loss.sum() / total).backward()
        after.append({name: value.detach() for name, value in found.items()})
    return Update(
        Meta(_gradients(leaves.model), _gradients(leaves.algorithm), tracked(problem, meta, tasks)),
        total,
        means(before, "before") | means(after, "after"),
    )


def tracked(problem: Problem, meta: Meta, tasks: Any) -> Params:
    """Running statistics, moved towards those of the tasks; the algorithm's own as they were."""
    if all(name.startswith(OWN) for name in meta.state):
        return dict(meta.state)
    with torch.no_grad():
        seen = problem.statistics(expand(meta.model | meta.frozen, count(tasks)), tasks)
    return {
        name: torch.lerp(p, seen[name], MOMENTUM) if name in seen else p
        for name, p in meta.state.items()
    }


def _query(
    problem: Problem, phi: Params, task: Any, context: Context, weight: float
) -> dict[str, Tensor]:
    """The metrics, with a graph if they have a weight."""
    with torch.set_grad_enabled(weight > 0):
        return problem.query(phi, task, context)


@torch.no_grad()
def first_task_metrics(
    problem: Problem, phi: Params, task: Any, context: Context
) -> dict[str, Tensor]:
    """The metrics of the first task."""
    return problem.query({name: p[:1] for name, p in phi.items()}, take(task, 0), context)


def means(found: Sequence[dict[str, Tensor]], when: str) -> dict[str, Tensor]:
    """Mean over the tasks of each metric, as "loss_before" and the like."""
    names = found[0] if found else ()
    return {f"{name}_{when}": torch.cat([f[name].detach() for f in found]).mean() for name in names}


def batches(
    problem: Problem, task: Any, context: Context, size: int | None, steps: int
) -> Iterator[Tensor | None]:
    """Of each step the support examples that it takes: [T, size] indices, or None for all."""
    if size is None:
        yield from [None] * steps
        return
    examples = labelled(problem).support_size(task)
    drawn = minibatches(examples, size, steps, count(task), context.generator)
    yield from drawn.to(task[0].device)


def minibatches(
    size: int, batch: int, steps: int, tasks: int, generator: torch.Generator
) -> Tensor:
    """[steps, T, batch] indices below `size`: of each task shuffles in a row, cut into batches."""
    shuffles = -(-steps * batch // size)
    order = torch.rand(tasks, shuffles, size, generator=generator).argsort(-1)
    return order.flatten(1)[:, : steps * batch].unflatten(1, (steps, batch)).transpose(0, 1)


def _gradients(leaves: Params) -> Params:
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}
