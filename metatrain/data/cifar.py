"""CIFAR-FS, which are the classes of CIFAR-100, and CIFAR-10: 32x32 RGB (Krizhevsky 2009)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metatrain import files
from metatrain.core import InputError
from metatrain.data import archives, published
from metatrain.data.images import ImageStore

SHAPE = (3, 32, 32)
MOST_BYTES = 1 << 28  # of an archive, unpacked; the published ones have 185 MB
HOME = "https://www.cs.toronto.edu/~kriz"


class Layout(NamedTuple):
    """The binary version of one of the two data sets."""

    name: str  # of the data set here
    title: str  # and there
    archive: str
    md5: str
    folder: str  # that it unpacks to
    files: tuple[str, ...]
    labels: int  # bytes before each image; the last one is the class
    names: str  # the file with the names of the classes, a line each
    pickled: str  # a file of the version that is not opened
    each: int  # images of a class


FS = Layout(
    "cifar_fs",
    "CIFAR-100",
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-binary",
    ("train.bin", "test.bin"),
    2,
    "fine_label_names.txt",
    "train",
    600,
)
TEN = Layout(
    "cifar10",
    "CIFAR-10",
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
    1,
    "batches.meta.txt",
    "data_batch_1",
    6000,
)


def read_fs(source: Path | None) -> ImageStore:
    """Read CIFAR-100 with the splits of Bertinetto et al. 2019: 64, 16 and 20 classes.

    source: as for `read`.
    """
    return read(source, FS)


def read_ten(source: Path | None) -> ImageStore:
    """Read CIFAR-10: all ten classes as a test, or six, two and two of them.

    source: as for `read`.
    """
    return read(source, TEN)


def read(source: Path | None, layout: Layout) -> ImageStore:
    """Read the images of training and test files, which are of the same classes, by class.

    source: the original archive in its binary version, or a folder that holds it or its files;
        None downloads it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            source = Path(temporary)
            url = f"{HOME}/{layout.archive}"
            archives.downloaded(url, layout.md5, source, layout.title, _remedy(layout))
        contents = _contents(source, layout)
    names = published.sorted_names(layout.name)
    if contents[layout.names].decode("utf-8", "replace").split() != names:
        raise archives.damaged(source, f"its classes are not those of {layout.title}", layout.names)
    size = layout.labels + int(np.prod(SHAPE))
    for name in layout.files:
        if not contents[name] or len(contents[name]) % size:
            reason = f"its {len(contents[name]):,} bytes are not images of {size:,}"
            raise archives.damaged(source, reason, name)
    everything = np.frombuffer(b"".join(contents[name] for name in layout.files), np.uint8)
    records = everything.reshape(-1, size)
    return published.by_class(
        layout.name,
        records[:, layout.labels :].reshape(-1, *SHAPE),
        records[:, layout.labels - 1].astype(np.int64),
        names,
        layout.each,
        source,
    )


def _contents(source: Path, layout: Layout) -> dict[str, bytes]:
    """Return the contents of the files that are needed, by their names."""
    wanted = (*layout.files, layout.names)
    if (source / layout.archive).is_file():
        source = source / layout.archive
    if source.is_file():
        found = archives.tarred(source, {*wanted, layout.pickled}.__contains__, MOST_BYTES)
    else:
        folder = source / layout.folder if (source / layout.folder).is_dir() else source
        found = {name: _read(folder / name) for name in wanted if (folder / name).exists()}
        found |= {layout.pickled: b""} if (folder / layout.pickled).exists() else {}
    missing = [name for name in wanted if name not in found]
    if missing and layout.pickled in found:
        raise InputError(
            f"{source} is the pickled version of {layout.title}, which is not opened",
            remedy=_remedy(layout),
        )
    if missing:
        raise InputError(
            f"{source} holds no {missing[0]} of {layout.title}",
            remedy=_remedy(layout),
        )
    return found


def _read(path: Path) -> bytes:
    try:
        return files.read(path, MOST_BYTES)
    except OSError as error:
        raise archives.damaged(path, error) from error


def _remedy(layout: Layout) -> str:
    accepted = f"the original {layout.archive} of {HOME}/cifar.html, or its unpacked folder"
    return published.where_to_put(layout.name, accepted)
