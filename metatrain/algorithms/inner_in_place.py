"""Descent by torch.optim, in place and fast: nothing can be differentiated through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.inner_optimizers import Name
from metatrain.core import Params, Penalty


class Moments(NamedTuple):
    """What Adam starts from, or has come to."""

    steps: Tensor  # [] how many gradients it has seen
    second: Params  # the mean of their squares


def descend(
    loss: Callable[[Params, Tensor | None], Tensor],
    start: Params,
    *,
    names: Sequence[str],
    batches: Iterable[Tensor | None],
    optimizer: Name,
    lr: float,
    penalty: Penalty | None = None,
    moments: Moments | None = None,
) -> Iterator[tuple[Params, Params]]:
    """Yield the tasks' parameters before and after each step, and Adam's second moments.

    They are the same tensors each time: the next step changes them.

    loss: [T] of the tasks' parameters and a batch.
    names: of what adapts.
    batches: of each step.
    moments: of Adam, shared by the tasks; without them it starts fresh, and yields none.
    """
    phi = {name: p.detach().clone() for name, p in start.items()}
    # Optimizers work element by element: one on all tasks' parameters is one for each.
    params = {name: phi[name].requires_grad_() for name in names}
    stepping = _optimizer(optimizer, list(params.values()), lr)
    second: Params = {}
    if moments is not None:
        for name, p in params.items():
            second[name] = torch.empty_like(p).copy_(moments.second[name])
            stepping.state[p] = {
                "step": moments.steps.float().clone(),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": second[name],
            }
    found = {name: p.detach() for name, p in phi.items()}
    yield found, second
    for batch in batches:
        stepping.zero_grad()
        with torch.enable_grad():
            loss(phi, batch).sum().backward()
        if penalty is not None:
            for p in params.values():
                p.grad = penalty.gradient(p.detach()) + (0.0 if p.grad is None else p.grad)
        stepping.step()
        yield found, second


def _optimizer(name: Name, params: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """Reptile's Adam has beta1 = 0; fused, it is one pass over the parameters."""
    capturable = params[0].is_cuda  # a CUDA graph may be made of it
    if name == "adam":
        return torch.optim.Adam(params, lr, (0.0, 0.999), fused=True, capturable=capturable)
    if name == "rmsprop":
        return torch.optim.RMSprop(params, lr, capturable=capturable)
    return torch.optim.SGD(params, lr, momentum=0.9 if name == "momentum" else 0.0)
