"""Where results and data lie: a folder, or whatever pyarrow knows, such as s3://bucket/runs or
gs://bucket/runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from metatrain.core import InputError

PATIENCE_S = 30  # with a storage that does not answer
WITHOUT_FOLDERS = ("s3", "gcs", "abfs")  # a file's name is all there is


def cache() -> Path:
    """Where this machine keeps data sets and what was compiled for it."""
    return Path(os.environ.get("METATRAIN_CACHE") or Path.home() / ".cache" / "metatrain")


def is_remote(uri: str) -> bool:
    """Whether `uri` is an address and no path."""
    return "://" in uri


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The pyarrow filesystem and path of a local path or an address such as s3://bucket/runs."""
    if not is_remote(uri):
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    check_address(uri)
    patience = (
        f"?retry_limit_seconds={PATIENCE_S}" if uri.startswith(("gs://", "gcs://")) else ""
    )  # or a quarter hour
    with _said(f"use {uri} as storage", "give a folder or an address such as s3://bucket/runs"):
        system, path = fs.FileSystem.from_uri(f"{uri}{patience}")
    return system, path


def check_address(uri: str) -> None:
    """Refuse an address that holds more than an address."""
    parts = urlsplit(uri)
    if parts.password is not None:
        raise InputError(
            "a storage address holds a password, which would be shown and recorded",
            remedy=("give its keys in the environment"),
        )
    if parts.query:
        raise InputError(
            f"{uri} has options behind a '?', which what lies below it could not have",
            remedy=("give them in the environment, such as AWS_ENDPOINT_URL"),
        )


def is_file(uri: str) -> bool:
    """Whether there is a file."""
    system, path = filesystem(uri)
    with _reached(uri):
        return bool(system.get_file_info(path).type == fs.FileType.File)


def listing(uri: str) -> list[fs.FileInfo]:
    """What a folder holds, not what its folders hold; nothing where there is none."""
    system, path = filesystem(uri)
    with _reached(uri):
        found: list[fs.FileInfo] = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return found


def read(uri: str) -> bytes:
    """A whole file; FileNotFoundError where there is none."""
    system, path = filesystem(uri)
    if not is_file(uri):
        raise FileNotFoundError(f"there is no {uri}")
    with _reached(uri), system.open_input_stream(path) as stream:
        data: bytes = stream.read()
    return data


def write(uri: str, data: bytes) -> None:
    """A whole file, in a folder that is made where it is missing: readers see all of it or
    nothing.
    """
    system, path = filesystem(uri)
    folder, _, _ = path.rpartition("/")
    with _said(
        f"write {uri}",
        "check its address, its keys in the environment and its room, or give another place",
    ):
        if system.type_name not in WITHOUT_FOLDERS:
            system.create_dir(folder, recursive=True)
        whole = isinstance(system, fs.LocalFileSystem)  # elsewhere a file appears when it is closed
        with system.open_output_stream(f"{path}.partial" if whole else path) as stream:
            stream.write(data)
        if whole:
            system.move(f"{path}.partial", path)


def remove(uri: str) -> None:
    """A file, or a folder and all that it holds, or nothing where there is none."""
    system, path = filesystem(uri)
    with _reached(uri):
        kind = system.get_file_info(path).type
        if kind == fs.FileType.Directory:
            system.delete_dir(path)
        elif kind == fs.FileType.File:
            system.delete_file(path)


class Folder:
    """The folder of a run or a sweep: a local one, or an address with a local folder that is copied
    there by `keep`.

    `folder / name` is a path that can be read and written here; the files of an address's folder,
    though not its folders, are here from the beginning. `str(folder)` is what people and
    `metatrain` find it by.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = str(uri).rstrip("/")
        self._kept: dict[Path, tuple[int, int]] = {}  # the files as they were when they were copied

    def __str__(self) -> str:
        return self.uri

    def __truediv__(self, name: str | Path) -> Path:
        return self._here / name

    @cached_property
    def _here(self) -> Path:
        if not is_remote(self.uri):
            return Path(self.uri)
        self._scratch = tempfile.TemporaryDirectory(prefix="metatrain-")
        here = Path(self._scratch.name)
        for info in listing(self.uri):
            if info.type == fs.FileType.File:
                (here / info.base_name).write_bytes(read(f"{self.uri}/{info.base_name}"))
        return here

    def make(self) -> None:
        """Make the folder where it is a local one that is not there yet."""
        self._here.mkdir(parents=True, exist_ok=True)

    def keep(self) -> None:
        """Copy what is new or has changed to where it can be found when this machine is gone."""
        if not is_remote(self.uri):
            return
        states = {path: path.stat() for path in self._here.rglob("*") if path.is_file()}
        now = {path: (state.st_mtime_ns, state.st_size) for path, state in states.items()}
        changed = [path for path in now if self._kept.get(path) != now[path]]
        manifests = [
            path for path in changed if path.name == "manifest.json"
        ]  # which say that the rest is there
        for path in manifests:
            remove(f"{self.uri}/{path.relative_to(self._here)}")
        for path in [*(path for path in changed if path not in manifests), *manifests]:
            write(f"{self.uri}/{path.relative_to(self._here)}", path.read_bytes())
            self._kept[path] = now[path]

    def names(self, pattern: str) -> list[str]:
        """The files that match, by what people find them."""
        return sorted(
            f"{self.uri}/{path.relative_to(self._here)}" for path in self._here.glob(pattern)
        )


def _reached(uri: str) -> AbstractContextManager[None]:
    return _said(f"reach {uri}", "check its address, and its keys in the environment")


@contextmanager
def _said(what: str, remedy: str) -> Iterator[None]:
    """A storage's errors as one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot {what} ({reason})", remedy=f"{remedy}") from error
