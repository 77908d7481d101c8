"""Networks as functions of the parameters of many tasks, which leave the caller's random numbers
and threads alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from metatrain.core import InputError, Params, Path
from metatrain.models.normalisation import BatchStatistics


class Network(threading.local):
    """A network for each thread that asks for it: a call puts parameters into the module for as
    long as it lasts.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        with _DrawnFrom(
            torch.Generator().manual_seed(0)
        ):  # its parameters are never used, and its buffers are alike
            self.module = build().requires_grad_(False)
        layers = self.module.named_modules()
        self.normalisations = {
            name: layer for name, layer in layers if isinstance(layer, BatchStatistics)
        }


def call(module: nn.Module, path: Path, params: Params, *inputs: Tensor) -> Any:
    """The module as a function of T tasks' parameters [T, *shape] and inputs [T, ...]: outputs [T,
    ...].

    A module whose `takes_tasks` is true has a forward pass that does this by itself.
    """

    def one(params: Params, *inputs: Tensor) -> Any:
        return functional_call(module, params, inputs, tie_weights=_shares(module))

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


@lru_cache(maxsize=64)
def _shares(module: nn.Module) -> bool:
    """Whether a parameter is there under two names, which functional_call would look up again on
    each call.
    """
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return len(names) > len(list(module.parameters()))


def part(params: Params, prefix: str) -> Params:
    """The parameters of a submodule, named as it names them."""
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


def fresh(
    build: Callable[[], nn.Module], generator: torch.Generator, *, trained: bool = True
) -> Params:
    """The parameters of a network that is built with the generator's seed: those that are trained,
    or the others.
    """
    with _DrawnFrom(torch.Generator().manual_seed(generator.initial_seed())):
        named = list(build().named_parameters())
    return {name: p.detach().clone() for name, p in named if p.requires_grad == trained}


def buffers(module: nn.Module) -> Params:
    """What a network holds besides its parameters."""
    return dict(module.named_buffers())


def same(one: Params, other: Params) -> bool:
    """Whether both have the same numbers under the same names."""
    return one.keys() == other.keys() and all(
        torch.equal(p, other[name]) for name, p in one.items()
    )


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


class _DrawnFrom(TorchDispatchMode):
    """Let what this thread draws at random on a CPU come from a generator, instead of from torch's
    global one.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = args[0].device if args and isinstance(args[0], Tensor) else kwargs.get("device")
        if (
            torch.Tag.nondeterministic_seeded in func.tags
            and torch.device(device or "cpu").type == "cpu"
        ):
            if not _takes_generator(func) and "generator" in func.overloadpacket.overloads():
                func = func.overloadpacket.generator
            if _takes_generator(func) and kwargs.get("generator") is None:
                kwargs["generator"] = self._generator
        return func(*args, **kwargs)


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)
