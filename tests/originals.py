"""Published data sets in their original layouts, with few images."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from metatrain.data import cifar, published

EACH = {"cifar_fs": 6, "cifar10": 6, "fashion_mnist": 7, "mini_imagenet": 2}


def tar(path: Path, contents: dict[str, bytes]) -> Path:
    """A tar.gz as the authors' are: all files in one folder."""
    with tarfile.open(path, "w:gz", compresslevel=1) as file:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def records(layout: cifar.Layout, classes: int, each: int) -> np.ndarray:
    """As in an original file: bytes of labels, then 32x32 values of red, green and blue.

    The class is the red, the number in the class the green, and the row the blue.
    """
    found = np.zeros((classes * each, layout.labels + 3072), np.uint8)
    label, number = (grid.flatten() for grid in np.mgrid[:classes, :each])
    found[:, layout.labels - 1] = label
    red, green, blue = np.split(found[:, layout.labels :], 3, axis=1)
    red[:], green[:], blue[:] = label[:, None], number[:, None], np.arange(32).repeat(32)
    return np.random.default_rng(0).permutation(found)


def cifar_files(layout: cifar.Layout) -> dict[str, bytes]:
    """All files of the binary version, with few images, by their paths in the archive."""
    names = published.sorted_names(layout.name)
    parts = np.array_split(records(layout, len(names), EACH[layout.name]), len(layout.files))
    files = {name: part.tobytes() for name, part in zip(layout.files, parts, strict=True)}
    files |= {layout.names: "\n".join([*names, "", ""]).encode(), "readme.html": b"<html>"}
    return {f"{layout.folder}/{name}": data for name, data in files.items()}


def idx(folder: Path, packed: bool) -> None:
    """Four files in idx format, with two images of a class in the second part."""
    for part, each in (("train", EACH["fashion_mnist"] - 2), ("t10k", 2)):
        labels = np.tile(np.arange(10, dtype=np.uint8), each)
        images = np.repeat(labels, 28 * 28)
        for kind, shape, data in (
            ("images", (len(labels), 28, 28), images),
            ("labels", (len(labels),), labels),
        ):
            header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
            path = folder / f"{part}-{kind}-idx{len(shape)}-ubyte"
            data = header + data.tobytes()
            path.write_bytes(data)
            if packed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data, 1))
                path.unlink()


def jpegs(layout: str) -> dict[str, bytes]:
    """The files of mini-ImageNet in one of its layouts, with two small images of each class."""
    files = {}
    tables: dict[str, list[str]] = {}
    for split, names in published.lists("mini_imagenet").items():
        tables[split] = ["filename,label"]
        for name in names:
            for number in range(EACH["mini_imagenet"]):
                image = io.BytesIO()
                Image.new("RGB", (20, 12), (int(name[1:]) % 251, 0, number)).save(image, "PNG")
                place = {
                    "splits": f"mini/{split}/{name}/{number}.png",
                    "classes": f"{name}/{number}.png",
                    "tables": f"images/{name}{number:08d}.png",
                }[layout]
                files[place] = image.getvalue()
                tables[split].append(f"{name}{number:08d}.png,{name}")
    if layout == "tables":
        files |= {f"{split}.csv": "\n".join(rows).encode() for split, rows in tables.items()}
    return files | {"._hidden.png": b"", "__MACOSX/x.png": b"", "readme.txt": b"x"}


def laid(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path
