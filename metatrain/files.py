"""Open files of this machine that somebody else may have prepared: no link, pipe or device."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path


def opened(path: str | os.PathLike[str], most: int, *, follow: bool = True) -> BufferedReader:
    """Open a regular file to read; OSError if it is none, or has more than `most` bytes.

    A pipe would block whoever opens it, and a device need not end.

    follow: whether the file may be a link.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    file = os.open(path, flags)
    state = os.fstat(file)
    problem = ""
    if not stat.S_ISREG(state.st_mode):
        problem = "it is no regular file"
    elif state.st_size > most:
        problem = f"it has {state.st_size:,} bytes, and at most {most:,} are read"
    if problem:
        os.close(file)
        raise OSError(problem)
    return os.fdopen(file, "rb")


def read(path: str | os.PathLike[str], most: int, *, follow: bool = True) -> bytes:
    """Read a whole file that `opened` opens."""
    with opened(path, most, follow=follow) as file:
        return file.read()


def is_own(path: Path) -> bool:
    """Whether nobody but this user and root can have written, or can write, what lies there."""
    users = (0, os.getuid())
    link, state = path.lstat(), path.stat()
    return link.st_uid in users and state.st_uid in users and not state.st_mode & 0o022


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process of this machine in at a time; what lies at `path` is never written to.

    Raises OSError if something else than a regular file lies there.
    """
    import fcntl  # here: not every system has it, and not everyone locks

    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    file = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(f"{path} is no regular file")
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
