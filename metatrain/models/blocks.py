"""Blocks of convolution, normalisation and ReLU, which convolutional networks are made of."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.models.normalisation import BatchStatistics, Norm, normalisation
from metatrain.ops.block import CHANNELS, KERNELS, Shape, block
from metatrain.ops.build import KernelsUnavailable, library

Halving = Literal["max", "stride", "none"]


class Block(nn.Module):
    """3x3 convolution, normalisation, ReLU, and halving by `max` pooling, by a `stride`, or `none`.

    Also takes the parameters and images of T tasks at once, [T, N, C, H, W].
    """

    takes_tasks = True  # see metatrain.problems.functional.call
    fused = False  # by the kernels of metatrain.ops; see `fuse`

    def __init__(
        self, narrow: int, wide: int, halving: Halving, norm: Norm = "batch", scale: bool = True
    ) -> None:
        super().__init__()
        self.pool, stride = halving == "max", 2 if halving == "stride" else 1
        # Normalisation takes a bias away again: there is one only without it.
        self.conv = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=norm == "none")
        self.norm = normalisation(norm, wide, scale)

    @property
    def fits(self) -> bool:
        """Whether there are kernels for it."""
        return isinstance(self.norm, BatchStatistics) and self.conv.out_channels % CHANNELS == 0

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.weight.dim() == 5:
            return self._of_tasks(x)
        norm = self.norm
        if self.fused and isinstance(norm, BatchStatistics) and norm.statistics == "batch":
            scale, shift = norm.affine()
            shape = Shape(stride=self.conv.stride[0], pool=2 if self.pool else 1, eps=norm.eps)
            return block(x, self.conv.weight, scale, shift, shape)
        x = self.conv(x)
        if norm is not None:
            x = norm(x)
        x = F.relu(x)
        return F.max_pool2d(x, 2) if self.pool else x

    def _of_tasks(self, x: Tensor) -> Tensor:
        """Each task's convolution is a matrix product: all of them are one batched product."""
        tasks, images = x.shape[:2]
        x = F.pad(x.movedim(2, 4), (0, 0, 1, 1, 1, 1))  # channels last
        stride = self.conv.stride[0]
        # Views, so that all patches are one copy. F.unfold would send a GPU a kernel an image.
        patches = x.unfold(2, 3, stride).unfold(3, 3, stride).movedim(4, 6)  # [T, N, h, w, 3, 3, C]
        height, width = patches.shape[2:4]
        weight = self.conv.weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # [T, 9 * C, out]
        y = patches.reshape(tasks, images * height * width, -1) @ weight
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

    Raises KernelsUnavailable if they can compute none.
    """
    blocks = [m for m in module.modules() if isinstance(m, Block) and m.fits]
    if not blocks:
        raise KernelsUnavailable(
            "they are for blocks of convolution with batch statistics and filters in multiples of "
            f"{CHANNELS}"
        )
    for name in KERNELS:
        library(name)
    for b in blocks:
        b.fused = True
