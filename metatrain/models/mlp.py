"""The multilayer perceptron of the sinusoid experiments."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """Also takes the weights and inputs of T tasks at once, [T, out, in] and [T, N, in]."""

    takes_tasks = True  # see metatrain.problems.functional.call

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(x)
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class Layers(nn.Sequential):
    """Layers that all take tasks at once, or have no weights."""

    takes_tasks = True


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Linear layers with ReLU between them.

    With `init_std` the weights are drawn from N(0, init_std^2) truncated at two standard deviations
    and the biases are zero, as in the code of Finn et al. 2017 (0.01); without it they are
    PyTorch's defaults. `weights` is where the initial weights are instead: a safetensors file, or a
    run's folder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (40, 40)
    init_std: float | None = None
    weights: str | None = None

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, *inputs] -> [N, outputs]."""
        widths = [math.prod(inputs), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten(-len(inputs))] if len(inputs) > 1 else []
        for narrow, wide in pairwise(widths):
            layers += [self._linear(narrow, wide), nn.ReLU()]
        return Layers(OrderedDict(body=Layers(*layers), head=self._linear(widths[-1], outputs)))

    def _linear(self, narrow: int, wide: int) -> Linear:
        linear = Linear(narrow, wide)
        if self.init_std is not None:
            std = self.init_std
            nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
            nn.init.zeros_(linear.bias)
        return linear
