"""Arrays of NPZ files, of which sizes and kinds are checked before a number is read."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metatrain.core import InputError
from metatrain.data import archives

MOST_BYTES = 1 << 28  # of an array; examples are copied several times
MOST_EXAMPLES = 10**6  # each of which becomes a row of predictions
MOST_TARGETS = 10**7  # which become numbers of Python
MOST_ARRAYS = 1000  # in a file
MOST_REASON = 200  # characters of numpy's words, which quote the whole header
HEADERS = {  # by the format's version
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read(path: Path) -> tuple[npt.NDArray[Any], list[Any] | None]:
    """Return the arrays x, the examples, and y, their targets, or None, of an NPZ file.

    The targets are N values, also if they are [N, 1]; rows if each example has several.
    """
    if not path.exists():
        raise InputError(f"there is no file {path}", remedy="give an NPZ file")
    remedy = "save it with numpy.savez(path, x=..., y=...)"
    with archives.zipped(
        path,
        lambda name: name.endswith(".npy"),
        "arrays",
        most_files=MOST_ARRAYS,
        most_bytes=MOST_BYTES,
        most_archive=2 * MOST_BYTES,
    ) as members:
        if "x.npy" not in members:
            raise InputError(f"{path} has no array x, the examples", remedy=remedy)
        try:
            x = _array(members["x.npy"], "x")
            y = _array(members["y.npy"], "y") if "y.npy" in members else None
        except InputError:
            raise
        except Exception as error:  # numpy raises nearly anything for a broken header
            reason = " ".join(str(error).split())[:MOST_REASON]
            raise InputError(f"{path} cannot be read as NPZ ({reason})", remedy=remedy) from error
    examples, targets = len(x) if x.ndim else 1, y.size if y is not None else 0
    for what, number, most in (
        ("examples", examples, MOST_EXAMPLES),
        ("targets", targets, MOST_TARGETS),
    ):
        if number > most:
            raise InputError(
                f"{path} has {number:,} {what}",
                expected=f"at most {most:,}",
                remedy="give a part of the examples",
            )
    if y is None:
        return x, None
    return x, (y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y).tolist()


def _array(read_member: Callable[[], bytes], name: str) -> npt.NDArray[Any]:
    """Return an array whose header fits its bytes."""
    file = io.BytesIO(read_member())
    shape, _, kind = HEADERS[np.lib.format.read_magic(file)](file)
    if kind.hasobject:
        raise ValueError(f"{name} holds Python's objects, which are not read")
    if kind.kind == "c":
        raise ValueError(f"{name} holds complex numbers, which are not read")
    if any(side < 0 for side in shape):
        raise ValueError(f"{name} has a negative size in its shape {list(shape)[:10]}")
    wanted, rest = math.prod(shape) * kind.itemsize, len(file.getbuffer()) - file.tell()
    if wanted != rest:
        raise ValueError(f"{name} has {rest:,} bytes, and {wanted:,} by its header")
    file.seek(0)
    found: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return found
