"""Local files that outlive a power cut: a name appears after its contents are on the disk.

A disk may lose whatever was not synced, in any order: the contents of a file, and the names in a
folder. `write` and `remove` have nothing left to lose when they return. They consist of the steps
`put`, `sync`, `rename`, `make_folder`, `unlink` and `remove_tree`.
"""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # a file system that cannot sync folders


def write(path: Path, data: bytes) -> None:
    """Write a whole file, so that readers see all of it or nothing; create its folder."""
    partial = path.with_name(f"{path.name}.partial")
    _make_folders(path.parent)
    try:
        put(partial, data)
        sync(partial)
        rename(partial, path)
    except BaseException:
        with suppress(OSError):  # it may be what fills the disk
            unlink(partial)
        raise
    sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all its contents; do nothing if there is neither."""
    if path.is_dir() and not path.is_symlink():
        remove_tree(path)
    elif path.is_symlink() or path.exists():
        unlink(path)
    else:
        return
    sync(path.parent)


def put(path: Path, data: bytes) -> None:
    """Write a file in place; OSError if a link or a pipe lies there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o666), "wb") as file:
        file.write(data)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def rename(path: Path, to: Path) -> None:
    """Give a file another name, in place of the file that had it."""
    path.replace(to)


def make_folder(path: Path) -> None:
    """Create a folder in one that exists."""
    path.mkdir(exist_ok=True)


def unlink(path: Path) -> None:
    """Remove a file's name."""
    path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a folder with all its contents."""
    shutil.rmtree(path)


def _make_folders(path: Path) -> None:
    if path.is_dir():
        return
    if path != path.parent:
        _make_folders(path.parent)
    make_folder(path)
    sync(path.parent)
