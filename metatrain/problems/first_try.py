"""A first try of a family's losses and a network, before they are learned from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from metatrain.core import Context, InputError, Task, Ticket, generator_for
from metatrain.problems.checks import check_losses, listed
from metatrain.problems.functional import trying
from metatrain.problems.network import buffers, same

if TYPE_CHECKING:
    from metatrain.problems.supervised import Supervised

# Two ways in which a network gives other outputs for the same examples, each with its remedy.
OTHERWISE = (
    (
        "for the same examples the second time",
        "draw nothing at random in `forward`, and change nothing there",
    ),
    (
        "if it is built a second time",
        "keep what it draws in parameters or buffers, drawn with torch",
    ),
)


def try_out(problem: Supervised, again: Supervised | None, task: Task) -> None:
    """Compute two tasks; refuse a network or a loss that cannot, or that draws at random.

    again: the same problem with a network that was built a second time, if that is to be compared.
    """
    params = problem.network.first() | problem.state()
    who = f"the network {type(problem.module).__name__}"
    if again is not None and (
        not same(params, again.network.first() | again.state())
        or not same(buffers(problem.module), buffers(again.module))
    ):
        raise InputError(
            f"{who} is built with other numbers the second time",
            remedy="draw them with torch, whose generator is seeded, and not with numpy or random",
        )
    if not problem.network.trained:
        raise InputError(
            f"{who} has no parameter that is trained",
            remedy="leave requires_grad of some as it is",
        )
    two = type(task)(*(leaf[:2] for leaf in task))
    ticket = Ticket("score", "test", 0, 0)
    context = Context(ticket, generator_for(0, ticket, "first look"))
    leaves = {name: p.expand(2, *p.shape).clone().requires_grad_() for name, p in params.items()}
    with (
        trying(who, f"on examples of shape [{listed(problem.inputs)}]", "its `forward`"),
        torch.enable_grad(),
    ):
        tried = [problem, problem, *([again] if again else [])]
        first, *others = (each.predict(leaves, two, context) for each in tried)
    for prediction, (when, remedy) in zip(others, OTHERWISE, strict=False):
        if not torch.equal(first, prediction) and bool(first.isfinite().all()):
            raise InputError(f"{who} gives other outputs {when}", remedy=remedy)
    check_losses({"loss": problem.loss, **problem.metrics}, first, two.query_y, leaves, who)
