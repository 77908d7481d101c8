"""Networks as functions of the parameters of many tasks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metatrain.core import ComputePath, InputError, Params


def call(module: nn.Module, path: ComputePath, params: Params, *inputs: Tensor) -> Any:
    """Compute a module for T tasks: parameters [T, *shape] and inputs [T, ...] to outputs [T, ...].

    A module whose `takes_tasks` is true has a forward pass that does this by itself.
    """
    own = own_values(module, inputs[0].device)

    def one(params: Params, *inputs: Tensor) -> Any:
        return functional_call(module, {**own, **params}, inputs, tie_weights=_shares(module))

    if path == "batched" and getattr(module, "takes_tasks", False):
        return one(params, *inputs)
    if path == "batched":
        # Only the forward pass is vmapped. Differentiating inside vmap is silently wrong in second
        # order for batch norm; autograd outside it is exact.
        return vmap(one)(params, *inputs)
    tasks = range(len(inputs[0]))
    if len(tasks) == 1:  # views, also in the backward
        found = one(
            {name: p.squeeze(0) for name, p in params.items()}, *(x.squeeze(0) for x in inputs)
        )
        return tuple(part[None] for part in found) if isinstance(found, tuple) else found[None]
    rows = {
        name: p.unbind(0) for name, p in params.items()
    }  # indexing instead would cost T^2 in the backward
    each = [
        one({name: row[t] for name, row in rows.items()}, *(x[t] for x in inputs)) for t in tasks
    ]
    return (
        tuple(map(torch.stack, zip(*each, strict=True)))
        if isinstance(each[0], tuple)
        else torch.stack(each)
    )


def own_values(module: nn.Module, device: torch.device) -> Params:
    """The values that a module has itself, on a device; none on a CPU, where it has them."""
    return {} if device.type == "cpu" else _own_values(module, device)


@lru_cache(maxsize=64)
def _own_values(module: nn.Module, device: torch.device) -> Params:
    held = (*module.named_buffers(), *module.named_parameters(remove_duplicate=False))
    return {name: value.detach().to(device) for name, value in held}


@lru_cache(maxsize=64)
def _shares(module: nn.Module) -> bool:
    """Tell whether a parameter has two names; functional_call would look that up on each call."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return len(names) > len(list(module.parameters()))


def part(params: Params, prefix: str) -> Params:
    """The parameters of a submodule, named as it names them."""
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


@contextmanager
def trying(what: str, how: str, correct: str) -> Iterator[None]:
    """Say in a sentence whatever the user's classes raise, `sys.exit` included."""
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except BaseException as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{what} fails {how} ({type(error).__name__}: {reason})", remedy=f"correct {correct}"
        ) from error
