"""Files that are sent with a job: what a user's own families read, at the same relative paths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metatrain.core import InputError
from metatrain.storage import local

MOST_BYTES = 50 << 20  # of all of them: Ray takes jobs of up to 100 MiB


def sent_files(given: Sequence[str]) -> dict[str, Path]:
    """Return the files at and below these paths, by path relative to this folder.

    Hidden files in folders are left out. Raises InputError if a path names no file, if it leads out
    of this folder, or if the files are too large.
    """
    here = Path.cwd().resolve()
    found: dict[str, Path] = {}
    for path in given:
        if not path:
            raise InputError(
                "--send names no file", remedy="give one, or a folder, below this folder"
            )
        place = Path(os.path.normpath(local(path, "--send").absolute()))
        if not place.is_relative_to(here):  # such as one below a link to this folder
            place = _real(path, place.parent) / place.name
        if not place.is_relative_to(here):
            raise InputError(
                f"--send {path} lies outside of this folder, {here}",
                remedy="send the job from a folder above it",
            )
        files = {
            file.relative_to(here).as_posix(): file
            for file in _files(path, place, here, frozenset())
        }
        if not files:
            raise InputError(
                f"--send {path} holds no files", remedy="leave it out, or put files into it"
            )
        found |= files
    _check_size(found)
    return found


def is_sent(place: str, sent: Mapping[str, Path]) -> bool:
    """Whether a relative path is that of a sent file, or of a folder with sent files."""
    name = Path(os.path.normpath(place)).as_posix()
    return name in sent or any(other.startswith(f"{name}/") for other in sent)


def _files(given: str, place: Path, here: Path, above: frozenset[Path]) -> Iterator[Path]:
    """Yield the files at and below a place, of which `above` are the folders that hold it."""
    shown = given if not above else place.relative_to(here).as_posix()
    real = _real(given, place)
    if not real.is_relative_to(here):
        raise InputError(
            f"--send {given}: {shown} is a link to {real}, outside of this folder",
            remedy="copy it here",
        )
    if real in above:
        raise InputError(
            f"--send {given}: {shown} is a link to a folder that holds it", remedy="remove the link"
        )
    if place.is_dir():
        for child in sorted(place.iterdir()):
            if not child.name.startswith(".") and child.name != "__pycache__":
                yield from _files(given, child, here, above | {real})
    elif place.is_file():
        yield place
    elif not place.exists():
        link = f"is a link to {real}, which does not exist"
        missing = link if place.is_symlink() else "does not exist"
        raise InputError(f"--send {given}: {shown} {missing}", remedy="correct the path")
    else:
        raise InputError(
            f"--send {given}: {shown} is neither a file nor a folder", remedy="send regular files"
        )


def _real(given: str, place: Path) -> Path:
    """Return the path at the end of all links."""
    try:
        return place.resolve()
    except RuntimeError:  # of Python before 3.13
        raise InputError(
            f"--send {given}: {place} is a link that leads to itself", remedy="remove the link"
        ) from None


def _check_size(files: Mapping[str, Path]) -> None:
    sizes = {name: file.stat().st_size for name, file in files.items()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"--send names {total / 2**20:.1f} MiB, and at most {MOST_BYTES >> 20} are sent; the "
            f"largest file is {largest}",
            remedy="push images with `metatrain data push`, or put the file on a disk that all "
            "nodes see",
        )
