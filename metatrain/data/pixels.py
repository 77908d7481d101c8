"""Pictures of any size, mode and format as the pixels of one shape that networks see."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metatrain import files
from metatrain.core import InputError
from metatrain.storage import local

# A file's path or its bytes, a PIL image, or an array or tensor [H, W], [H, W, C] or [C, H, W],
# uint8 or 0..1.
Picture = Any

FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}  # and no others, whatever a file calls itself: some of PIL's run programs
MOST_BYTES = 1 << 29  # of a file
MOST_PIXELS = 1 << 26  # of a picture: at most 16 bytes each in memory while it is read
Depth = Literal[8, 10, 12, 14, 16]  # the bits of cameras and scanners, whose files have 16
TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by the EXIF's orientation
ONE_IMAGE = "a single image was given instead of several"


class Read(NamedTuple):
    """A picture as 8 bits a channel, and the numbers that it was made from."""

    image: Image.Image  # upright, of mode 1, L or RGB
    highest: int | None = None  # the highest value of a grey image of 16 bits
    scaling: str | None = None  # of other numbers than 8 bits


def depth_of(highest: int) -> Depth:
    """Return how many of their 16 bits grey images use, if this is their highest value."""
    depths: tuple[Depth, ...] = get_args(Depth)
    return next(bits for bits in depths if highest < 1 << bits)


def listed(pictures: Any, channels: int) -> list[Picture]:
    """Return N pictures, one by one.

    Raises InputError for a single picture: its rows or channels would be taken for pictures.
    """
    if isinstance(pictures, str | bytes | os.PathLike | Image.Image):
        raise InputError(ONE_IMAGE, remedy="put it into a list, as [image]")
    if isinstance(pictures, Mapping | Set):
        raise InputError(
            f"images are a {type(pictures).__name__}, which has no order",
            remedy="give a list of them",
        )
    if not hasattr(pictures, "__array__"):
        try:
            return list(iter(pictures))
        except TypeError as error:
            raise InputError(
                f"images must be a list of them, got {type(pictures).__name__}"
            ) from error
    array = pictures if isinstance(pictures, Tensor) else np.asarray(pictures)
    shape = tuple(array.shape)
    if 0 in shape[:1] or (len(shape) == 1 and not _is_numeric(array)):  # none, or paths
        return list(array)
    if len(shape) < 2 or not _is_numeric(array):
        raise InputError(
            "images must be a list of paths or of images, or numbers [N, H, W], [N, H, W, C] or "
            f"[N, C, H, W]; got {array.dtype} of shape {shape}"
        )
    if len(shape) == 2 or (len(shape) == 3 and (shape[2] in (3, 4) or shape[0] == channels == 3)):
        raise InputError(ONE_IMAGE, remedy="put it into a list, as [image]")
    return list(array)


def stack(pictures: Sequence[Picture], shape: Sequence[int], bits: Depth | None = None) -> Tensor:
    """Return [N, *shape] uint8; `shape` is [channels, height, width], with 1 or 3 channels."""
    pixels = np.empty((len(pictures), *shape), np.uint8)
    for i, picture in enumerate(pictures):
        pixels[i] = to_pixels(picture, shape, bits)
    return torch.from_numpy(pixels)


def to_pixels(
    picture: Picture, shape: Sequence[int], bits: Depth | None = None, most: int = MOST_PIXELS
) -> NDArray[np.uint8]:
    """Cut the middle of a picture to the aspect ratio of `shape` and resize it: uint8 [*shape].

    Transparent parts become white. `bits` is how many of their 16 bits the grey images of the data
    set use; None: the picture's own values decide. Raises InputError for a picture that cannot be
    read as an image, has higher values, or more than `most` pixels.
    """
    channels, height, width = shape
    image = read(picture, bits, most).image
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)


def read(picture: Picture, bits: Depth | None = None, most: int = MOST_PIXELS) -> Read:
    """Read one picture; `bits` and `most` as for `to_pixels`."""
    if isinstance(picture, np.ndarray) and picture.ndim == 0:
        picture = picture.item()  # a path in an array of its own
    is_path, is_bytes = isinstance(picture, str | os.PathLike), isinstance(picture, bytes)
    is_file = is_path or is_bytes
    if not is_file and not isinstance(picture, Image.Image):
        picture = Image.fromarray(_from_array(picture))
    if is_path:
        local(os.fspath(picture), "the path of an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what PIL warns of is either read or refused
            if not is_file:
                return _plain(picture, bits, most)
            # By its name PIL would map a TIFF, and scramble one to be turned.
            with io.BytesIO(picture) if is_bytes else files.opened(picture, MOST_BYTES) as file:
                return _plain(Image.open(file, formats=sorted(set(FORMATS.values()))), bits, most)
    except Exception as error:  # PIL raises nearly anything for a broken file
        if is_path:
            name = os.fspath(picture)
        else:
            name = (
                f"an image of {len(picture)} bytes"
                if is_bytes
                else f"an image of mode {picture.mode}"
            )
        raise InputError(
            f"{name} cannot be read as an image ({_reason(error)})", remedy="replace or remove it"
        ) from error


def _reason(error: Exception) -> str:
    """Return why PIL cannot read a file, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return f"not one of {', '.join(sorted(set(FORMATS.values())))}"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    understood = (
        isinstance(error, OSError | SyntaxError | ValueError | Image.DecompressionBombError)
        and reason
    )
    return reason if understood else f"{type(error).__name__}: {reason}"


def _plain(image: Image.Image, bits: Depth | None, most: int) -> Read:
    if image.width * image.height > most:  # by its header: nothing is decoded yet
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, and at most {most:,} are read"
        )
    coarse = image.format in ("PNG", "TIFF") and any(
        ";16" in str(args) for *_, args in getattr(image, "tile", ())
    )
    image.load()  # reads the whole file; a TIFF turns itself
    image = _upright(image)
    if image.mode.startswith("I;16"):  # convert() would clip them
        grey = np.asarray(image)
        highest = int(grey.max())
        used = bits or depth_of(highest)
        if highest >> used:
            raise ValueError(
                f"its values reach {highest}, but the data set's images of 16 bits end at "
                f"{(1 << used) - 1}"
            )
        return Read(Image.fromarray((grey >> (used - 8)).astype(np.uint8)), highest)
    if image.mode in ("I", "F"):
        values = np.array(image, np.float64)
        low, high = values.min(), values.max()
        unit = image.mode == "F" and np.rint(high * 255) <= 255
        values *= 255 if unit else 1
        whole = np.rint(values, out=values)
        if not (whole.min() >= 0 and whole.max() <= 255):
            raise ValueError(f"its values are {low:g}..{high:g}, which is neither 0..255 nor 0..1")
        return Read(
            Image.fromarray(whole.astype(np.uint8)),
            None,
            "numbers in 0..1, times 255" if unit else None,
        )
    if coarse and np.asarray(image).max() < 16:  # PIL keeps the higher 8 bits of a colour
        raise ValueError(
            "its colours of 16 bits use less than a sixteenth of their range: save it with 8 bits"
        )
    scaling = "16-bit colours, divided by 256" if coarse else None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(image)
        return Read(paper.convert("RGB"), None, scaling)
    return Read(
        image.copy() if image.mode in ("1", "L", "RGB") else image.convert("RGB"), None, scaling
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF says, if that can be read.

    Nothing else in there changes the pixels.
    """
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)


def _is_numeric(array: NDArray[Any] | Tensor) -> bool:
    return isinstance(array, Tensor) or array.dtype.kind in "biufcV"


def _from_array(picture: Any) -> NDArray[np.uint8]:
    """Return [H, W] or [H, W, C] uint8."""
    try:
        if isinstance(picture, Tensor):
            picture = picture.detach().cpu()
            array = (picture.float() if picture.is_floating_point() else picture).numpy()
        else:
            array = np.asarray(picture)
    except (TypeError, ValueError, RuntimeError) as error:  # rows of several lengths, sparse
        raise InputError(
            f"an image of type {type(picture).__name__} is no array of numbers ({error})"
        ) from error
    if array.ndim == 0 or not _is_numeric(array):
        raise InputError(
            "an image must be a file's path, a PIL image or an array of numbers, got "
            f"{type(picture).__name__}" + (f" of {array.dtype}" if array.ndim else "")
        )
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    is_image = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not is_image or 0 in array.shape:
        raise InputError(
            "an image must be [H, W], [H, W, C] or [C, H, W] with 1, 3 or 4 channels, got "
            f"{array.shape}"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.float32)
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore"):
            pixels = np.rint(array * 255)
        if not (pixels.min() >= 0 and pixels.max() <= 255):  # 1 + 1e-7 is a rounded 1
            raise InputError(
                f"an image of {array.dtype} must lie in 0..1, got {array.min():g}..{array.max():g}"
            )
        array = pixels.astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(
            f"an image must be uint8 in 0..255 or floating point in 0..1, got {array.dtype}"
        )
    return np.ascontiguousarray(array)
