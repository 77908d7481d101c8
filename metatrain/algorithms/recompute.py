"""Inner steps that are computed again in the backward pass, instead of kept in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metatrain.algorithms.inner_optimizers import Rates, State
from metatrain.core import Params


def recomputed(
    take_step: Callable[..., tuple[Params, State]],
    phi: Params,
    state: State,
    rate: Rates,
    generator: torch.Generator,
) -> tuple[Params, State]:
    """The step, of which only its start is kept; random numbers are drawn again as they were."""
    learned = {name: lr for name, lr in rate.items() if isinstance(lr, Tensor)}
    given = (phi, learned, *state.averages)

    def step(create_graph: bool, *tensors: Tensor) -> list[Tensor]:
        values = iter(tensors)
        start, rates, *averages = (dict(zip(part, values, strict=False)) for part in given)
        before = State(state.steps, tuple(averages))
        stepped, after = take_step(start, before, {**rate, **rates}, create_graph=create_graph)
        return [p for part in (stepped, *after.averages) for p in part.values()]

    ends = iter(_Recomputed.apply(step, generator, *(p for part in given for p in part.values())))
    stepped, *averages = ({name: next(ends) for name in rate} for _ in (phi, *state.averages))
    return stepped, State(state.steps + 1, tuple(averages))


class _Recomputed(torch.autograd.Function):
    """Checkpointing (Chen et al. 2016, arXiv 1604.06174) of a function that differentiates."""

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
