"""Open files of this machine that somebody else may have prepared: no link, pipe or device."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path

from metatrain.core import InputError

MOST_RECORD = 1 << 32  # bytes of the longest run's metrics.jsonl


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


def record(path: str | os.PathLike[str], *, follow: bool = True) -> bytes:
    """Read what a run or a sweep recorded in its folder so far; nothing if there is no such file.

    Raises InputError for a pipe, a device, and with follow=False for a link.
    """
    try:
        return read(path, MOST_RECORD, follow=follow)
    except FileNotFoundError:
        return b""
    except OSError as error:
        what = f"cannot read {path} ({error.strerror or error})"
        raise InputError(what, remedy="remove what lies there") from error


def appended(path: str | os.PathLike[str]) -> FileIO:
    """Open a file to add to its end, without a buffer; OSError for a link and for a pipe."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    return FileIO(os.open(path, flags, 0o666), "ab")


def check_regular(path: Path) -> None:
    """Raise OSError if `path`, or something below this folder, is neither a file nor a folder."""
    for each in (path, *path.rglob("*")):
        if not (each.is_file() or each.is_dir()):
            raise OSError(f"{each} is no regular file")


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

    with lock_file(path, 0o600) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock_file(path: Path, mode: int = 0o666) -> FileIO:
    """Open a file to lock and to write to, and create it if there is none.

    mode: who may read and write it, less the umask.

    Raises OSError if a link, another name of a file, or no regular file lies there.
    """
    if path.is_symlink():
        raise OSError(f"{path} is a link")
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    file = FileIO(os.open(path, flags, mode), "r+")
    state = os.fstat(file.fileno())
    problem = "" if stat.S_ISREG(state.st_mode) else "is no regular file"
    problem = "is another name of a file" if not problem and state.st_nlink > 1 else problem
    if problem:
        file.close()
        raise OSError(f"{path} {problem}")
    return file
