"""Data sets that lie elsewhere: each machine copies one into its cache once.

The processes of a machine memory-map the copy.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pyarrow import fs

from metatrain import files, storage
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.data import images
from metatrain.data.stored import MOST_MANIFEST, Manifest, parsed_manifest

CHUNK = 8 << 20  # bytes asked for at once


def is_elsewhere(name: str) -> bool:
    """Whether `name` is a place, and not the name of a data set in the cache."""
    return "/" in name


def fetch(uri: str, checksum: str | None = None) -> Path:
    """Return the folder in the cache that has the data set at `uri`.

    uri: a folder, or an address such as s3://bucket/omniglot.
    checksum: of the data set; if the cache has it, no network is needed.

    One process of a machine copies, and the others wait. An interrupted copy is resumed. Raises
    InputError if what came is not what was stored.
    """
    uri = storage.checked(uri)
    name = Path(uri).name
    if checksum is not None and _is_whole(_place(name, checksum)):
        return _place(name, checksum)
    data, manifest = _stored(uri)
    folder = _place(name, manifest.content)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(folder.with_name(f".{folder.name}.lock")):
        if not _is_whole(folder):
            _copy(uri, folder, data, manifest)
    return folder


def push(store: images.ImageStore, uri: str) -> None:
    """Copy a data set to `uri`: an empty or new place, or that of an earlier data set.

    The earlier one stays until the copy is whole. The manifest comes last. A reader that comes
    between the two files refuses them, since the checksum differs.
    """
    folder = images.folder_of(store.name)
    system, path = storage.filesystem(uri)
    local = isinstance(system, fs.LocalFileSystem)
    if local:
        path = uri = str(Path(path).resolve())
    uri, path = uri.rstrip("/") or "/", path.rstrip("/")
    _check_target(uri, Path(path) if local else None, folder)
    # A storage shows a file only once it is whole.
    arriving = f"{path}/images.arrow.partial" if local else f"{path}/images.arrow"
    try:
        if system.type_name not in storage.WITHOUT_FOLDERS:
            system.create_dir(path, recursive=True)
        fs.copy_files(str(folder / "images.arrow"), arriving, fs.LocalFileSystem(), system)
        if local:
            system.move(arriving, f"{path}/images.arrow")
    except OSError as error:
        raise InputError(
            f"cannot write {uri} ({error})", remedy="check its address, its keys and its room"
        ) from error
    finally:
        if local:
            Path(arriving).unlink(missing_ok=True)
    storage.write(f"{uri}/manifest.json", (folder / "manifest.json").read_bytes())


def _check_target(uri: str, path: Path | None, folder: Path) -> None:
    """Refuse to push the data set in `folder` onto itself, into the cache, or among other files."""
    for place in (path, *path.parents) if path else ():
        if any(place.exists() and place.samefile(own) for own in (folder, storage.cache())):
            raise InputError(
                f"{uri} is in this machine's data cache, where the data set is already",
                remedy=f"give a folder outside of {storage.cache()}, or an address",
            )
    if storage.is_file(uri):
        raise InputError(f"{uri} is a file", remedy="give a folder for the data set")
    names = {info.base_name.removesuffix(".partial") for info in storage.listing(uri)}
    if not names or ("images.arrow" in names and names <= {"images.arrow", "manifest.json"}):
        return  # nothing, or what a push left
    try:
        _stored(uri)
    except InputError as error:
        raise InputError(
            f"{uri} holds {', '.join(sorted(names)[:3])} and no data set",
            remedy="give a new folder, an empty one, or one that a data set was pushed to",
        ) from error


def _place(name: str, content: str) -> Path:
    # By content: a data set that changes there is another one here.
    return storage.cache() / "fetched" / f"{name}-{content}"


def _is_whole(folder: Path) -> bool:
    return (folder / "manifest.json").exists()


def _stored(uri: str) -> tuple[bytes, Manifest]:
    """Return the manifest of the data set at `uri`, as bytes and as read."""
    try:
        data = storage.read(f"{uri}/manifest.json", MOST_MANIFEST)
    except FileNotFoundError:
        raise InputError(
            f"{uri} holds no data set (no manifest.json)",
            remedy=f"put one there with `metatrain data push NAME {uri}`",
        ) from None
    try:
        return data, parsed_manifest(data)
    except InputError as error:
        raise InputError(
            f"{uri}/manifest.json {error.what}", remedy="push the data set again"
        ) from error


def _copy(uri: str, folder: Path, data: bytes, manifest: Manifest) -> None:
    """Copy the images to a partial file, and rename it once it is whole.

    An interrupted copy keeps the partial file.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(mode=0o700, exist_ok=True)
    path = partial / "images.arrow"
    if partial.is_symlink() or path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{partial} is not what a fetch left", remedy="remove it")
    system, source = storage.filesystem(f"{uri}/images.arrow")
    if not storage.is_file(f"{uri}/images.arrow"):
        raise InputError(f"{uri} holds no images.arrow", remedy="push the data set again")
    done = path.stat().st_size if path.exists() else 0
    here = f", of which {done / 1e6:.1f} are here" if done else ""
    try:
        with (
            awaiting(f"fetching {uri} ({manifest.bytes / 1e6:.1f} MB){here}"),
            system.open_input_file(source) as stream,
            path.open("ab") as file,
        ):
            stream.seek(min(done, manifest.bytes))
            # One byte more than there should be makes the checksum differ, as all others would.
            while chunk := stream.read(min(CHUNK, max(0, manifest.bytes + 1 - file.tell()))):
                file.write(chunk)
    except OSError as error:
        raise InputError(
            f"cannot fetch {uri} ({error})",
            remedy="run the same command again; it resumes with what is here",
        ) from error
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != manifest.sha256:
        shutil.rmtree(partial)
        raise InputError(
            f"{uri} is not what its manifest says (its checksum differs)",
            remedy="push the data set again",
        )
    (partial / "manifest.json").write_bytes(data)
    partial.rename(folder)
