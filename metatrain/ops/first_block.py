"""The first block of a network: on images of few channels, whose gradient nobody wants.

A patch p is the K = 9 I numbers of an image that one output z = w . p of the convolution is made
of. So the statistics of z follow from those of the patches, which do not depend on the weights:

    mean z = w . mean p,   variance of z = w . C w,
    C = mean(p p^T) - mean p mean p^T, the patches' covariance.

With rstd = 1 / sqrt(variance + eps), V = scale rstd w and c = shift - scale rstd (w . mean p) the
block is

    y = max over a window of relu(V . p + c).

Once it is known which pixel of each window was chosen, the block is linear in V and c:

    (V, c) -> V . p + c at the chosen pixels.

Its transpose is g -> (sum of g p, sum of g) over them. These two are each other's derivatives. The
rest is PyTorch on tensors of [O, K]. Nothing of the size of z is ever stored.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metatrain.ops.build import call

MOST_CHANNELS = 3


def first_block(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, stride: int, pool: int, eps: float
) -> Tensor:
    """x [N, I, H, W], weight [O, I, 3, 3], scale and shift [O] -> [N, O, h, w], channels last."""
    x = x.contiguous()
    outputs = len(x) * (-(-x.shape[2] // stride)) * (-(-x.shape[3] // stride))
    w = weight.flatten(1)
    first = torch.empty(w.shape[1], dtype=torch.float64)
    second = torch.empty(w.shape[1], w.shape[1], dtype=torch.float64)
    call("first_block", "moments", x.dtype, (*x.shape, len(w), stride), (x, first, second))
    mean = first / outputs
    covariance = (second / outputs - mean.outer(mean)).to(x.dtype)
    factor = scale * torch.rsqrt(((w @ covariance) * w).sum(1) + eps)
    y: Tensor = _Choose.apply(
        factor[:, None] * w, shift - factor * (w @ mean.to(x.dtype)), x, stride, pool
    )
    return y


class _Choose(torch.autograd.Function):
    """(V, c) -> y"""

    @staticmethod
    def forward(ctx: Any, v: Tensor, c: Tensor, x: Tensor, stride: int, pool: int) -> Tensor:
        y = _empty(x, len(v), stride, pool, x.dtype)
        choice = _empty(x, len(v), stride, pool, torch.uint8)
        _kernel("choose", x, len(v), stride, pool, v.T.contiguous(), c.contiguous(), x, y, choice)
        ctx.save_for_backward(x, choice)
        ctx.numbers = stride, pool
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_Sums.apply(g, *ctx.saved_tensors, *ctx.numbers), None, None, None


class _Sums(torch.autograd.Function):
    """g -> (sum of g p, sum of g) at the chosen pixels"""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, choice: Tensor, stride: int, pool: int) -> Any:
        ctx.save_for_backward(x, choice)
        ctx.numbers = stride, pool
        wide = choice.shape[1]
        sums, total = g.new_empty(9 * x.shape[1], wide), g.new_empty(wide)
        g = g.contiguous(memory_format=torch.channels_last)
        _kernel("sums", x, wide, stride, pool, g, x, choice, sums, total)
        return sums.T, total

    @staticmethod
    def backward(ctx: Any, v: Tensor, c: Tensor) -> Any:
        return _At.apply(v, c, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


class _At(torch.autograd.Function):
    """(V, c) -> V . p + c at the chosen pixels"""

    @staticmethod
    def forward(
        ctx: Any, v: Tensor, c: Tensor, x: Tensor, choice: Tensor, stride: int, pool: int
    ) -> Tensor:
        ctx.save_for_backward(x, choice)
        ctx.numbers = stride, pool
        y = _empty(x, len(v), stride, pool, x.dtype)
        _kernel("at", x, len(v), stride, pool, v.T.contiguous(), c.contiguous(), x, choice, y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return *_Sums.apply(g, *ctx.saved_tensors, *ctx.numbers), None, None, None, None


def _empty(x: Tensor, wide: int, stride: int, pool: int, kind: torch.dtype) -> Tensor:
    images, _, height, width = x.shape
    shape = images, -(-height // stride) // pool, -(-width // stride) // pool, wide
    return torch.empty(shape, dtype=kind).permute(0, 3, 1, 2)


def _kernel(function: str, x: Tensor, wide: int, stride: int, pool: int, *tensors: Tensor) -> None:
    call("first_block", f"{function}_{pool}", x.dtype, (*x.shape, wide, stride), tensors)
