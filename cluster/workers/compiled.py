"""Updates fused by torch's compiler: fewer kernels, and sums in another order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from metatrain.core import Context, Meta, Update

log = logging.getLogger(__name__)

Of = Callable[[Meta, Any, Context], Update]  # an update, of parameters that are given to it


def fused(update: Of, meta: Meta, tasks: Any, context: Context) -> Callable[[Any, Context], Update]:
    """An update of tasks shaped like these, on parameters that stay where they are.

    It must draw no random numbers and read nothing of its ticket.
    """
    started = time.monotonic()
    graph, named = traced(update, meta, tasks, context)
    params = [*meta.flat().values()]
    compute: Any = torch._inductor.compile(graph, [*params, *tasks])
    compute(*params, *tasks)  # kernels are built when they are first used
    log.info("updates were compiled in %.0f s", time.monotonic() - started)
    return lambda given, _: named(compute(*params, *given))


def traced(
    update: Of, meta: Meta, tasks: Any, context: Context
) -> tuple[GraphModule, Callable[[list[Tensor]], Update]]:
    """The operations of an update, and what makes an Update of their results.

    They take the parameters, then the tasks. Derivatives are operations as well: the compiler
    itself would take none of second order.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # a second

    names, kind = [*meta.flat()], type(tasks)
    like: list[Update] = []

    def results(*given: Tensor) -> list[Tensor]:
        params = dict(zip(names, given[: len(names)], strict=True))
        found = update(Meta.unflat(params), kind(*given[len(names) :]), context)
        like[:] = [found]
        metrics = [value for value in found.metrics.values() if isinstance(value, Tensor)]
        return [*found.direction.flat().values(), *metrics]

    graph = make_fx(results)(*meta.flat().values(), *tasks)
    # What an update holds besides tensors; those of the tracer are not kept.
    (first,) = like
    directions, count = [*first.direction.flat()], first.tasks
    metrics = {n: None if isinstance(v, Tensor) else v for n, v in first.metrics.items()}

    def named(found: list[Tensor]) -> Update:
        values = iter(found)
        direction = Meta.unflat({name: next(values) for name in directions})
        numbers = {n: next(values) if v is None else v for n, v in metrics.items()}
        return Update(direction, count, numbers)

    return graph, named
