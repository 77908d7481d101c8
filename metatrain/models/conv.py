"""The convolutional networks of the few-shot papers: four blocks, or any number of them."""

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
from metatrain.models.blocks import Block, Blocks, Halving, check_images
from metatrain.models.layers import LinearLayer
from metatrain.models.normalisation import Norm
from metatrain.names import counted

MOST_BLOCKS = 32


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
    norm: Norm = "batch"
    """Normalise by `batch` statistics, by `group` or `layer` of each example, or by `none`."""
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
        return _network(self, [self.filters] * 4, 4, inputs, outputs, feedback)


@dataclass(frozen=True, kw_only=True)
class Conv:
    """Any number of blocks of 3x3 convolution, normalisation, ReLU and halving, and a head.

    Weights start Glorot-uniform.

    The encoder of relation networks (Sung et al. 2018): halved=2, a head with a relation. The net
    of R2-D2 (Bertinetto et al. 2019) has filters=(96, 192, 384, 512), leaky ReLUs, dropout, and the
    features of the last two blocks; here it has plain ReLUs and those of the last one.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["conv"] = "conv"
    filters: tuple[int, ...] = bounded((64, 64, 64, 64), least=1, most=2048)
    """Channels of each block."""
    halved: int | None = bounded(None, least=0, most=32)
    """How many of the first blocks halve the images; `null`: all."""
    pool: Literal["max", "stride"] = "max"
    """Halve images by `max` pooling, or by a `stride` of 2."""
    features: Literal["flatten", "mean"] = "flatten"
    """`flatten` the last images into features, or take their spatial `mean`."""
    norm: Norm = "batch"
    """Normalise by `batch` statistics, by `group` or `layer` of each example, or by `none`."""
    norm_scale: bool = True
    """Learn a scale as well as a shift after each normalisation."""
    head: heads.Head = heads.LINEAR
    """What turns features into outputs."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 1 <= len(self.filters) <= MOST_BLOCKS:
            raise InputError(
                "filters", got=list(self.filters), expected=f"those of 1 to {MOST_BLOCKS} blocks"
            )
        if self.halved is not None and self.halved > len(self.filters):
            raise InputError(
                "halved", got=self.halved, expected=f"at most the {len(self.filters)} of filters"
            )

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, C, H, W] -> [N, outputs]."""
        halved = len(self.filters) if self.halved is None else self.halved
        return _network(self, self.filters, halved, inputs, outputs, feedback)


def _network(
    model: Conv4 | Conv,
    filters: Sequence[int],
    halved: int,
    inputs: Sequence[int],
    outputs: int,
    feedback: int,
) -> nn.Module:
    """Blocks of so many `filters`, the first `halved` of which halve the images; and a head."""
    check_images(model.name, inputs)
    channels, height, width = inputs
    for _ in range(halved):
        height, width = (n // 2 if model.pool == "max" else (n + 1) // 2 for n in (height, width))
    if min(height, width) < 1:
        raise InputError(
            f"the size of images for {model.name}",
            got=list(inputs[1:]),
            expected=f"at least {[2**halved] * 2}, which it halves {counted(halved, 'time')}",
            remedy="give larger images, or set model.pool to stride",
        )
    ways: list[Halving] = [model.pool if i < halved else "none" for i in range(len(filters))]
    blocks = [
        Block(narrow, wide, halving, model.norm, model.norm_scale)
        for (narrow, wide), halving in zip(pairwise([channels, *filters]), ways, strict=True)
    ]
    shape = [filters[-1]] if model.features == "mean" else [filters[-1], height, width]
    body = Blocks(blocks, model.features == "mean")
    linear = LinearLayer(math.prod(shape), outputs)
    # A linear head is drawn in any case, so that bodies are alike whatever their head.
    for layer in (*body.modules(), linear):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return heads.Net(body, model.head.module(linear, feedback, shape))
