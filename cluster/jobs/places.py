"""Places that a job reads and writes: the nodes of its cluster must be able to see them."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from cluster.jobs.sent import is_sent
from metatrain import storage
from metatrain.core import InputError


def check_written(key: str, place: str | None) -> str:
    """Return the place, or raise InputError if it is in the job's folder, which ends with it."""
    if place is None or not _is_elsewhere(place):
        raise InputError(
            f"{key} is {place or 'not given'}, and a job's own folder ends with it",
            remedy="give a place that outlives it, such as s3://bucket/first or the path of a "
            "folder that all nodes see",
        )
    return storage.checked(place)


def check_read(key: str, place: str, sent: Mapping[str, Path]) -> None:
    """Raise InputError if a place is a relative path that is not among the `sent` files."""
    if not _is_elsewhere(place) and not is_sent(place, sent):
        raise InputError(
            f"{key} is {place}, a path in this folder, which the cluster does not see",
            remedy=f"send it with --send {place}, or give an address such as s3://bucket/first or "
            "a path that all nodes see",
        )
    storage.checked(place)


def absent(error: BaseException, node: str) -> str | None:
    """Say which file or module a node lacks, if an exception comes from that; else None."""
    found: BaseException | None = error
    while found is not None:
        module = re.search(r"No module named '([\w.]+)'", str(found))
        if module:
            return f"{node} has no module {module[1]!r}: install it there"
        if isinstance(found, FileNotFoundError) and found.errno == errno.ENOENT:
            file = found.filename if isinstance(found.filename, str) else ""
            said = str(found).partition("\n")[0][:200]
            what = f"has no file {file}" if file else f"lacks a file ({said})"
            named = file if file and not Path(file).is_absolute() else "FILE"
            return (
                f"{node} {what}: send it with `metatrain submit --send {named}`, or give a path "
                "that all nodes see"
            )
        found = found.__cause__
    return None


def _is_elsewhere(place: str) -> bool:
    return storage.is_remote(place) or Path(place).is_absolute()
