"""Random numbers of an update as its inputs: drawn on the host, and moved to a GPU.

A CUDA graph would repeat the numbers that it was recorded with. So it reads them from memory, which
is filled for each ticket as the first update drew its own: by the same functions in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


class Draw(NamedTuple):
    """A function of torch that draws, such as `torch.rand`, and what it was called with."""

    function: Callable[..., Tensor]
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def take(self, generator: torch.Generator) -> Tensor:
        """Its next numbers from a generator of the host."""
        return self.function(*self.arguments, **self.named, generator=generator)


def draw(draws: Iterable[Draw], generator: torch.Generator) -> list[Tensor]:
    """The numbers of one update."""
    return [each.take(generator) for each in draws]


class Draws(TorchFunctionMode):
    """Answers what is drawn with one generator, while it lasts.

    Draws that depend on tensors, such as `torch.bernoulli(p)`, are left as they are.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: tuple[Any, ...] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(named or {})
        mine = named.get("generator") is self._generator and not named.get("requires_grad")
        if not mine or any(isinstance(leaf, Tensor) for leaf in tree_leaves((arguments, named))):
            return function(*arguments, **named)
        del named["generator"]
        return self._answer(Draw(function, arguments, named))

    def _answer(self, asked: Draw) -> Tensor:
        raise NotImplementedError


class Noted(Draws):
    """Draws, moves the numbers to a device, and notes how they were drawn."""

    def __init__(self, generator: torch.Generator, device: torch.device) -> None:
        super().__init__(generator)
        self._device = device
        self.draws: list[Draw] = []

    def _answer(self, asked: Draw) -> Tensor:
        self.draws.append(asked)
        return asked.take(self._generator).to(self._device)


class Given(Draws):
    """Gives the numbers that lie ready, to an update that asks as it did when they were noted."""

    def __init__(
        self, generator: torch.Generator, draws: Sequence[Draw], numbers: Sequence[Tensor]
    ) -> None:
        super().__init__(generator)
        self._ready = list(zip(draws, numbers, strict=True))

    def _answer(self, asked: Draw) -> Tensor:
        expected, numbers = self._ready.pop(0) if self._ready else (None, None)
        if numbers is None or asked != expected:
            raise RuntimeError("it draws other random numbers than before")
        return numbers

    def all_taken(self) -> bool:
        return not self._ready
