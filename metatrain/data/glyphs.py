"""Characters of invented alphabets, drawn from a seed: a data set that needs no download.

A class is a few quadratic Bezier strokes; a drawing of it moves their control points, turns, shears
and shifts the whole, and varies the width of the pen. All arithmetic is on integers and the random
numbers are the raw output of PCG64, so that the same seed gives the same bytes on every machine and
with every version of numpy.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from metatrain.core import InputError, Split
from metatrain.data.images import ImageStore, Rotations, Scheme

CLASSES, DRAWINGS = 1000, 20
SIDE = 28  # pixels
UNIT = 64  # coordinates are integers, UNIT to a pixel
POINTS = 25  # drawn along each stroke
MOST_STROKES = 4

Ints = NDArray[np.int64]


def read(source: Path | None) -> ImageStore:
    """Draw the data set, with splits of 70, 10 and 20 % of the classes."""
    if source is not None:
        raise InputError("glyphs are drawn, not read", remedy="leave out --source")
    images = torch.from_numpy(draw(CLASSES, DRAWINGS, seed=0))
    order = list(range(CLASSES))
    train, val = CLASSES * 7 // 10, CLASSES * 8 // 10
    none: dict[Split, Rotations] = {"train": "none", "val": "none", "test": "none"}
    splits: dict[Split, list[int]] = {
        "train": order[:train],
        "val": order[train:val],
        "test": order[val:],
    }
    return ImageStore(
        name="glyphs",
        images=images.flatten(0, 1)[:, None],
        class_names=[f"glyph{i:04d}" for i in order],
        sizes=torch.full((CLASSES,), DRAWINGS),
        schemes=[Scheme(name="glyphs", classes=splits, rotations=none)],
        synthetic=True,
    )


def draw(classes: int, drawings: int, seed: int) -> NDArray[np.uint8]:
    """Draw [classes, drawings, 28, 28] uint8, ink bright on dark."""
    uniform = _Uniform(seed)
    strokes = 2 + uniform(3, classes)  # 2 to 4
    # Control points [classes, strokes, 3, xy]; strokes often start where the one before ended, as
    # in handwriting.
    control = (4 + uniform(21, classes, MOST_STROKES, 3, 2)) * UNIT
    joined = uniform(2, classes, MOST_STROKES - 1) == 1
    for i in range(1, MOST_STROKES):
        control[:, i, 0] = np.where(joined[:, i - 1, None], control[:, i - 1, 2], control[:, i, 0])
    images = [_draw_class(control[c, : strokes[c]], drawings, uniform) for c in range(classes)]
    return np.stack(images)


def _draw_class(control: Ints, drawings: int, uniform: _Uniform) -> NDArray[np.uint8]:
    """Draw control points [strokes, 3, 2] as [drawings, 28, 28]."""
    centre = SIDE * UNIT // 2
    # +-2 pixels, triangular.
    wobble = sum(uniform(2 * UNIT + 1, drawings, *control.shape) - UNIT for _ in range(2))
    points = control + wobble - centre
    # A linear map near the identity, in units of 1/1024: scale 0.74 to 1.21, turn up to 22 degrees,
    # shear up to 0.3.
    turn = uniform(801, drawings) - 400
    shear = uniform(601, drawings) - 300
    scale = 760 + uniform(480, drawings, 2)
    x, y = points[..., 0], points[..., 1]
    to_shape = (slice(None), None, None)
    new_x = (x * scale[:, 0][to_shape] - y * (turn + shear)[to_shape]) // 1024
    new_y = (y * scale[:, 1][to_shape] + x * turn[to_shape]) // 1024
    shift = uniform(6 * UNIT + 1, drawings, 2) - 3 * UNIT
    points = np.stack([new_x, new_y], -1) + centre + shift[:, None, None]
    # Quadratic Bezier at t = i / n: ((n-i)^2 a + 2 i (n-i) b + i^2 c) / n^2
    n = POINTS - 1
    i = np.arange(POINTS)[:, None]
    a, b, c = (points[:, :, k, None] for k in range(3))
    curve = (
        (n - i) ** 2 * a + 2 * i * (n - i) * b + i**2 * c
    ) // n**2  # [drawings, strokes, POINTS, 2]
    curve = curve.reshape(drawings, -1, 2)
    pixel = np.arange(SIDE) * UNIT + UNIT // 2
    dx = (curve[:, :, 0, None] - pixel) ** 2  # [drawings, points, 28]
    dy = (curve[:, :, 1, None] - pixel) ** 2
    nearest = np.full((drawings, SIDE, SIDE), 4 * (SIDE * UNIT) ** 2)
    for k in range(curve.shape[1]):
        np.minimum(nearest, dy[:, k, :, None] + dx[:, k, None, :], out=nearest)
    # Full ink within the pen's radius, none beyond 1.8 times it, linear in the squared distance
    # between.
    radius = (52 + uniform(24, drawings)[:, None, None]) ** 2
    far = radius * 13 // 4
    return np.clip((far - nearest) * 255 // (far - radius), 0, 255).astype(np.uint8)


class _Uniform:
    """Integers below a bound, from PCG64's raw stream: numpy guarantees that it never changes."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def __call__(self, below: int, *shape: int) -> Ints:
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(16)
        return (raw % np.uint64(below)).astype(np.int64).reshape(shape)
