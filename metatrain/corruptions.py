"""Corruptions of images: noise, blur and occlusion, which know no network.

Three of those that Hendrycks and Dietterich 2019 (arXiv 1903.12261) measure robustness with.
Images are [T, N, C, H, W] in 0..1, as the network gets them, and so is the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from metatrain.bounds import bounded, check_bounds
from metatrain.core import Part

REACH = 3  # deviations of a blur beyond which a pixel counts for nothing


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Gaussian noise on each pixel."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["noise"] = "noise"
    deviation: float = bounded(0.1, least=0, most=10)
    """Standard deviation of the noise; pixels are in 0..1."""
    part: Part = "both"
    """The examples that change: `query`, `support` or `both`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(images.shape, generator=generator, dtype=images.dtype)
        return (images + self.deviation * drawn.to(images.device)).clamp(0, 1)

    def describe(self) -> str:
        """Say what changes and how far, for a protocol line."""
        return f"noise of deviation {self.deviation:g} on {self.part}"


@dataclass(frozen=True, kw_only=True)
class Blur:
    """A Gaussian blur; beyond its edges an image goes on as it ends."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["blur"] = "blur"
    pixels: float = bounded(1.0, least=0, most=100)
    """Standard deviation of the blur, in pixels."""
    part: Part = "both"
    """The examples that change: `query`, `support` or `both`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        reach = math.ceil(REACH * self.pixels)
        if not reach:
            return images
        away = torch.arange(-reach, reach + 1, dtype=torch.float64) / self.pixels
        weights = (-away.square() / 2).exp()
        weights = (weights / weights.sum()).to(images)
        flat = images.flatten(0, 2)[:, None]  # each channel by itself
        # One side after the other: wide borders on all sides would make an image many times larger.
        flat = functional.pad(flat, [0, 0, reach, reach], mode="replicate")
        flat = functional.conv2d(flat, weights[None, None, :, None])
        flat = functional.pad(flat, [reach, reach, 0, 0], mode="replicate")
        flat = functional.conv2d(flat, weights[None, None, None])
        return flat.view_as(images).clamp(0, 1)

    def describe(self) -> str:
        """Say what changes and how far, for a protocol line."""
        return f"blur of {self.pixels:g} pixels on {self.part}"


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """A square of zeros at a random place, within the image."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["occlusion"] = "occlusion"
    side: float = bounded(0.5, least=0, most=1)
    """Side of the square, as a share of the image's shorter one."""
    part: Part = "both"
    """The examples that change: `query`, `support` or `both`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        height, width = images.shape[-2:]
        side = round(self.side * min(height, width))
        top = torch.randint(height - side + 1, images.shape[:2], generator=generator)
        left = torch.randint(width - side + 1, images.shape[:2], generator=generator)
        row, column = torch.arange(height) - top[..., None], torch.arange(width) - left[..., None]
        rows, columns = (row >= 0) & (row < side), (column >= 0) & (column < side)
        hidden = rows[..., :, None] & columns[..., None, :]  # [T, N, H, W]
        return images.masked_fill(hidden[:, :, None].to(images.device), 0.0)

    def describe(self) -> str:
        """Say what changes and how far, for a protocol line."""
        return f"occlusion of {self.side:g} of a side on {self.part}"


BuiltIn = Annotated[Noise | Blur | Occlusion, Field(discriminator="name")]
