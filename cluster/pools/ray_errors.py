"""Why a Ray actor died, or failed, as a part of a sentence."""

from __future__ import annotations

import re
from pathlib import Path

from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from metatrain.core import InputError

LOW = (
    "Ray killed it because its node ran low on memory: set outer.tasks_per_ticket "
    "or workers.max lower"
)


def cause(error: RayError) -> str:
    """Why a worker is gone."""
    low = isinstance(error, OutOfMemoryError) or "low on memory" in str(error)
    return LOW if low else last_line(error)


def last_line(error: RayError) -> str:
    """What Ray says of an error, without the pages before."""
    return f"{type(error).__name__}: {str(error).strip().rpartition(chr(10))[2][:200]}"


def where(error: RayTaskError) -> str:
    """What went wrong in a worker, and at which line."""
    if isinstance(error.cause, InputError):
        return str(error.cause)
    lines = re.findall(r'File "(.+?)", line (\d+), in (\w+)', str(error))
    place = f" ({Path(lines[-1][0]).name} line {lines[-1][1]}, in {lines[-1][2]})" if lines else ""
    return f"{type(error.cause).__name__}: {error.cause}{place}"
