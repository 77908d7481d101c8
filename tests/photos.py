"""Folders of pictures as people have them: drawn here, of many sizes, modes and formats."""

from __future__ import annotations

import random
from pathlib import Path

from PIL import Image, ImageDraw

SIZES = [(40, 40), (64, 48), (30, 60), (90, 70)]


def photo(kind: int, number: int) -> Image.Image:
    """The `number`-th picture of a kind: its shapes, jittered, on a bright ground."""
    shapes, jitter = random.Random(kind), random.Random(1000 * kind + number)
    image = Image.new("RGB", (128, 128), tuple(jitter.randint(190, 255) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    colour = shapes.choice([(200, 40, 40), (40, 160, 60), (40, 60, 200), (180, 140, 20), (120, 30, 140)])
    for _ in range(3):
        x, y = (shapes.randint(20, 80) + jitter.randint(-6, 6) for _ in range(2))
        width, height = shapes.randint(15, 45), shapes.randint(15, 45)
        shape = shapes.choice(["rectangle", "ellipse", "line"])
        getattr(draw, shape)([x, y, x + width, y + height], width=7, fill=colour if shape == "line" else None)
        if shape != "line":
            getattr(draw, shape)([x, y, x + width, y + height], width=7, outline=colour)
    return image.resize(jitter.choice(SIZES))


def save(image: Image.Image, stem: Path, number: int) -> Path:
    """Write it, the format and mode by its number: JPEG, RGBA PNG, WebP, grey PNG, palette."""
    suffix, mode = [(".jpg", "RGB"), (".png", "RGBA"), (".webp", "RGB"), (".png", "L"), (".PNG", "P")][number % 5]
    path = stem.with_suffix(suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.convert(mode).save(path)
    return path


def album(folder: Path, kinds: range, each: int, first: int = 0) -> Path:
    """`folder` with a folder of `each` pictures for each kind, numbered from `first`."""
    for kind in kinds:
        for number in range(first, first + each):
            save(photo(kind, number), folder / f"kind {kind:02d}" / f"{number:02d}", number)
    return folder
