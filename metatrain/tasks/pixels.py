"""Pictures of any size, mode and format as the pixels of one shape that networks see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metatrain.core import InputError

Picture = Any  # a file's path, a PIL image, or an array or tensor [H, W], [H, W, C] or [C, H, W], uint8 or 0..1

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}  # and no others, whatever a file calls itself: some of PIL's run programs
BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what PIL raises for files it cannot read


def listed(pictures: Any, channels: int) -> list[Picture]:
    """N pictures, one by one. InputError for a single one: its rows or channels would be taken for pictures."""
    shape = getattr(pictures, "shape", None)
    single = isinstance(pictures, str | Path | Image.Image)
    if shape is not None and len(shape) <= 3:
        single = len(shape) < 3 or shape[2] in (3, 4) or shape[0] == channels == 3
    if single:
        raise InputError("a single image was given where several are expected: put it into a list, as [image]")
    return list(pictures)


def stack(pictures: Sequence[Picture], shape: Sequence[int]) -> Tensor:
    """[N, *shape] uint8; `shape` is [channels, height, width] with 1 (grey) or 3 (RGB) channels."""
    pixels = np.empty((len(pictures), *shape), np.uint8)
    for i, picture in enumerate(pictures):
        pixels[i] = to_pixels(picture, shape)
    return torch.from_numpy(pixels)


def to_pixels(picture: Picture, shape: Sequence[int]) -> NDArray[np.uint8]:
    """The picture's middle, cut to the aspect ratio of `shape` and resized; what is transparent becomes white.

    Raises InputError where it cannot be read as an image.
    """
    channels, height, width = shape
    image = read(picture)
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def read(picture: Picture) -> Image.Image:
    """An upright image of mode 1, L or RGB."""
    is_file = isinstance(picture, str | Path)
    if not is_file and not isinstance(picture, Image.Image):
        picture = Image.fromarray(_from_array(picture))
    try:
        if not is_file:
            return _plain(picture)
        with Image.open(picture, formats=sorted(set(FORMATS.values()))) as opened:
            return _plain(opened)
    except BROKEN as error:
        name = picture if is_file else f"an image of mode {picture.mode}"
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, UnidentifiedImageError):
            reason = f"not one of {', '.join(sorted(set(FORMATS.values())))}"
        raise InputError(f"{name} cannot be read as an image ({reason}): replace or remove it") from error


def _plain(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert() would clip them
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        values = np.asarray(image, np.float64)
        if image.mode == "F" and values.max() <= 1:
            values = values * 255
        if not (values.min() >= 0 and values.max() <= 255):
            raise ValueError(f"its values are {values.min():g}..{values.max():g}, which is neither 0..255 nor 0..1")
        return Image.fromarray(np.rint(values).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        return paper.convert("RGB")
    return image.copy() if image.mode in ("1", "L", "RGB") else image.convert("RGB")  # either reads the whole file


def _from_array(picture: Any) -> NDArray[np.uint8]:
    """[H, W] or [H, W, C] uint8."""
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        array = (picture.float() if picture.is_floating_point() else picture).numpy()
    else:
        array = np.asarray(picture)
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise InputError(f"an image must be [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, got {array.shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):
            raise InputError(f"an image of {array.dtype} must lie in 0..1, got {array.min():g}..{array.max():g}")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"an image must be uint8 in 0..255 or floating point in 0..1, got {array.dtype}")
    return np.ascontiguousarray(array)
