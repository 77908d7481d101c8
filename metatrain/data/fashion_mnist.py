"""Fashion-MNIST: 70,000 pictures of ten kinds of clothes, 28x28 grey (Xiao et al. 2017)."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metatrain.core import InputError
from metatrain.data import archives, published
from metatrain.data.images import ImageStore

NAMES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]  # by label
EACH = 7000  # images of a class
SIDE = 28
MOST_BYTES = 1 << 26  # of a file, unpacked; the published ones have up to 47 MB
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist
PARTS = ("train", "t10k")
REMEDY = published.where_to_put(
    "fashion_mnist",
    "a folder that holds {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte, "
    f"perhaps with .gz, such as {DEBIAN} of Debian's package dataset-fashion-mnist",
)


def read(source: Path | None, each: int = EACH) -> ImageStore:
    """Read the images of training and test files, which are of the same classes, by class.

    source: a folder of the four idx files, compressed or not; None: that of Debian's package if it
        is installed, else they are downloaded.
    each: images that a class must have.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if source is None and DEBIAN.is_dir():
            source = DEBIAN
        elif source is None:
            source = Path(temporary)
            _download(source)
        images = [_idx(source, f"{part}-images-idx3-ubyte", 3) for part in PARTS]
        labels = [_idx(source, f"{part}-labels-idx1-ubyte", 1) for part in PARTS]
    for part, pictures, numbers in zip(PARTS, images, labels, strict=True):
        if pictures.shape != (len(numbers), SIDE, SIDE):
            reason = f"it has images of shape {pictures.shape} and {len(numbers)} labels"
            raise archives.damaged(source, reason, part)
    return published.by_class(
        "fashion_mnist",
        np.concatenate(images)[:, None],
        np.concatenate(labels).astype(np.int64),
        NAMES,
        each,
        source,
    )


def _idx(source: Path, name: str, dimensions: int) -> NDArray[Any]:
    """Read a file of bytes in idx format, compressed or not."""
    paths = [source / name, source / f"{name}.gz"]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise InputError(
            f"{source} holds neither {name} nor {name}.gz of Fashion-MNIST",
            remedy=REMEDY,
        )
    data = archives.inflated(path, MOST_BYTES)
    start = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:start], ">u4")) if len(data) >= start else ()
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != start + math.prod(shape):
        raise archives.damaged(path, f"it is no idx file of bytes in {dimensions} dimensions")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _download(folder: Path) -> None:
    from torchvision.datasets import FashionMNIST

    for name, md5 in FashionMNIST.resources:
        url = f"{FashionMNIST.mirrors[0]}{name}"
        archives.downloaded(url, md5, folder, "Fashion-MNIST", REMEDY)
