"""Normalisation without hidden state: the caller decides whose batch statistics normalise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase

from metatrain.core import InputError

# Those of all examples of a batch, the ones that a layer holds, or those of so many first examples.
Statistics = Literal["batch", "held"] | int
# Of a network: by a batch, by groups of an example's channels, by an example, or not at all.
Norm = Literal["batch", "group", "layer", "none"]
GROUP = 16  # channels of a group, as many as in section 4 of the paper


class BatchStatistics(nn.Module):
    """Normalise with the mean and variance of a batch, per channel, or with those that it holds.

    y = scale * (x - mean) / sqrt(variance + eps) + shift, over all dimensions of x [N, C, ...] but
    the second. The eps of 0.001 is that of the TensorFlow code of MAML's and Reptile's papers.
    `normalised_by` changes whose `statistics` are used.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self, channels: int, scale: bool = True, shift: bool = True, eps: float = 1e-3
    ) -> None:
        super().__init__()
        self.eps = eps
        self.statistics: Statistics = "batch"
        self.held = False  # whether it came with its own statistics, for `norm: running` alone
        self.scale = nn.Parameter(torch.ones(channels)) if scale else None
        self.shift = nn.Parameter(torch.zeros(channels)) if shift else None
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...]."""
        scale, shift = self.affine()
        if self.statistics == "batch":
            return F.batch_norm(x, None, None, scale, shift, training=True, eps=self.eps)
        variance, mean = self.variance, self.mean
        if self.statistics != "held":
            variance, mean = moments(x[: self.statistics])
        # batch_norm cannot be differentiated with respect to statistics that it is given.
        factor = scale * torch.rsqrt(variance + self.eps)
        shape = (-1, *[1] * (x.dim() - 2))
        return x * factor.view(shape) + (shift - mean * factor).view(shape)

    def of_tasks(self, x: Tensor, pixels: int) -> Tensor:
        """The same for T tasks at once, each with a scale and a shift: x [T, N * pixels, C]."""
        variance, mean = self.variance[..., None, :], self.mean[..., None, :]
        if self.statistics != "held":
            seen = x if self.statistics == "batch" else x[:, : self.statistics * pixels]
            variance, mean = torch.var_mean(seen, dim=1, correction=0, keepdim=True)
        scale, shift = self.affine()
        factor = scale[:, None] * torch.rsqrt(variance + self.eps)
        return x * factor + (shift[:, None] - mean * factor)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift; ones for no scale, without which PyTorch fails in second order."""
        shift = torch.zeros_like(self.mean) if self.shift is None else self.shift
        return torch.ones_like(shift) if self.scale is None else self.scale, shift


class ExampleStatistics(nn.Module):
    """Normalise each example on its own, by groups of its channels.

    Group normalisation (Wu and He 2018, arXiv 1803.08494); one group is layer normalisation (Ba et
    al. 2016, arXiv 1607.06450).
    """

    def __init__(self, channels: int, groups: int, scale: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.scale = nn.Parameter(torch.ones(channels)) if scale else None
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, ...]."""
        return F.group_norm(x, self.groups, self.scale, self.shift, self.eps)

    def of_tasks(self, x: Tensor, pixels: int) -> Tensor:
        """The same for T tasks at once, each with a scale and a shift: x [T, N * pixels, C]."""
        tasks, _, channels = x.shape
        grouped = x.view(tasks, -1, pixels, self.groups, channels // self.groups)
        variance, mean = torch.var_mean(grouped, dim=(2, 4), correction=0, keepdim=True)
        y = ((grouped - mean) * torch.rsqrt(variance + self.eps)).view_as(x)
        y = y if self.scale is None else y * self.scale[:, None]
        return y + self.shift[:, None]


Normalisation = BatchStatistics | ExampleStatistics


def normalisation(
    norm: Literal["batch", "group", "layer"], channels: int, scale: bool = True, eps: float = 1e-3
) -> Normalisation:
    """The layer that a network's `norm` names; InputError if it does not fit the channels.

    scale: whether a scale is learned as well as a shift.
    eps: of batch statistics.
    """
    if norm == "batch":
        return BatchStatistics(channels, scale, eps=eps)
    if norm == "group" and channels % GROUP:
        raise InputError(
            "channels with norm: group", got=channels, expected=f"a multiple of {GROUP}"
        )
    return ExampleStatistics(channels, channels // GROUP if norm == "group" else 1, scale)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variance and mean of x [N, C, ...] for each channel."""
    dimensions = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x, dim=dimensions, correction=0)
    return variance, mean


@contextmanager
def normalised_by(layers: Sequence[BatchStatistics], statistics: Statistics) -> Iterator[None]:
    """Have a network's layers normalise with other statistics.

    The network must be the calling thread's own.
    """
    for layer in layers:
        layer.statistics = statistics
    try:
        yield
    finally:
        for layer in layers:
            layer.statistics = "batch"


@contextmanager
def rows_each(layers: Sequence[BatchStatistics], rows: int) -> Iterator[None]:
    """Have each example that `normalised_by` counts be so many rows of what the layers get."""
    before = [layer.statistics for layer in layers]
    for layer in layers:
        if isinstance(layer.statistics, int):
            layer.statistics *= rows
    try:
        yield
    finally:
        for layer, statistics in zip(layers, before, strict=True):
            layer.statistics = statistics


TORCHS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def converted(module: nn.Module) -> nn.Module:
    """The network with BatchStatistics in place of torch's batch normalisation.

    They have the same eps, scale and shift. torch's layers change their running statistics in the
    forward pass; here `norm: running` tracks them, from those that the layer has.
    Raises InputError for a layer that does not know its number of channels yet, or is no torch's.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, _converted(child))
        else:
            converted(child)
    return _converted(module) if isinstance(module, _BatchNorm) else module


def _converted(norm: _BatchNorm) -> BatchStatistics:
    if isinstance(norm, _LazyNormBase):
        raise InputError(
            f"{type(norm).__name__} does not know its number of channels",
            remedy="give it as num_features",
        )
    if type(norm) not in TORCHS:
        raise InputError(
            f"{type(norm).__name__} keeps running statistics and is none of torch's own layers",
            remedy="use torch.nn.BatchNorm2d or metatrain.models.normalisation.BatchStatistics",
        )
    layer = BatchStatistics(norm.num_features, norm.affine, norm.affine, norm.eps)
    if norm.affine:
        # The parameters themselves: other layers may share them, and they keep whether they are
        # trained.
        layer.scale, layer.shift = norm.weight, norm.bias
    if norm.running_mean is not None and norm.running_var is not None:
        layer.mean, layer.variance = (
            norm.running_mean.detach().clone(),
            norm.running_var.detach().clone(),
        )
    layer.held = (
        not norm.training or bool((layer.mean != 0).any()) or bool((layer.variance != 1).any())
    )
    return layer
