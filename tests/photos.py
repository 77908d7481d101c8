"""Folders of pictures as people have them: drawn here, of many sizes, modes and formats."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZES = [(40, 40), (64, 48), (30, 60), (90, 70)]


def photo(kind: int, number: int) -> Image.Image:
    """The `number`-th picture of a kind: its shapes, jittered, on a bright ground."""
    shapes, jitter = random.Random(kind), random.Random(1000 * kind + number)
    image = Image.new("RGB", (128, 128), tuple(jitter.randint(190, 255) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    colour = shapes.choice(
        [(200, 40, 40), (40, 160, 60), (40, 60, 200), (180, 140, 20), (120, 30, 140)]
    )
    for _ in range(3):
        x, y = (shapes.randint(20, 80) + jitter.randint(-6, 6) for _ in range(2))
        width, height = shapes.randint(15, 45), shapes.randint(15, 45)
        shape = shapes.choice(["rectangle", "ellipse", "line"])
        getattr(draw, shape)(
            [x, y, x + width, y + height], width=7, fill=colour if shape == "line" else None
        )
        if shape != "line":
            getattr(draw, shape)([x, y, x + width, y + height], width=7, outline=colour)
    return image.resize(jitter.choice(SIZES))


def save(image: Image.Image, stem: Path, number: int) -> Path:
    """Write it, the format and mode by its number: JPEG, RGBA PNG, WebP, grey PNG, palette."""
    suffix, mode = [
        (".jpg", "RGB"),
        (".png", "RGBA"),
        (".webp", "RGB"),
        (".png", "L"),
        (".PNG", "P"),
    ][number % 5]
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


def png16(kind: str, values: np.ndarray) -> bytes:
    """A PNG with 16 bits of each channel, which PIL does not write: "LA", "RGB" or "RGBA", of [H,
    W, C].
    """
    height, width, _ = values.shape
    header = struct.pack(
        ">IIBBBBB", width, height, 16, {"LA": 4, "RGB": 2, "RGBA": 6}[kind], 0, 0, 0
    )
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def exif(tags: Mapping[int, object]) -> bytes:
    """An EXIF block with these tags, each in the type of its value and not in that of the
    standard.
    """
    entries, data, offset = b"", b"", 8 + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, str | bytes):
            text = value.encode() + b"\0" if isinstance(value, str) else value
            kind, count, payload = (2 if isinstance(value, str) else 7), len(text), text
        elif isinstance(value, float):
            kind, count, payload = 5, 1, struct.pack("<II", round(1000 * value), 1000)
        elif max(values) < 1 << 16:
            kind, count, payload = 3, len(values), struct.pack(f"<{len(values)}H", *values)
        else:
            kind, count, payload = 4, len(values), struct.pack(f"<{len(values)}I", *values)
        inline = len(payload) <= 4
        entries += struct.pack("<HHI", tag, kind, count)
        entries += payload.ljust(4, b"\0") if inline else struct.pack("<I", offset + len(data))
        data += b"" if inline else payload
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + data


def tiff(values: np.ndarray, tags: Mapping[int, object]) -> bytes:
    """A TIFF of a grey image [H, W] with these tags, too."""
    height, width = values.shape
    known = {
        256: width,
        257: height,
        258: 8,
        259: 1,
        262: 1,
        273: 0,
        277: 1,
        278: height,
        279: values.size,
    }
    known[273] = len(exif(known | tags)) - 6  # where the pixels begin
    return exif(known | tags)[6:] + values.tobytes()
