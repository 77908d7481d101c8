"""The multilayer perceptron of the sinusoid experiments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import nn

from metatrain.bounds import bounded, check_bounds
from metatrain.core import InputError
from metatrain.models import heads
from metatrain.models.layers import Layers, LinearLayer

MOST_NUMBERS = 10**8  # which are 400 MB, several times in an inner loop


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Linear layers with ReLU between them, and a head."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = bounded((40, 40), least=1, most=8192)
    """Widths of the hidden layers."""
    head: heads.Head = heads.LINEAR
    """What turns the last hidden layer into outputs."""
    init_std: float | None = bounded(None, least=1e-6, most=1000)
    """Deviation of weights from N(0, init_std^2) cut at two of it, biases 0; null: PyTorch's."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)
        numbers = sum(narrow * wide for narrow, wide in pairwise(self.hidden))
        if len(self.hidden) > 32 or numbers > MOST_NUMBERS:
            raise InputError(
                "hidden",
                got=list(self.hidden),
                expected=f"at most 32 layers and {MOST_NUMBERS:,} numbers between them",
            )

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, *inputs] -> [N, outputs]."""
        widths = [math.prod(inputs), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten(-len(inputs))] if len(inputs) > 1 else []
        for narrow, wide in pairwise(widths):
            layers += [self._linear(narrow, wide), nn.ReLU()]
        # A linear head is drawn in any case, so that bodies are alike whatever their head.
        linear = self._linear(widths[-1], outputs)
        return heads.Net(Layers(*layers), self.head.module(linear, feedback, widths[-1:]))

    def _linear(self, narrow: int, wide: int) -> LinearLayer:
        linear = LinearLayer(narrow, wide)
        if self.init_std is not None:
            std = self.init_std
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)
        return linear
