"""MobileNet-v2 (Sandler et al. 2018, arXiv 1801.04381)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.bounds import bounded, check_bounds
from metatrain.models import heads
from metatrain.models.blocks import check_images, unit
from metatrain.models.layers import LinearLayer
from metatrain.models.normalisation import normalisation
from metatrain.models.resnet import EPS, Norm, colours, drawn

# Of each stage: how much wider it is inside, its channels, its blocks, the stride of the first one.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280  # channels of the first and the last convolution


class Step(nn.Sequential):
    """Convolution and normalisation, then ReLU6, and the same for T tasks at once."""

    takes_tasks = True  # see metatrain.problems.functional.call

    def __init__(
        self, narrow: int, wide: int, norm: Norm, *, side: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(narrow, wide, side, stride, side // 2, groups=groups, bias=False)
        super().__init__(conv, normalisation(norm, wide, eps=EPS))

    def forward(self, x: Tensor) -> Tensor:
        return unit(self[0], self[1], x, activation=F.relu6)  # type: ignore[arg-type]


class Inverted(nn.Module):
    """Wider by 1x1 convolution, 3x3 of each channel alone, narrower by 1x1; and a shortcut."""

    takes_tasks = True

    def __init__(self, narrow: int, wide: int, times: int, stride: int, norm: Norm) -> None:
        super().__init__()
        inside = narrow * times
        steps = [Step(narrow, inside, norm)] if times > 1 else []
        steps.append(Step(inside, inside, norm, side=3, stride=stride, groups=inside))
        last = nn.Conv2d(inside, wide, 1, bias=False), normalisation(norm, wide, eps=EPS)
        self.conv = nn.Sequential(*steps, *last)
        self.adds = stride == 1 and narrow == wide

    def forward(self, x: Tensor) -> Tensor:
        *steps, conv, norm = self.conv
        y = x
        for step in steps:
            y = step(y)
        shortcut = x if self.adds else None
        return unit(conv, norm, y, activation=nn.Identity(), residual=shortcut)  # type: ignore[arg-type]


class Features(nn.Module):
    """All steps, and the mean of the last images, with the names of torchvision."""

    takes_tasks = True

    def __init__(self, channels: int, model: MobileNet) -> None:
        super().__init__()
        width, norm, stride = model.width, model.norm, 2 if model.stem == "large" else 1
        self.colours = colours(model.colours, channels)
        narrow = _channels(FIRST * width)
        steps: list[nn.Module] = [Step(channels, narrow, norm, side=3, stride=stride)]
        for times, filters, blocks, step in STAGES:
            wide = _channels(filters * width)
            for i in range(blocks):
                steps.append(Inverted(narrow, wide, times, step if i == 0 else 1, norm))
                narrow = wide
        self.outputs = _channels(LAST * max(1.0, width))
        self.features = nn.Sequential(*steps, Step(narrow, self.outputs, norm))

    def forward(self, x: Tensor) -> Tensor:
        images: Tensor = self.features(self.colours(x))
        return images.mean((-2, -1))


@dataclass(frozen=True, kw_only=True)
class MobileNet:
    """17 blocks of convolutions that are wide inside and cheap, and a head.

    Its parts are torchvision's: `weights` takes the weights of `torchvision.models.mobilenet_v2`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["mobilenet"] = "mobilenet"
    width: float = bounded(1.0, least=0.1, most=10)
    """Factor of the channels of all layers."""
    stem: Literal["large", "small"] = "large"
    """The first convolution has a stride of 2 (`large`), or of 1 for `small` images."""
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
        check_images(self.name, inputs)
        body = Features(inputs[0], self)
        linear = LinearLayer(body.outputs, outputs)
        return heads.Net(drawn(body), self.head.module(linear, feedback, [body.outputs]))


def _channels(wanted: float) -> int:
    """A multiple of 8 that is near, and not below nine tenths of what is wanted."""
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded
