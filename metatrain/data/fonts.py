"""Fonts that anybody may have prepared: which characters they have, and pictures of these."""

from __future__ import annotations

import io
import math

from PIL import Image, ImageDraw, ImageFont

MOST_BYTES = 1 << 26  # of a font's file; Chinese ones have 20 MB
LARGEST = 8  # times a font's size: no character is drawn that is wider or higher


class Font:
    """The first face of a TrueType or OpenType file, in one size.

    Raises errors of many kinds if the file is damaged. One of bitmaps alone has no characters.
    """

    def __init__(self, data: bytes, pixels: int) -> None:
        from matplotlib.ft2font import FT2Font

        self._pixels = pixels
        self._characters = FT2Font(io.BytesIO(data))
        if self._characters.scalable:
            layout = ImageFont.Layout.BASIC  # the same one on every machine
            self._font = ImageFont.truetype(io.BytesIO(data), pixels, layout_engine=layout)

    def has(self, character: str) -> bool:
        """Whether `drawn` can draw a character."""
        known = self._characters
        return bool(known.scalable and known.get_char_index(ord(character)))

    def drawn(self, character: str) -> Image.Image:
        """Draw a character in black or in its own colours on white: RGB, as high as a line."""
        box = self._font.getbbox(character)
        line = (0, 0, self._font.getlength(character), sum(self._font.getmetrics()))
        left, top = (math.floor(min(pair)) for pair in zip(box[:2], line[:2], strict=True))
        right, bottom = (math.ceil(max(pair)) for pair in zip(box[2:], line[2:], strict=True))
        width, height = right - left, bottom - top
        if not 0 < max(width, height) <= LARGEST * self._pixels:
            raise ValueError(f"its {character!r} has {width}x{height} pixels")
        image = Image.new("RGB", (width, height), "white")
        place = (-left, -top)
        ImageDraw.Draw(image).text(place, character, "black", self._font, embedded_color=True)
        return image
