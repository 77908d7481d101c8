"""Files of results and data: in a folder, or wherever pyarrow reaches, such as s3://bucket/runs."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from pyarrow import fs

from metatrain import disk
from metatrain.addresses import holds_secret, without_secrets
from metatrain.core import InputError

PATIENCE_S = 30  # of retries if a storage does not answer
MOST_NAME = 255  # bytes of a file's name
MOST_BYTES = 1 << 34  # of a file: parameters and the state of their optimizer, or a long log
CHUNK = 1 << 16  # bytes of a file that has more than it said
MOST_JSON = 1 << 20  # of a file that says where something is, or what a folder holds
# An address that lacks a slash, as one has that became a path.
SCHEME = re.compile(r"(s3|gs|gcs|abfss?|hdfs|https?|ftp|file):")
PAGES = ("http", "https", "ftp")
WITHOUT_FOLDERS = ("s3", "gcs", "abfs")  # these storages know only the names of files


def cache() -> Path:
    """Return the folder of this machine's data sets and compiled kernels."""
    named = os.environ.get("METATRAIN_CACHE")
    try:
        return local(named, "METATRAIN_CACHE") if named else Path.home() / ".cache" / "metatrain"
    except RuntimeError as error:
        raise InputError(
            "there is no home folder to keep data sets in", remedy="set METATRAIN_CACHE"
        ) from error


def is_remote(uri: str) -> bool:
    """Whether `uri` is an address and not a path."""
    return "://" in uri


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the pyarrow filesystem and path of a local path or of an address."""
    if not is_remote(uri):
        return fs.LocalFileSystem(), str(Path(checked(uri)).absolute())
    check_address(uri)
    # Google's storage retries for a quarter of an hour by default.
    google = uri.startswith(("gs://", "gcs://"))
    patience = f"?retry_limit_seconds={PATIENCE_S}" if google else ""
    with said(f"use {uri} as storage", "give a folder or an address such as s3://bucket/runs"):
        system, path = fs.FileSystem.from_uri(f"{uri}{patience}")
    return system, path


def check_address(uri: str) -> None:
    """Refuse an address that nothing can be at, or that holds a password or options."""
    scheme, _, rest = uri.partition("://")
    if ":" in unquote(rest.rpartition("@")[0]):
        raise _password()
    if "?" in rest:
        raise InputError(
            f"{without_secrets(uri)} has options after a '?', which the files below it could not "
            "have",
            remedy="give them in the environment, such as AWS_ENDPOINT_URL",
        )
    host = rest if scheme in ("file", "hdfs") else rest.partition("/")[0]
    if (
        not re.fullmatch(r"[A-Za-z][\w+.-]*", scheme)
        or not (host if scheme == "file" else host.strip("/"))
        or set(host) & set("[]")
    ):
        raise InputError("an address", got=uri, expected="one such as s3://bucket/runs")
    if scheme in PAGES:
        raise InputError(
            f"{without_secrets(uri)} is a page's address, where no files are read or written",
            remedy="copy what lies there to a folder of this machine, or give an address such as "
            "s3://bucket/runs",
        )


def _password() -> InputError:
    return InputError(
        "a storage address holds a password, which would be shown and recorded",
        remedy="give its keys in the environment",
    )


def local(place: str | Path, what: str) -> Path:
    """Return the path of a file or folder that must be on this machine; refuse an address.

    what: the argument that named it.
    """
    if is_remote(str(place)) or SCHEME.match(str(place)):
        raise InputError(
            what,
            got=str(place),
            expected="a path on this machine, since no address is read here",
            remedy="copy what lies there to this machine",
        )
    return Path(place)


def checked(place: str) -> str:
    """Return a path or an address without slashes at its end; refuse one that cannot be meant."""
    if is_remote(place):
        check_address(place)
        return place.rstrip("/")
    if holds_secret(place):
        raise _password()
    if scheme := SCHEME.match(place):
        like = "s3" if scheme[1] in PAGES else scheme[1]
        expected = f"an address such as {like}://bucket/runs, or a path"
        raise InputError("a place", got=place, expected=expected)
    if not place or "\0" in place or place.split("/")[0] == "~":
        raise InputError(
            "a path",
            got=place,
            expected="that of a folder or file, without ~",
            remedy="write it out",
        )
    if max(len(os.fsencode(part)) for part in place.split("/")) > MOST_NAME:
        raise InputError("a path", got=place, expected=f"names of at most {MOST_NAME} bytes")
    return place.rstrip("/") or "/"


def is_file(uri: str) -> bool:
    """Whether `uri` is a file."""
    system, path = filesystem(uri)
    with _reached(uri):
        return bool(system.get_file_info(path).type == fs.FileType.File)


def listing(uri: str) -> list[fs.FileInfo]:
    """List the files and folders directly in a folder; none if there is no such folder."""
    system, path = filesystem(uri)
    with _reached(uri):
        found: list[fs.FileInfo] = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return found


def read(uri: str, most: int = MOST_BYTES) -> bytes:
    """Read a whole file; FileNotFoundError if there is none, InputError above `most` bytes."""
    system, path = filesystem(uri)
    with _reached(uri):
        info = system.get_file_info(path)
    if info.type != fs.FileType.File:
        raise FileNotFoundError(f"there is no {uri}")
    size, data = info.size or 0, b""
    if size <= most:
        with _reached(uri), system.open_input_stream(path) as stream:
            data = stream.read(size)  # memory for so many bytes is taken at once
            while len(data) <= most and (more := stream.read(CHUNK)):  # it grows
                data += more
        size = len(data)
    if size > most:
        raise InputError(f"{uri} has {size:,} bytes", expected=f"at most {most:,}")
    return data


def write(uri: str, data: bytes) -> None:
    """Write a whole file, so that readers see all of it or nothing; create its folder."""
    system, path = filesystem(uri)
    check = "address, its keys in the environment" if is_remote(uri) else "folder"
    with said(f"write {uri}", f"check its {check} and its free space, or give another place"):
        if isinstance(system, fs.LocalFileSystem):
            disk.write(Path(path), data)
            return
        if system.type_name not in WITHOUT_FOLDERS:
            system.create_dir(path.rpartition("/")[0], recursive=True)
        with system.open_output_stream(path) as stream:  # the file appears when it is closed
            stream.write(data)


def remove(uri: str) -> None:
    """Remove a file, or a folder with all its contents; do nothing if there is neither."""
    system, path = filesystem(uri)
    with _reached(uri):
        if isinstance(system, fs.LocalFileSystem):
            disk.remove(Path(path))
            return
        kind = system.get_file_info(path).type
        if kind == fs.FileType.Directory:
            system.delete_dir(path)
        elif kind == fs.FileType.File:
            system.delete_file(path)


class Folder:
    """The folder of a run or a sweep: local, or a local copy that `sync` sends to an address.

    `folder / name` is a local path to read and write. At first the copy has the files of the
    address's folder, but not the folders in it. `str(folder)` is the path or the address.
    """

    def __init__(self, uri: str | Path) -> None:
        self.uri = checked(str(uri))
        self._synced: dict[Path, tuple[int, int]] = {}  # time and size when copied

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
            # A hidden file, such as a lease, is not for copies.
            if info.type == fs.FileType.File and not info.base_name.startswith("."):
                (here / info.base_name).write_bytes(read(f"{self.uri}/{info.base_name}"))
        return here

    def create(self) -> None:
        """Create the local folder if it does not exist."""
        self._here.mkdir(parents=True, exist_ok=True)

    def sync(self) -> None:
        """Copy new and changed files to the address, where they outlive this machine."""
        if not is_remote(self.uri):
            return
        states = {path: path.stat() for path in self._here.rglob("*") if path.is_file()}
        now = {path: (state.st_mtime_ns, state.st_size) for path, state in states.items()}
        changed = [path for path in now if self._synced.get(path) != now[path]]
        # A manifest says that all other files are there: it goes first and comes last.
        manifests = [path for path in changed if path.name == "manifest.json"]
        for path in manifests:
            remove(f"{self.uri}/{path.relative_to(self._here)}")
        for path in [*(path for path in changed if path not in manifests), *manifests]:
            write(f"{self.uri}/{path.relative_to(self._here)}", path.read_bytes())
            self._synced[path] = now[path]

    def names(self, pattern: str) -> list[str]:
        """Return the paths or addresses of the files that match, sorted."""
        return sorted(
            f"{self.uri}/{path.relative_to(self._here)}" for path in self._here.glob(pattern)
        )


def _reached(uri: str) -> AbstractContextManager[None]:
    check = "address, and its keys in the environment" if is_remote(uri) else "path"
    return said(f"reach {uri}", f"check its {check}")


@contextmanager
def said(what: str, remedy: str) -> Iterator[None]:
    """Turn the errors of a storage or a disk into one sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot {what} ({reason})", remedy=remedy) from error
