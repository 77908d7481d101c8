"""Residual networks (He et al. 2016, arXiv 1512.03385): ResNet-12 and ResNet-18."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.bounds import bounded, check_bounds
from metatrain.core import InputError
from metatrain.models import heads
from metatrain.models.blocks import Blocks, check_images, fits, unit
from metatrain.models.layers import LinearLayer
from metatrain.models.normalisation import Normalisation, normalisation

EPS = 1e-5  # torchvision's
MOST_BLOCKS = 16
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its colours
Norm = Literal["batch", "group", "layer"]


class Residual(nn.Module):
    """So many units of 3x3 convolution, normalisation and ReLU; the last one adds a shortcut.

    Parts are named as torchvision names them. Also takes the parameters and images of T tasks.
    """

    takes_tasks = True  # see metatrain.problems.functional.call
    fused = False  # see metatrain.models.blocks.fuse

    def __init__(
        self, narrow: int, wide: int, depth: int, norm: Norm, *, stride: int = 1, pool: bool = False
    ) -> None:
        super().__init__()
        self.depth, self.pool = depth, pool
        for i in range(1, depth + 1):
            step, channels = (stride, narrow) if i == 1 else (1, wide)
            setattr(self, f"conv{i}", nn.Conv2d(channels, wide, 3, step, 1, bias=False))
            setattr(self, f"bn{i}", normalisation(norm, wide, eps=EPS))
        self.downsample = None
        if stride > 1 or narrow != wide:
            shortcut = nn.Conv2d(narrow, wide, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, normalisation(norm, wide, eps=EPS))

    @property
    def fits(self) -> bool:
        """Whether there are kernels for all its units."""
        return all(fits(*each) for each in self._units())

    def forward(self, x: Tensor) -> Tensor:
        y, shortcut = x, x
        if self.downsample is not None:
            pair: Any = self.downsample
            shortcut = unit(pair[0], pair[1], x, activation=nn.Identity())
        *units, (conv, norm) = self._units()
        for each in units:
            y = unit(*each, y, fused=self.fused)
        return unit(conv, norm, y, residual=shortcut, pool=self.pool, fused=self.fused)

    def _units(self) -> list[tuple[nn.Conv2d, Normalisation]]:
        numbers = range(1, self.depth + 1)
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in numbers]


class Body18(nn.Module):
    """ResNet-18 up to the mean of its last images, with the names of torchvision."""

    takes_tasks = True
    fused = False

    def __init__(self, channels: int, model: ResNet18) -> None:
        super().__init__()
        filters, norm, self.large = model.filters, model.norm, model.stem == "large"
        self.colours = colours(model.colours, channels)
        side, stride = (7, 2) if self.large else (3, 1)
        self.conv1 = nn.Conv2d(channels, filters[0], side, stride, side // 2, bias=False)
        self.bn1 = normalisation(norm, filters[0], eps=EPS)
        for i, (narrow, wide) in enumerate(pairwise([filters[0], *filters]), 1):
            first = Residual(narrow, wide, 2, norm, stride=1 if i == 1 else 2)
            self.add_module(f"layer{i}", nn.Sequential(first, Residual(wide, wide, 2, norm)))

    @property
    def fits(self) -> bool:
        """Whether there are kernels for its first unit."""
        return fits(self.conv1, self.bn1)

    def forward(self, x: Tensor) -> Tensor:
        x = unit(self.conv1, self.bn1, self.colours(x), fused=self.fused)
        if self.large:
            tasks = x.shape[:-3]
            x = F.max_pool2d(x.flatten(0, -4), 3, 2, 1).unflatten(0, tasks)
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return x.mean((-2, -1))


@dataclass(frozen=True, kw_only=True)
class ResNet12:
    """Residual blocks of three units each, halved by max-pool, and a head.

    The network of many few-shot papers (Oreshkin et al. 2018, arXiv 1805.10123; Lee et al. 2019,
    arXiv 1904.03758), whose own have leaky ReLUs and drop blocks; here there are ReLUs alone.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["resnet12"] = "resnet12"
    filters: tuple[int, ...] = bounded((64, 128, 256, 512), least=1, most=2048)
    """Channels of each block."""
    features: Literal["flatten", "mean"] = "mean"
    """`flatten` the last images into features, or take their spatial `mean`."""
    norm: Norm = "batch"
    """Normalise by `batch` statistics, or by `group` or `layer` of each example."""
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

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, C, H, W] -> [N, outputs]."""
        check_images(self.name, inputs, least=2 ** len(self.filters))
        channels, height, width = inputs
        blocks = [
            Residual(narrow, wide, 3, self.norm, pool=True)
            for narrow, wide in pairwise([channels, *self.filters])
        ]
        height, width = (n >> len(blocks) for n in (height, width))
        wide = self.filters[-1]
        shape = [wide] if self.features == "mean" else [wide, height, width]
        body = drawn(Blocks(blocks, self.features == "mean"))
        linear = LinearLayer(math.prod(shape), outputs)
        return heads.Net(body, self.head.module(linear, feedback, shape))


@dataclass(frozen=True, kw_only=True)
class ResNet18:
    """A stem and eight residual blocks of two units each, and a head.

    Its parts are torchvision's: `weights` takes the weights of `torchvision.models.resnet18`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["resnet18"] = "resnet18"
    filters: tuple[int, int, int, int] = bounded((64, 128, 256, 512), least=1, most=2048)
    """Channels of each pair of blocks."""
    stem: Literal["large", "small"] = "large"
    """`large`: 7x7 of stride 2 and max-pool; `small`, for small images: 3x3."""
    colours: Literal["given", "imagenet"] = "given"
    """`imagenet`: standardise colours as torchvision's weights expect them."""
    norm: Norm = "batch"
    """Normalise by `batch` statistics, or by `group` or `layer` of each example."""
    head: heads.Head = heads.LINEAR
    """What turns features into outputs."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, C, H, W] -> [N, outputs]."""
        check_images(self.name, inputs, least=1)
        body = drawn(Body18(inputs[0], self))
        linear = LinearLayer(self.filters[-1], outputs)
        return heads.Net(body, self.head.module(linear, feedback, self.filters[-1:]))


class Standardise(nn.Module):
    """Subtract the mean of ImageNet's colours, and divide by their deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, values in zip(("mean", "deviation"), IMAGENET, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


def colours(wanted: Literal["given", "imagenet"], channels: int) -> nn.Module:
    """What changes the colours of images; InputError if they have none."""
    if wanted == "given":
        return nn.Identity()
    if channels != 3:
        raise InputError("colours", got=wanted, expected="given, for images of another depth")
    return Standardise()


def drawn(body: nn.Module) -> nn.Module:
    """The body with convolutions drawn as torchvision draws them (He et al. 2015)."""
    for layer in body.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return body
