"""The four-layer convolutional network of the few-shot papers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.core import InputError
from metatrain.models.mlp import Linear
from metatrain.ops.block import CHANNELS, KERNELS, Shape, block
from metatrain.ops.build import Unavailable, library


class BatchStatistics(nn.Module):
    """Normalise with the mean and variance of a batch, per channel, or with those that it holds.

    y = scale * (x - mean) / sqrt(variance + 0.001) + shift. The 0.001 is that of both papers' TensorFlow code.
    """

    EPS = 1e-3
    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, scale: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels)) if scale else None
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor, statistics_from: int | None = None) -> Tensor:
        """x [N, C, H, W]; the statistics are those of x[:statistics_from], and where that is 0 the ones held."""
        scale, shift = self.affine()
        if statistics_from is None:
            return F.batch_norm(x, None, None, scale, shift, training=True, eps=self.EPS)
        variance, mean = self.variance, self.mean
        if statistics_from:
            variance, mean = torch.var_mean(x[:statistics_from], dim=(0, 2, 3), correction=0)
        # batch_norm cannot be differentiated with respect to statistics that it is given.
        factor = scale * torch.rsqrt(variance + self.EPS)
        return x * factor[:, None, None] + (shift - mean * factor)[:, None, None]

    def of_tasks(self, x: Tensor, pixels: int, statistics_from: int | None = None) -> Tensor:
        """The same for T tasks at once, each with a scale and a shift: x [T, N * pixels, C]."""
        variance, mean = self.variance[..., None, :], self.mean[..., None, :]
        if statistics_from != 0:
            seen = x if statistics_from is None else x[:, : statistics_from * pixels]
            variance, mean = torch.var_mean(seen, dim=1, correction=0, keepdim=True)
        scale, shift = self.affine()
        factor = scale[:, None] * torch.rsqrt(variance + self.EPS)
        return x * factor + (shift[:, None] - mean * factor)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift. Without a scale, batch_norm's second derivative fails in PyTorch: ones stand in for it."""
        return torch.ones_like(self.shift) if self.scale is None else self.scale, self.shift


class Block(nn.Module):
    """3x3 convolution, normalisation, ReLU, and halving by max-pool or by the convolution's stride.

    Also takes the parameters and images of T tasks at once, [T, N, C, H, W].
    """

    takes_tasks = True  # see metatrain.problem.call
    fused = False  # by the kernels of metatrain.ops; see `fuse`

    def __init__(self, narrow: int, wide: int, pool: str, norm: str, norm_scale: bool) -> None:
        super().__init__()
        self.pool = pool == "max"
        # Normalisation takes a bias away again: there is one only without it.
        self.conv = nn.Conv2d(narrow, wide, 3, 1 if self.pool else 2, padding=1, bias=norm == "none")
        self.norm = BatchStatistics(wide, norm_scale) if norm == "batch" else None

    def forward(self, x: Tensor, statistics_from: int | None = None) -> Tensor:
        if self.conv.weight.dim() == 5:
            return self._of_tasks(x, statistics_from)
        if self.fused and self.norm is not None and statistics_from is None:
            scale, shift = self.norm.affine()
            shape = Shape(stride=self.conv.stride[0], pool=2 if self.pool else 1, eps=self.norm.EPS)
            return block(x, self.conv.weight, scale, shift, shape)
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, statistics_from)
        x = F.relu(x)
        return F.max_pool2d(x, 2) if self.pool else x

    def _of_tasks(self, x: Tensor, statistics_from: int | None) -> Tensor:
        """Each task's convolution is a matrix product, so that all of them are one batched product."""
        tasks, images, _, height, width = x.shape
        stride = self.conv.stride[0]
        height, width = (height - 1) // stride + 1, (width - 1) // stride + 1
        x = F.pad(x, (1, 1, 1, 1))  # F.unfold would send a GPU a kernel for each image
        last = [stride * (n - 1) + 1 for n in (height, width)]
        taps = [x[..., i : i + last[0] : stride, j : j + last[1] : stride] for i in range(3) for j in range(3)]
        patches = torch.stack(taps, 3).permute(0, 1, 4, 5, 2, 3)  # [T, N, h, w, C, 9]
        y = patches.reshape(tasks, images * height * width, -1) @ self.conv.weight.flatten(2).mT
        if self.conv.bias is not None:
            y = y + self.conv.bias[:, None]
        if self.norm is not None:
            y = self.norm.of_tasks(y, height * width, statistics_from)
        y = F.relu(y).view(tasks * images, height, width, -1).permute(0, 3, 1, 2)
        return (F.max_pool2d(y, 2) if self.pool else y).unflatten(0, (tasks, images))


class Blocks(nn.Sequential):
    """Blocks, whose last images become features [N, F] by flattening them or by their spatial mean."""

    takes_tasks = True

    def __init__(self, blocks: list[Block], mean: bool) -> None:
        super().__init__(*blocks)
        self.mean = mean

    def forward(self, x: Tensor, statistics_from: int | None = None) -> Tensor:
        for layer in self:
            x = layer(x, statistics_from)
        return x.mean((-2, -1)) if self.mean else x.flatten(-3)


def fuse(module: nn.Module) -> None:
    """Have the kernels of metatrain.ops compute a network's blocks; Unavailable where they cannot."""
    blocks = [m for m in module.modules() if isinstance(m, Block)]
    if not blocks or any(b.norm is None or b.conv.out_channels % CHANNELS for b in blocks):
        raise Unavailable(f"they are for conv4 with batch statistics and filters in multiples of {CHANNELS}")
    for name in KERNELS:
        library(name)
    for b in blocks:
        b.fused = True


class Cosine(nn.Module):
    """scale * cos(x, weight_k) for each class k (Gidaris and Komodakis 2018, arXiv 1804.09458, section 3.2)."""

    takes_tasks = True

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, features))
        self.scale = nn.Parameter(torch.tensor(10.0))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[..., None, None] * F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=-1).mT


class ConvNet(nn.Module):
    """A body of blocks, and a head."""

    takes_tasks = True

    def __init__(self, body: Blocks, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, statistics_from: int | None = None) -> Tensor:
        return self.head(self.body(x, statistics_from))


@dataclass(frozen=True, kw_only=True)
class Conv4:
    """Four blocks of (3x3 convolution, batch norm, ReLU, halving) and a head; Glorot-uniform weights.

    `features` says how the last images become features, `classifier` whether classes are linear functions of them or
    cosines with a learned scale.

    MAML's Omniglot net (Finn et al. 2017): pool="stride", features="mean", norm_scale=False, and shifts that are not
    adapted (MAML(adapts=("*.conv.*", "head.*"))). Reptile's (Nichol et al. 2018): pool="stride", features="flatten",
    norm_scale=True. Both papers' mini-ImageNet net: pool="max", features="flatten", filters=32.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["conv4"] = "conv4"
    filters: int = 64
    pool: Literal["max", "stride"] = "max"
    features: Literal["flatten", "mean"] = "flatten"
    norm: Literal["batch", "none"] = "batch"
    norm_scale: bool = True
    classifier: Literal["linear", "cosine"] = "linear"

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, C, H, W] -> [N, outputs]."""
        if len(inputs) != 3:
            raise InputError(f"conv4 needs images of shape [channels, height, width], got examples of {list(inputs)}")
        channels, height, width = inputs
        for _ in range(4):
            height, width = (height // 2, width // 2) if self.pool == "max" else ((height + 1) // 2, (width + 1) // 2)
        if min(height, width) < 1:
            raise InputError(f"conv4 halves images four times and needs 16 pixels a side, got {inputs[1]}x{inputs[2]}")
        widths = [channels, *[self.filters] * 4]
        blocks = [Block(*pair, self.pool, self.norm, self.norm_scale) for pair in pairwise(widths)]
        features = self.filters * (1 if self.features == "mean" else height * width)
        classifier = Linear if self.classifier == "linear" else Cosine
        return ConvNet(Blocks(blocks, self.features == "mean"), classifier(features, outputs))
