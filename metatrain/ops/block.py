"""The block of few-shot networks on a CPU, which can be differentiated twice.

It is 3x3 convolution, batch statistics, a residual, ReLU and max-pool. With z = conv(x, w) and, for
each channel over the M pixels of z, its mean m, its variance, r = 1 / sqrt(variance + eps) and
zhat = (z - m) r,

    y = max over a window of relu(scale zhat + shift + residual).

First derivative: with u = gy at each window's winner where ReLU is on and 0 elsewhere, s1 = sum u,
s2 = sum u zhat,

    gz = scale r (u - s1 / M - zhat s2 / M),   gscale = s2,   gshift = s1,
    gx and gw are conv's gradients of gz: linear in gz and w, and in gz and x,
    gresidual = u: linear in gy, so that its derivative is its transpose.

Second derivative, along cotangents (vx, vw, a, b) of (gx, gw, gscale, gshift): what reaches gz is
v = conv(vx, w) + conv(x, vw). With v1 = sum v, v2 = sum v zhat, vu = sum v u and
core = vu - s1 v1 / M - s2 v2 / M,

    d/du     = scale r (v - v1 / M - zhat v2 / M) + a zhat + b
    d/dscale = r core
    d/dz     = r (q - mean q - zhat mean(q zhat)) - scale r^2 zhat core / M,
               q = u (a - scale r v2 / M) - v scale r s2 / M
    d/dx     = gradient of conv with respect to x for (gz, vw),
    d/dw     = gradient of conv with respect to w for (gz, vx).

PyTorch's double backward of a convolution pads, transposes and groups; here it is four
convolutions. Those of few small images, for which oneDNN takes longer, go to the kernels of
convolution.cpp; the rest is oneDNN's. Normalisation, ReLU and pool are one pass over the images, in
norm_relu_pool.cpp. Our kernels work in one thread, whatever torch is set to.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metatrain.ops import first_block
from metatrain.ops.build import call

KERNELS = ("convolution", "first_block", "norm_relu_pool")  # the files that are built
CHANNELS = 16  # those of outputs must be a multiple of it
FEW = 1000  # output pixels, over all images, up to which our kernels convolve
NARROW = 64  # channels up to which they do in the forward direction; oneDNN is faster with more


class Shape(NamedTuple):
    stride: int  # of the convolution, 1 or 2
    pool: int  # the window, 1 or 2
    eps: float


def reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shape: Shape,
    residual: Tensor | None = None,
) -> Tensor:
    """The block in plain PyTorch: x [N, C, H, W], weight [O, C, 3, 3], scale and shift [O].

    residual: [N, O, h, w], as large as the convolution's result.
    """
    z = F.conv2d(x, weight, None, shape.stride, 1)
    y = F.batch_norm(z, None, None, scale, shift, training=True, eps=shape.eps)
    y = F.relu(y if residual is None else y + residual)
    return F.max_pool2d(y, shape.pool) if shape.pool > 1 else y


def block(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    shape: Shape,
    residual: Tensor | None = None,
) -> Tensor:
    """What `reference` computes, for O a multiple of 16, channels last.

    Raises KernelsUnavailable if the kernels are not built and cannot be.
    """
    wide = len(weight)
    fits = (
        x.dim() == 4
        and len(x) > 0
        and weight.shape[1:] == (x.shape[1], 3, 3)
        and wide % CHANNELS == 0
        and scale.shape == shift.shape == (wide,)
        and x.dtype == weight.dtype == scale.dtype == shift.dtype
        and (residual is None or _fits(residual, x, wide, shape.stride))
    )
    if not fits:  # kernels read memory as they are told
        raise RuntimeError(
            f"a block of weights {list(weight.shape)} and {weight.dtype} does not fit images "
            f"{list(x.shape)} of {x.dtype}"
        )
    if x.shape[1] <= first_block.MOST_CHANNELS and not x.requires_grad and residual is None:
        return first_block.first_block(x, weight, scale, shift, *shape)
    # The gradient of a weight in this layout comes in this layout, and so does what an inner step
    # makes of the two.
    added = None if residual is None else _last(residual)
    given = _last(x), _last(weight), scale.contiguous(), shift.contiguous(), added
    y: Tensor = _Block.apply(*given, shape)[0]
    return y


def _fits(residual: Tensor, x: Tensor, wide: int, stride: int) -> bool:
    sides = ((side - 1) // stride + 1 for side in x.shape[2:])
    return residual.shape == (len(x), wide, *sides) and residual.dtype == x.dtype


class _Block(torch.autograd.Function):
    """(x, weight, scale, shift, residual) -> (y, z); z passes on the derivative of _Gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        shape: Shape,
    ) -> Any:
        z = _convolve(x, weight, shape.stride)
        images, channels, height, width = z.shape
        y = _empty(z, images, height // shape.pool, width // shape.pool, channels)
        choice = torch.empty_like(y, dtype=torch.uint8)
        winner = torch.empty_like(y) if shape.pool > 1 else z  # without a pool each pixel wins
        mean, rstd = torch.empty_like(shift), torch.empty_like(shift)
        function, added = ("forward", []) if residual is None else ("forward_residual", [residual])
        _norm(function, shape, z, z, scale, shift, *added, y, winner, choice, mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, scale, z, winner, choice, mean, rstd)
        ctx.shape = shape
        return y, z

    @staticmethod
    def backward(ctx: Any, gy: Tensor | None, gz_upstream: Tensor | None) -> Any:
        x, weight, scale, z, winner, choice, mean, rstd = ctx.saved_tensors
        if gy is None:
            gy = _last(torch.zeros_like(choice, dtype=z.dtype))
        needs_grad = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        stored = x, weight, scale, z, winner, choice, mean, rstd
        gradients = _Gradient.apply(gy, gz_upstream, *stored, ctx.shape, needs_grad)
        of_residual = None
        if ctx.needs_input_grad[4]:
            of_residual = _Scatter.apply(gy, choice, z.shape, ctx.shape)
        return *gradients, of_residual, None


class _Scatter(torch.autograd.Function):
    """gy -> u"""

    @staticmethod
    def forward(ctx: Any, gy: Tensor, choice: Tensor, size: torch.Size, shape: Shape) -> Tensor:
        ctx.save_for_backward(choice)
        ctx.numbers = size, shape
        images, channels, height, width = size
        u = _empty(gy, images, height, width, channels)
        _norm("scatter", shape, u, _last(gy), choice, u)
        return u

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Any:
        return _Gather.apply(v, *ctx.saved_tensors, *ctx.numbers), None, None, None


class _Gather(torch.autograd.Function):
    """u -> gy, the transpose."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, choice: Tensor, size: torch.Size, shape: Shape) -> Tensor:
        ctx.save_for_backward(choice)
        ctx.numbers = size, shape
        gy = _last(torch.empty_like(choice, dtype=v.dtype))
        v = _last(v)
        _norm("gather", shape, v, v, choice, gy)
        return gy

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> Any:
        return _Scatter.apply(gy, *ctx.saved_tensors, *ctx.numbers), None, None, None


class _Gradient(torch.autograd.Function):
    """(gy, what else reaches gz; x, weight, scale, z) -> (gx, gw, gscale, gshift)."""

    @staticmethod
    def forward(
        ctx: Any,
        gy: Tensor,
        gz_upstream: Tensor | None,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        z: Tensor,
        winner: Tensor,
        choice: Tensor,
        mean: Tensor,
        rstd: Tensor,
        shape: Shape,
        needs_grad: tuple[bool, bool],
    ) -> Any:
        gy = _last(gy)
        gz, s1, s2 = torch.empty_like(z), torch.empty_like(mean), torch.empty_like(mean)
        _norm("backward", shape, z, gy, z, winner, choice, scale, mean, rstd, gz, s1, s2)
        if gz_upstream is not None:
            gz.add_(gz_upstream)
        gx = _input_gradient(gz, x, weight, shape.stride) if needs_grad[0] else None
        gw = _weight_gradient(gz, x, weight, shape.stride) if needs_grad[1] else None
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gy, gz, x, weight, scale, z, winner, choice, mean, rstd, s1, s2)
        ctx.shape, ctx.again = shape, gz_upstream is not None
        return gx, gw, s2, s1

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, vx: Tensor | None, vw: Tensor | None, a: Tensor | None, b: Tensor | None
    ) -> Any:
        gy, gz, x, weight, scale, z, winner, choice, mean, rstd, s1, s2 = ctx.saved_tensors
        if ctx.again:
            raise RuntimeError("a block can be differentiated twice, and this is the third time")
        stride, zeros = ctx.shape.stride, torch.zeros_like(mean)
        vx, vw = (None if v is None else _last(v) for v in (vx, vw))
        v = torch.zeros_like(z) if vx is None else _convolve(vx, weight, stride)
        if vw is not None:
            v.add_(_convolve(x, vw, stride))
        ggy, of_z, of_scale = torch.empty_like(gy), torch.empty_like(z), torch.empty_like(mean)
        a, b = (zeros if cotangent is None else cotangent.contiguous() for cotangent in (a, b))
        given = v, a, b, gy, z, winner, choice, scale, mean, rstd, s1, s2
        _norm("double_backward", ctx.shape, z, *given, ggy, of_z, of_scale)
        of_x = of_weight = None
        if vw is not None and ctx.needs_input_grad[2]:
            of_x = _input_gradient(gz, x, vw, stride)
        if vx is not None:
            of_weight = _weight_gradient(gz, vx, weight, stride)
        return ggy, None, of_x, of_weight, of_scale, of_z, None, None, None, None, None, None


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty(like: Tensor, images: int, height: int, width: int, channels: int) -> Tensor:
    return like.new_empty((images, height, width, channels)).permute(0, 3, 1, 2)


def _norm(function: str, shape: Shape, z: Tensor, *tensors: Tensor) -> None:
    images, channels, height, width = z.shape
    numbers = images, height, width, channels, shape.eps
    call("norm_relu_pool", f"{function}_{shape.pool}", z.dtype, numbers, tensors)


def _few(outputs: int, weight: Tensor) -> bool:
    """Whether a convolution of so many output pixels goes to our kernels."""
    wide, narrow = weight.shape[:2]
    return outputs <= FEW and narrow % CHANNELS == 0 and wide % CHANNELS == 0


def _kernel(
    function: str, stride: int, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, result: Tensor
) -> Tensor:
    """A kernel's result, for images like x and weights like weight."""
    images, narrow, height, width = x.shape
    numbers = images, height, width, narrow, weight.shape[0], stride
    call("convolution", function, x.dtype, numbers, (a, b, result))
    return result


def _convolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    images, _, height, width = x.shape
    shape = images, (height - 1) // stride + 1, (width - 1) // stride + 1
    if _few(math.prod(shape), weight) and max(weight.shape[:2]) <= NARROW:
        return _kernel("forward", stride, x, weight, x, weight, _empty(x, *shape, len(weight)))
    return _last(F.conv2d(x, weight, None, stride, 1))


def _input_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Of x only the shape counts."""
    if _few(g.numel() // len(weight), weight):
        return _kernel("input_gradient", stride, x, weight, g, weight, torch.empty_like(x))
    return _last(_torchs(g, x, weight, stride, [True, False, False])[0])


def _weight_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Of weight only the shape counts."""
    if _few(g.numel() // len(weight), weight):
        return _kernel("weight_gradient", stride, x, weight, g, x, torch.empty_like(weight))
    return _last(_torchs(g, x, weight, stride, [False, True, False])[1])


def _torchs(g: Tensor, x: Tensor, weight: Tensor, stride: int, wanted: list[bool]) -> Any:
    strides = [stride, stride]
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, strides, [1, 1], [1, 1], False, [0, 0], 1, wanted
    )
