"""Images of tasks changed at random, as the ticket's generator draws it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from metatrain.bounds import bounded, check_bounds
from metatrain.core import InputError, Split
from metatrain.data.stored import MOST_SIDE, Rotations


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Change images at random, each by itself; the same ticket gives the same pixels anywhere."""

    __pydantic_config__ = {"extra": "forbid"}

    flip: bool = False
    """Whether half of the images are mirrored, left to right."""
    crop: int = bounded(0, least=0, most=MOST_SIDE)
    """Most pixels that an image moves along each axis; zeros move in, as the network sees them."""
    rotate: float = bounded(0.0, least=0, most=180)
    """Most degrees that an image turns, either way."""
    scale: float = bounded(0.0, least=0, most=0.9)
    """Most that an image grows or shrinks by: 0.1 is 0.9 to 1.1 times its size."""
    images: Literal["both", "support", "query"] = "both"
    """The images that change: `both`, `support` or `query`."""
    split: Literal["train", "all"] = "train"
    """The tasks that change: `train`, those of training; `all`, also those that measure."""
    turns: Rotations | None = None
    """Quarter turns: `classes`, `per-task` or `none`; `null`: as the splits have them."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def changes(self, split: Split) -> bool:
        """Whether tasks of this split change."""
        return split == "train" or self.split == "all"

    def check(self, shape: tuple[int, int, int]) -> None:
        """Refuse what images of [channels, height, width] cannot do."""
        _, height, width = shape
        if self.crop >= min(height, width):
            raise InputError(
                "family.augment.crop",
                got=self.crop,
                expected=f"less than a side of the images, {width}x{height} pixels",
            )
        if self.turns not in (None, "none") and height != width:
            raise InputError(
                "family.augment.turns",
                got=self.turns,
                expected=f"null or none: the images are not square, but {width}x{height} pixels",
            )

    def describe(self) -> str:
        """Say which tasks change and how, for a protocol line."""
        given = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default and field.name != "split"
        }
        changes = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"augmented{' in training' if self.split == 'train' else ''} ({changes})"

    def both(
        self, support: Tensor, query: Tensor, generator: torch.Generator, zero: int
    ) -> tuple[Tensor, Tensor]:
        """Change the images of tasks, [T, N, C, H, W] uint8, by `images`.

        zero: the value that the network sees as 0.
        """
        if self.images != "query":
            support = self._changed(support, generator, zero)
        if self.images != "support":
            query = self._changed(query, generator, zero)
        return support, query

    def _changed(self, images: Tensor, generator: torch.Generator, zero: int) -> Tensor:
        flat = images.flatten(0, 1)
        if self.rotate or self.scale:
            flat = _warped(flat, self.rotate, self.scale, generator, zero)
        if self.crop:
            flat = _moved(flat, self.crop, generator, zero)
        if self.flip:
            mirrored = torch.rand(len(flat), generator=generator) < 0.5
            flat = torch.where(mirrored.to(flat.device)[:, None, None, None], flat.flip(-1), flat)
        return flat.view_as(images)


def _warped(
    images: Tensor, degrees: float, scale: float, generator: torch.Generator, zero: int
) -> Tensor:
    """Turn and scale images [N, C, H, W] about their middle, by bilinear interpolation.

    It is computed in doubles: then all machines round to the same whole values.
    """
    count, _, height, width = images.shape
    drawn = 2 * torch.rand(2, count, generator=generator, dtype=torch.float64) - 1
    angle, factor = drawn[0] * math.radians(degrees), 1 + drawn[1] * scale
    cos, sin, ratio = angle.cos() / factor, angle.sin() / factor, height / width
    none = torch.zeros_like(cos)
    maps = torch.stack([cos, -sin * ratio, none, sin / ratio, cos, none], -1).view(count, 2, 3)
    grid = functional.affine_grid(maps.to(images.device), list(images.shape), align_corners=False)
    warped = functional.grid_sample(images.double() - zero, grid, align_corners=False)
    return warped.add_(zero).round_().to(torch.uint8)


def _moved(images: Tensor, most: int, generator: torch.Generator, zero: int) -> Tensor:
    """Move images [N, C, H, W] by up to `most` pixels along each axis."""
    count, channels, height, width = images.shape
    padded = functional.pad(images, (most,) * 4, value=zero)
    down, right = torch.randint(2 * most + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    places = (
        torch.arange(count)[:, None, None, None],
        torch.arange(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    )
    return padded[tuple(place.to(images.device) for place in places)]
