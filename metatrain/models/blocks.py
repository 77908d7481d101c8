"""Blocks of convolution, normalisation and ReLU, which convolutional networks are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.core import InputError
from metatrain.models.normalisation import BatchStatistics, Norm, Normalisation, normalisation
from metatrain.ops.block import CHANNELS, KERNELS, Shape, block
from metatrain.ops.build import KernelsUnavailable, library

Halving = Literal["max", "stride", "none"]


def unit(
    conv: nn.Conv2d,
    norm: Normalisation | None,
    x: Tensor,
    *,
    activation: Callable[[Tensor], Tensor] = F.relu,
    residual: Tensor | None = None,
    pool: bool = False,
    fused: bool = False,
) -> Tensor:
    """Convolution, normalisation, `residual` added, `activation`, and max-pool by two.

    x: [N, C, H, W], or [T, N, C, H, W] of T tasks, if the layers have their parameters.
    fused: by the kernels of metatrain.ops, if the statistics are the batch's; the layers fit them.
    """
    if conv.weight.dim() == 5:
        return _of_tasks(conv, norm, x, activation, residual, pool)
    if fused and isinstance(norm, BatchStatistics) and norm.statistics == "batch":
        scale, shift = norm.affine()
        shape = Shape(stride=conv.stride[0], pool=2 if pool else 1, eps=norm.eps)
        return block(x, conv.weight, scale, shift, shape, residual)
    x = conv(x)
    if norm is not None:
        x = norm(x)
    if residual is not None:
        x = x + residual
    x = activation(x)
    return F.max_pool2d(x, 2) if pool else x


def fits(conv: nn.Conv2d, norm: Normalisation | None) -> bool:
    """Whether there are kernels for a unit of these layers with ReLU."""
    shape = conv.kernel_size, conv.padding, conv.groups
    return (
        isinstance(norm, BatchStatistics)
        and shape == ((3, 3), (1, 1), 1)
        and conv.out_channels % CHANNELS == 0
    )


def _of_tasks(
    conv: nn.Conv2d,
    norm: Normalisation | None,
    x: Tensor,
    activation: Callable[[Tensor], Tensor],
    residual: Tensor | None,
    pool: bool,
) -> Tensor:
    """Each task's convolution is a matrix product: all of them are one batched product."""
    tasks, images = x.shape[:2]
    y, height, width = (_grouped if conv.groups > 1 else _product)(conv, x)
    if conv.bias is not None:
        y = y + conv.bias[:, None]
    if norm is not None:
        y = norm.of_tasks(y, height * width)
    if residual is not None:
        y = y + residual.movedim(2, 4).reshape(y.shape)
    y = activation(y).reshape(tasks * images, height, width, -1).permute(0, 3, 1, 2)
    return (F.max_pool2d(y, 2) if pool else y).unflatten(0, (tasks, images))


def _product(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, int, int]:
    """[T, N * height * width, out], height and width."""
    tasks, images = x.shape[:2]
    side, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    x = F.pad(x.movedim(2, 4), (0, 0, *[padding] * 4))  # channels last
    # Views, so that all patches are one copy. F.unfold would send a GPU a kernel an image.
    patches = x.unfold(2, side, stride).unfold(3, side, stride).movedim(4, 6)
    height, width = patches.shape[2:4]  # of [T, N, h, w, side, side, C]
    weight = conv.weight.permute(0, 3, 4, 2, 1).flatten(1, 3)  # [T, side * side * C, out]
    y = patches.reshape(tasks, images * height * width, -1) @ weight
    return y, height, width


def _grouped(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, int, int]:
    """The same for a convolution whose channels are in groups: the tasks are further groups."""
    tasks, groups = len(x), len(x) * conv.groups
    weight = conv.weight.flatten(0, 1)
    y = F.conv2d(
        x.transpose(0, 1).flatten(1, 2), weight, None, conv.stride, conv.padding, 1, groups
    )
    height, width = y.shape[-2:]
    y = y.unflatten(1, (tasks, -1)).permute(1, 0, 3, 4, 2)  # [T, N, h, w, out]
    return y.flatten(1, 3), height, width


class Block(nn.Module):
    """3x3 convolution, normalisation, ReLU, and halving by `max` pooling, by a `stride`, or `none`.

    Also takes the parameters and images of T tasks at once, [T, N, C, H, W].
    """

    takes_tasks = True  # see metatrain.problems.functional.call
    fused = False  # see `fuse`

    def __init__(
        self, narrow: int, wide: int, halving: Halving, norm: Norm = "batch", scale: bool = True
    ) -> None:
        super().__init__()
        self.pool, stride = halving == "max", 2 if halving == "stride" else 1
        # Normalisation takes a bias away again: there is one only without it.
        self.conv = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=norm == "none")
        self.norm = None if norm == "none" else normalisation(norm, wide, scale)

    @property
    def fits(self) -> bool:
        """Whether there are kernels for it."""
        return fits(self.conv, self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return unit(self.conv, self.norm, x, pool=self.pool, fused=self.fused)


class Blocks(nn.Sequential):
    """Blocks, whose last images become features [N, F]: flattened, or their spatial mean."""

    takes_tasks = True

    def __init__(self, blocks: Sequence[nn.Module], mean: bool) -> None:
        super().__init__(*blocks)
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x.mean((-2, -1)) if self.mean else x.flatten(-3)


def check_images(name: str, inputs: Sequence[int], least: int = 1) -> None:
    """Refuse examples that are no images for a network, or have sides below `least`."""
    if len(inputs) != 3:
        raise InputError(
            f"the shape of examples for {name}",
            got=list(inputs),
            expected="that of images, [channels, height, width]",
            remedy="choose another model",
        )
    if min(inputs[1:]) < least:
        raise InputError(
            f"the size of images for {name}",
            got=list(inputs[1:]),
            expected=f"at least {[least] * 2}",
            remedy="give larger images, or choose another model",
        )


def fuse(module: nn.Module) -> None:
    """Have the kernels of metatrain.ops compute the parts of a network that they fit.

    Raises KernelsUnavailable if they fit none.
    """
    parts = [m for m in module.modules() if getattr(m, "fits", False)]
    if not parts:
        raise KernelsUnavailable(
            "they are for blocks of 3x3 convolution with batch statistics and filters in multiples "
            f"of {CHANNELS}"
        )
    for name in KERNELS:
        library(name)
    for part in parts:
        part.fused = True  # type: ignore[assignment]
