"""mini-ImageNet: 100 classes of ImageNet, 600 images of each, 84x84 RGB (Vinyals et al. 2016)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metatrain import files
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.data import archives, pixels, published
from metatrain.data.archives import Members
from metatrain.data.images import ImageStore

EACH = 600  # images of a class
SHAPE = (3, 84, 84)
MOST_FILES = 100 * EACH + 1000  # of a zip
MOST_BYTES = 1 << 24  # of an image or a list; those of ImageNet have up to 15 MB
MOST_ARCHIVE = 1 << 33  # bytes of a zip; the published ones have 3 GB
TABLES = ("train.csv", "val.csv", "test.csv")
PICKLES = (".pkl", ".pickle", ".npz", ".npy", ".tar", ".gz")
REMEDY = published.where_to_put(
    "mini_imagenet",
    "a folder or a zip of its images, as train, val and test with a folder for each class "
    "(n01532829, ...), as a folder for each class, or as images with Ravi's train.csv, val.csv and "
    "test.csv",
)


def read(source: Path | None, each: int = EACH) -> ImageStore:
    """Read the images with the splits of Ravi and Larochelle 2017: 64, 16 and 20 classes.

    source: a folder or a zip. Ravi's lists decide which class is in which split, whatever folder or
        table the images are in. Images of other classes are left out. Images become 84x84 pixels by
        Lanczos' filter, as in the code of Finn et al. 2017: their aspect ratio is lost.
    each: images that a class must have.
    """
    if source is None:
        raise InputError(
            "mini-ImageNet cannot be downloaded: its images are ImageNet's, which image-net.org "
            "gives to researchers",
            remedy=REMEDY,
        )
    names = published.sorted_names("mini_imagenet")
    with _members(source) as members:
        found = _classes(source, members, set(names))
        if not found:
            raise _refused(source, members)
        order = sorted(found, key=lambda name: (found[name], name))
        labels = np.array([names.index(found[name]) for name in order])
        published.counted(labels, names, each, source)  # before minutes of reading
        images = np.empty((len(order), *SHAPE), np.uint8)
        with awaiting(f"reading {len(order):,} images") as say:
            for number, name in enumerate(order):
                images[number] = _pixels(source, name, members[name]())
                if number % 1000 == 0:
                    say(f"reading {number:,} of {len(order):,} images")
    return published.by_class("mini_imagenet", images, labels, names, each, source)


@contextmanager
def _members(source: Path) -> Iterator[Members]:
    """Open a folder or a zip: the files in it that are not hidden."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.is_file())
        named = {path.relative_to(source).as_posix(): path for path in paths}
        yield {name: partial(_read, path) for name, path in named.items() if _is_shown(name)}
    elif source.suffix.lower() == ".zip":
        with archives.zipped(
            source,
            _is_shown,
            "files",
            most_files=MOST_FILES,
            most_bytes=MOST_BYTES,
            most_archive=MOST_ARCHIVE,
        ) as members:
            yield members
    elif source.exists():
        raise _refused(source, {source.name: bytes})
    else:
        raise InputError(f"there is no {source}", remedy=REMEDY)


def _is_shown(name: str) -> bool:
    """Whether a file's path has no hidden part and none of the Macintosh's."""
    hidden = any(part.startswith((".", "__")) for part in name.split("/"))
    return not hidden and not name.endswith("/")


def _read(path: Path) -> bytes:
    try:
        return files.read(path, MOST_BYTES)
    except OSError as error:
        raise archives.damaged(path, error) from error


def _classes(source: Path, members: Members, known: set[str]) -> dict[str, str]:
    """Return the class of each image: as the tables say, else the name of its folder."""
    tables = [name for name in members if PurePosixPath(name).name in TABLES]
    labels: dict[str, str] = {}
    for table in tables:
        labels |= _table(source, table, members[table]())
    found = {}
    for name in members:
        path = PurePosixPath(name)
        label = labels.get(path.name, path.parent.name)
        if path.suffix.lower() in pixels.FORMATS and label in known:
            found[name] = label
    return found


def _table(source: Path, name: str, data: bytes) -> dict[str, str]:
    """Return the class of each file in one of Ravi's tables."""
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), skipinitialspace=True)
        return {row["filename"].strip(): row["label"].strip() for row in rows}
    except (UnicodeError, csv.Error, KeyError, AttributeError) as error:
        reason = "it has no columns filename and label"
        raise archives.damaged(source, reason, name) from error


def _pixels(source: Path, name: str, data: bytes) -> NDArray[np.uint8]:
    try:
        image = pixels.read(data).image.convert("RGB")
    except InputError as error:
        raise InputError(
            f"{source} has an image that cannot be read, {name} ({error.what})",
            remedy=archives.AGAIN,
        ) from error
    resized = image.resize(SHAPE[:0:-1], Image.Resampling.LANCZOS)
    return np.asarray(resized).transpose(2, 0, 1)


def _refused(source: Path, members: Members) -> InputError:
    """Return the error about a source that holds no image of mini-ImageNet."""
    if packed := [name for name in members if PurePosixPath(name).suffix in PICKLES]:
        return InputError(
            f"{source} holds no images but {packed[0]}; pickles are not opened, since they can run "
            "any program",
            remedy="where you trust it, load it and save each of its arrays as an image "
            "CLASS/NUMBER.png by PIL's Image.fromarray, then pass --source with that folder",
        )
    return InputError(
        f"{source} holds no image of a class of mini-ImageNet",
        remedy=REMEDY,
    )
