"""Antithetic evolution strategies: a gradient from losses alone, without a graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import Context, Meta, Params, Problem, Update, chunks, count


@torch.no_grad()
def mean_gradient(
    adapt: Callable[[Problem, Meta, Any, Context], Iterator[Params]],
    problem: Problem,
    meta: Meta,
    tasks: Any,
    context: Context,
    *,
    deviation: float,
) -> Update:
    """The gradient of the tasks' mean query loss after `adapt`, of algorithm parameters a + noise.

        mean_t e_t (L_t(a + deviation e_t) - L_t(a - deviation e_t)) / (2 deviation),  e_t ~ N(0, I)

    Its expectation is that gradient (Metz et al. 2019, arXiv 1810.10180, section 3.1). The rest of
    meta gets none.

    adapt: takes algorithm parameters [T, *shape], each task's own.
    """
    total, generator = count(tasks), context.generator
    noise = {
        name: torch.randn(total, *p.shape, generator=generator).to(p)
        for name, p in meta.algorithm.items()
    }
    direction = {name: torch.zeros_like(p) for name, p in meta.algorithm.items()}
    before: list[Params] = []
    after: list[Params] = []
    for chunk in chunks(problem, tasks):
        own = {name: e[: count(chunk)] for name, e in noise.items()}
        noise = {name: e[count(chunk) :] for name, e in noise.items()}
        drawn, losses = generator.get_state(), []
        for step in (deviation, -deviation):
            generator.set_state(drawn)  # both sides have the same networks and random numbers
            moved = {name: p + step * own[name] for name, p in meta.algorithm.items()}
            steps = adapt(problem, meta._replace(algorithm=moved), chunk, context)
            unadapted = next(steps)
            if not before:
                before = [inner_loop.first_task_metrics(problem, unadapted, chunk, context)]
            (adapted,) = deque(steps, maxlen=1)
            after.append(problem.query(adapted, chunk, context))
            losses.append(after[-1]["loss"])
        slope = (losses[0] - losses[1]) / (2 * deviation * total)
        for name, e in own.items():
            direction[name] += torch.tensordot(slope.to(e), e, 1)
    still = {name: torch.zeros_like(p) for name, p in meta.model.items()}
    metrics = inner_loop.means(before, "before") | inner_loop.means(after, "after")
    state = inner_loop.tracked(problem, meta, tasks)
    return Update(Meta(still, direction, state), total, metrics)
