"""The four-layer convolutional network of the few-shot papers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.bounds import bounded, check_bounds
from metatrain.core import InputError
from metatrain.models import heads
from metatrain.models.layers import LinearLayer
from metatrain.models.normalisation import BatchStatistics
from metatrain.ops.block import CHANNELS, KERNELS, Shape, block
from metatrain.ops.build import KernelsUnavailable, library


class Block(nn.Module):
    """3x3 convolution, normalisation, ReLU, and halving by max-pool or by the convolution's stride.

    Also takes the parameters and images of T tasks at once, [T, N, C, H, W].
    """

    takes_tasks = True  # see metatrain.problems.functional.call
    fused = False  # by the kernels of metatrain.ops; see `fuse`

    def __init__(self, narrow: int, wide: int, pool: str, norm: str, norm_scale: bool) -> None:
        super().__init__()
        self.pool = pool == "max"
        # Normalisation takes a bias away again: there is one only without it.
        self.conv = nn.Conv2d(
            narrow, wide, 3, 1 if self.pool else 2, padding=1, bias=norm == "none"
        )
        self.norm = BatchStatistics(wide, norm_scale) if norm == "batch" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.weight.dim() == 5:
            return self._of_tasks(x)
        if self.fused and self.norm is not None and self.norm.statistics == "batch":
            scale, shift = self.norm.affine()
            shape = Shape(stride=self.conv.stride[0], pool=2 if self.pool else 1, eps=self.norm.eps)
            return block(x, self.conv.weight, scale, shift, shape)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        x = F.relu(x)
        return F.max_pool2d(x, 2) if self.pool else x

    def _of_tasks(self, x: Tensor) -> Tensor:
        """Each task's convolution is a matrix product: all of them are one batched product."""
        tasks, images, _, height, width = x.shape
        stride = self.conv.stride[0]
        height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        x = F.pad(x, (1, 1, 1, 1))  # F.unfold would send a GPU a kernel for each image
        last = [stride * (n - 1) + 1 for n in (height, width)]
        taps = [
            x[..., i : i + last[0] : stride, j : j + last[1] : stride]
            for i in range(3)
            for j in range(3)
        ]
        patches = torch.stack(taps, 3).permute(0, 1, 4, 5, 2, 3)  # [T, N, h, w, C, 9]
        y = patches.reshape(tasks, images * height * width, -1) @ self.conv.weight.flatten(2).mT
        if self.conv.bias is not None:
            y = y + self.conv.bias[:, None]
        if self.norm is not None:
            y = self.norm.of_tasks(y, height * width)
        y = F.relu(y).view(tasks * images, height, width, -1).permute(0, 3, 1, 2)
        return (F.max_pool2d(y, 2) if self.pool else y).unflatten(0, (tasks, images))


class Blocks(nn.Sequential):
    """Blocks, whose last images become features [N, F]: flattened, or their spatial mean."""

    takes_tasks = True

    def __init__(self, blocks: list[Block], mean: bool) -> None:
        super().__init__(*blocks)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x.mean((-2, -1)) if self.mean else x.flatten(-3)


def fuse(module: nn.Module) -> None:
    """Have the kernels of metatrain.ops compute a network's blocks.

    Raises KernelsUnavailable if they cannot.
    """
    blocks = [m for m in module.modules() if isinstance(m, Block)]
    if not blocks or any(b.norm is None or b.conv.out_channels % CHANNELS for b in blocks):
        raise KernelsUnavailable(
            f"they are for conv4 with batch statistics and filters in multiples of {CHANNELS}"
        )
    for name in KERNELS:
        library(name)
    for b in blocks:
        b.fused = True


@dataclass(frozen=True, kw_only=True)
class Conv4:
    """Four blocks of 3x3 convolution, batch norm, ReLU and halving, and a head.

    Weights start Glorot-uniform.

    MAML's Omniglot net (Finn et al. 2017): pool="stride", features="mean", norm_scale=False, and
    shifts that are not adapted (MAML(adapts=("*.conv.*", "head.*"))). Reptile's (Nichol et al.
    2018): pool="stride", features="flatten", norm_scale=True. Both papers' mini-ImageNet net:
    pool="max", features="flatten", filters=32.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["conv4"] = "conv4"
    filters: int = bounded(64, least=1, most=1024)
    """Channels of each block."""
    pool: Literal["max", "stride"] = "max"
    """Halve images by `max` pooling, or by a `stride` of 2."""
    features: Literal["flatten", "mean"] = "flatten"
    """`flatten` the last images into features, or take their spatial `mean`."""
    norm: Literal["batch", "none"] = "batch"
    """Normalise by `batch` statistics, or by `none`."""
    norm_scale: bool = True
    """Learn a scale as well as a shift after each normalisation."""
    head: heads.Head = heads.LINEAR
    """What turns features into outputs."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, C, H, W] -> [N, outputs]."""
        if len(inputs) != 3:
            raise InputError(
                "the shape of examples for conv4",
                got=list(inputs),
                expected="that of images, [channels, height, width]",
                remedy="choose another model",
            )
        channels, height, width = inputs
        for _ in range(4):
            height, width = self._halved(height), self._halved(width)
        if min(height, width) < 1:
            raise InputError(
                "the size of images for conv4",
                got=list(inputs[1:]),
                expected="at least [16, 16], since it halves them four times",
                remedy="give larger images, or set model.pool to stride",
            )
        widths = [channels, *[self.filters] * 4]
        blocks = [Block(*pair, self.pool, self.norm, self.norm_scale) for pair in pairwise(widths)]
        shape = [self.filters] if self.features == "mean" else [self.filters, height, width]
        body = Blocks(blocks, self.features == "mean")
        linear = LinearLayer(math.prod(shape), outputs)
        # A linear head is drawn in any case, so that bodies are alike whatever their head.
        for layer in (*body.modules(), linear):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        return heads.Net(body, self.head.module(linear, feedback, shape))

    def _halved(self, side: int) -> int:
        """Pixels of a side after one block."""
        return side // 2 if self.pool == "max" else (side + 1) // 2
