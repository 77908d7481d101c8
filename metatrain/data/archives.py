"""Archives that anybody may have prepared: sizes are checked before a file of theirs is read."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from metatrain import files
from metatrain.core import InputError

AGAIN = "get it again"
MOST_AT_ONCE = 1 << 26  # bytes of a read: a damaged zip asks for any number
CHUNK = 1 << 20  # bytes of a read of our own
MOST_MEMBERS = 1000  # of a tar, which is read from its start to its end, if nobody asks for more
GZIP = b"\x1f\x8b"  # how such a file begins

Members = dict[str, Callable[[], bytes]]  # functions that read files, by their paths


def inflated(path: Path, most: int) -> bytes:
    """Read a file, decompressed if it is gzip, of at most `most` bytes."""
    try:
        with files.opened(path, most) as file:
            packed = file.peek(2)[:2] == GZIP
            data = gzip.GzipFile(fileobj=file).read(most + 1) if packed else file.read()
        if len(data) > most:
            raise ValueError(f"it unpacks to more than {most:,} bytes")
    except Exception as error:  # gzip raises several kinds for a broken file
        raise damaged(path, error) from error
    return data


def tarred(
    path: Path, kept: Callable[[str], bool], most: int, most_members: int = MOST_MEMBERS
) -> dict[str, bytes]:
    """Read the regular files whose names are `kept` in a tar or tar.gz, whatever their folders.

    most: bytes of the whole, unpacked.
    most_members: files of the whole.
    """
    data = inflated(path, most)
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= most_members:
                    raise ValueError(f"it has more than {most_members:,} files")
                name = member.name.rpartition("/")[2]
                if kept(name) and member.isreg() and not member.issparse():
                    content = archive.extractfile(member)
                    found[name] = content.read() if content else b""
    except Exception as error:  # tarfile raises nearly anything for a broken archive
        raise damaged(path, error) from error
    return found


@contextmanager
def zipped(
    path: Path,
    kept: Callable[[str], bool],
    kind: str,
    *,
    most_files: int,
    most_bytes: int,
    most_archive: int,
) -> Iterator[Members]:
    """Open a zip: the files in it whose paths are `kept`, which are checked before one is read.

    kind: what these files are, in the plural.
    most_files: of this kind.
    most_bytes: of one of them.
    most_archive: bytes of the zip.
    """
    name = ""
    try:
        archive = zipfile.ZipFile(_Careful(files.opened(path, most_archive).detach()))
        members = [item for item in archive.infolist() if kept(item.filename)]
        if len(members) > most_files:
            raise ValueError(f"it has {len(members):,} {kind}, and at most {most_files:,} are read")
        for item in members:
            name = item.filename
            if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError("it is not compressed by deflate")  # others unpack without bound
            if item.file_size > most_bytes:
                raise ValueError(
                    f"it has {item.file_size:,} bytes, and at most {most_bytes:,} are read"
                )
    except Exception as error:  # zipfile raises nearly anything for a broken archive
        raise damaged(path, error, name) from error
    with archive:
        yield {item.filename: partial(_member, path, archive, item) for item in members}


def _member(path: Path, archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(item) as file:
            return b"".join(iter(lambda: file.read(CHUNK), b""))
    except Exception as error:
        raise damaged(path, error, item.filename) from error


class _Careful(io.BufferedReader):
    """A file that no single read can take whole into memory."""

    def read(self, size: int | None = -1) -> bytes:
        size = MOST_AT_ONCE if size is None or size < 0 else size
        if size > MOST_AT_ONCE:
            raise ValueError(f"it asks for {size:,} bytes at once")
        return super().read(size)


def damaged(path: Path, error: Exception | str, member: str = "") -> InputError:
    """Return the error about a file or an archive, or about a member of it."""
    strerror = getattr(error, "strerror", None)
    reason = " ".join(str(strerror or error).split()) or type(error).__name__
    where = f" in {member}" if member else ""
    return InputError(f"{path} is damaged{where} ({reason})", remedy=AGAIN)


def downloaded(url: str, md5: str, folder: Path, what: str, remedy: str) -> None:
    """Download a file into a folder and verify it.

    what: the data set's name. remedy: what to do if that fails.
    """
    from torchvision.datasets.utils import download_url

    try:
        download_url(url, folder, md5=md5)
    except Exception as error:  # of the network, of the disk, or a wrong checksum
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{what} could not be downloaded ({reason})", remedy=remedy) from error
