"""Tasks of a supervised problem whose examples an attack has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from metatrain.core import Attack, Context, Norm, Params, Task

if TYPE_CHECKING:
    from metatrain.problems.supervised import Supervised


def support(
    problem: Supervised, attack: Attack, params: Params, task: Task, context: Context
) -> Task:
    """The tasks with support examples moved so that `params` fit them worse."""
    held = _held(params)

    def loss(x: Tensor) -> Tensor:
        return problem.support_loss(held, task._replace(support_x=x), context)

    return task._replace(support_x=attack.move(task.support_x, loss, context.generator))


def queries(
    problem: Supervised,
    attack: Attack,
    params: Params,
    task: Task,
    context: Context,
    norm: Norm | None,
) -> Task:
    """The tasks with query examples moved so that `params` predict them worse."""
    held = _held(params)

    def loss(x: Tensor) -> Tensor:
        there = problem.predict(held, task._replace(query_x=x), context, norm)
        return problem.loss(there, task.query_y)

    return task._replace(query_x=attack.move(task.query_x, loss, context.generator))


def _held(params: Params) -> Params:
    """The same values without a graph: only examples move."""
    return {name: p.detach() for name, p in params.items()}
