"""Any folder of class folders as a data set: one's own images."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageChops

from metatrain.core import InputError, Split
from metatrain.data import pixels
from metatrain.data.images import ImageStore, Rotations, Scheme, twins
from metatrain.data.pixels import FORMATS, Depth
from metatrain.data.splits import SPLITS, given_splits, refuse_deeper_splits, shuffled_splits
from metatrain.names import decoded, few, undecoded
from metatrain.storage import local

# Of a side, if no size is asked for; 84 is that of mini-ImageNet.
FEWEST_PIXELS, MOST_PIXELS = 16, 84
MOST_ASKED = 1024
FEWEST_CLASSES = 4  # two to train on and two to test on
NO_IMAGE = f"is none of {', '.join(sorted(FORMATS))}"
GREY = 16  # how far apart the channels of a grey image may be, of 255: JPEG colours greys a little


class Report(NamedTuple):
    """What an import did with the files of a folder."""

    taken: int
    resized: int
    refused: list[tuple[str, str]]  # (file or folder, why)
    notes: list[str]  # what else somebody should know, such as how numbers became pixels
    twins: list[tuple[str, str]]  # (an image of the same pixels as an earlier one, that one)


class _Found(NamedTuple):
    path: Path
    width: int
    height: int
    coloured: bool
    highest: int | None  # as pixels.Read
    scaling: str | None


def read_folder(
    name: str,
    source: str | Path,
    size: int | None = None,
    least: int = 2,
    watch: Callable[[list[Path]], Iterable[Path]] = iter,
) -> tuple[ImageStore, Report]:
    """Read the images of all folders in `source`: each folder with images is a class.

    name: of the data set. A class's name is the path of its folder.
    size: the images become `size` x `size` pixels; None: the median of their shorter sides, between
        16 and 84. They are grey if no image has colours.
    least: classes with fewer images are refused, as are files that cannot be read.
    watch: sees the files while they are read.

    If `source` has folders train, test and perhaps val (or training, valid, dev, eval ...) with the
    classes in them, these are the splits; otherwise the classes are shuffled into splits. The
    highest value of all grey images of 16 bits decides how many bits they use.
    """
    if size is not None and not FEWEST_PIXELS <= size <= MOST_ASKED:
        raise InputError(
            "--size", got=size, expected=f"between {FEWEST_PIXELS} and {MOST_ASKED} pixels"
        )
    if least < 2:
        raise InputError(
            "--least",
            got=least,
            expected="at least 2 images, one to learn from and one to test on",
        )
    source = local(source, "--source")
    classes, refused = _scan(source, watch)
    for class_name in [c for c, images in classes.items() if len(images) < least]:
        images = len(classes.pop(class_name))
        refused.append((class_name, f"has {images} images, at least {least} are needed"))
    if len(classes) < FEWEST_CLASSES:
        some = "; ".join(f"{what} {why}" for what, why in refused[:3])
        raise InputError(
            f"{source} has {len(classes)} class folders of {least} or more images, and at least "
            f"{FEWEST_CLASSES} are needed{f' (refused: {some})' if refused else ''}",
            remedy="give a folder with a folder of images for each class",
        )
    refuse_deeper_splits(source, list(classes))
    given, notes = given_splits(list(classes))
    everything = [found for members in classes.values() for found in members]
    side = size or int(
        np.clip(median(min(f.width, f.height) for f in everything), FEWEST_PIXELS, MOST_PIXELS)
    )
    shape = (3 if any(f.coloured for f in everything) else 1, side, side)
    names = [decoded(n.partition("/")[2] if given else n) for n in classes]
    bits, scaled = _depth(source, everything)
    none: dict[Split, Rotations] = dict.fromkeys(SPLITS, "none")
    splits = given or shuffled_splits(len(classes))
    store = ImageStore(
        name=name,
        images=pixels.stack(list(watch([f.path for f in everything])), shape, bits),
        class_names=names,
        sizes=torch.tensor([len(members) for members in classes.values()]),
        schemes=[Scheme(name="folders" if given else "shuffled", classes=splits, rotations=none)],
        synthetic=False,
        bits=bits,
    )
    resized = sum((f.width, f.height) != (side, side) for f in everything)
    files = [f.path.relative_to(source).as_posix() for f in everything]
    same = [(files[later], files[earlier]) for later, earlier in twins(store)]
    notes += [*_repeated_names(list(classes)), *undecoded(classes), *scaled]
    return store, Report(len(everything), resized, refused, notes, same)


def labelled_files(
    path: str | Path,
) -> tuple[list[tuple[Path, str | None]], list[tuple[Path, str]]]:
    """Return an image file, or all image files of a folder, and the files that are refused.

    An image comes with its class, the folder below `path` that it lies in; None if there is none. A
    refused file comes with the reason.
    """
    path = local(path, "a folder of images")
    if not path.exists():
        raise InputError(f"{path} does not exist", remedy="give image files, or a folder of them")
    if path.is_file():
        return [(path, None)], []
    files, refused = _files(path)
    found = [file for file in files if file.suffix.lower() in FORMATS]
    refused += [(file, NO_IMAGE) for file in files if file.suffix.lower() not in FORMATS]
    if not found:
        others = f", but {few([file.name for file, _ in refused])}" if refused else ""
        raise InputError(
            f"{path} holds no images{others}",
            remedy=f"give image files, or a folder of {', '.join(sorted(FORMATS))}",
        )
    names = [decoded(file.parent.relative_to(path).as_posix()) for file in found]
    classes = [None if name == "." else name for name in names]
    return list(zip(found, classes, strict=True)), refused


def _files(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return all files but hidden ones, sorted, and the folders that are not read, and why.

    A link to a folder may lead anywhere on the machine, and is not followed; one to a file is.
    """
    found, unread = [], []

    def refuse(error: OSError) -> None:
        unread.append((Path(error.filename), f"cannot be read ({error.strerror})"))

    for name, folders, files in os.walk(folder, onerror=refuse):
        here = Path(name)
        folders[:] = [f for f in folders if not f.startswith(".")]
        links = [here / f for f in folders if (here / f).is_symlink()]
        unread += [(link, "is a link to a folder, which is not followed") for link in links]
        found += [here / file for file in files if not file.startswith(".")]
    return sorted(found), unread


def _scan(
    source: Path, watch: Callable[[list[Path]], Iterable[Path]]
) -> tuple[dict[str, list[_Found]], list[tuple[str, str]]]:
    """Return the readable images of each class, sorted, and the refused files with the reasons."""
    if not source.is_dir():
        raise InputError(
            f"--source {source} is not a folder",
            remedy="give one that holds a folder of images for each class",
        )
    classes: dict[str, list[_Found]] = {}
    files, unread = _files(source)
    refused = [(folder.relative_to(source).as_posix(), why) for folder, why in unread]
    for path in watch(files):
        name, file = path.parent.relative_to(source).as_posix(), path.relative_to(source).as_posix()
        if path.suffix.lower() not in FORMATS:
            refused.append((file, NO_IMAGE))
        elif name == ".":
            refused.append((file, "lies in no class folder"))
        else:
            try:
                image, highest, scaling = pixels.read(path)
            except InputError as error:
                refused.append((file, error.what.removeprefix(f"{path} ")))
                classes.setdefault(name, [])
            else:
                classes.setdefault(name, []).append(
                    _Found(path, *image.size, _is_coloured(image), highest, scaling)
                )
    return classes, refused


def _repeated_names(names: list[str]) -> list[str]:
    """Return a note of classes in several folders whose own names are the same."""
    classes: dict[str, list[str]] = {}
    for name in names:
        classes.setdefault(name.rpartition("/")[2].casefold(), []).append(name)
    repeated = [same for same in classes.values() if len(same) > 1]
    if not repeated:
        return []
    count = "1 class name is" if len(repeated) == 1 else f"{len(repeated)} class names are"
    return [f"{count} in several folders, each a class of its own: {few(repeated[0])}"]


def _depth(source: Path, everything: list[_Found]) -> tuple[Depth | None, list[str]]:
    """Return how many bits the grey images of 16 bits use, and notes on all that was scaled.

    The bits are None if there are no such images.
    """
    scaled = Counter(image.scaling for image in everything if image.scaling)
    notes = [f"{count} images are of {how}" for how, count in scaled.items()]
    deep = {
        image.path.relative_to(source).as_posix(): image.highest
        for image in everything
        if image.highest is not None
    }
    if not deep:
        return None, notes
    highest = max(deep.values())
    bits = pixels.depth_of(highest)
    how = f"divided by {1 << (bits - 8)}" if bits > 8 else "taken as they are"
    notes.append(
        f"{len(deep)} grey images are of 16 bits with values up to {highest}, which are {bits} "
        f"bits: {how}"
    )
    if dark := [file for file, value in deep.items() if 0 < value < 1 << (bits - 8)]:
        notes.append(
            f"{len(dark)} of them become all black, since their values are low: {few(dark)}"
        )
    return bits, notes


def _is_coloured(image: Image.Image) -> bool:
    if image.mode in ("1", "L"):
        return False
    red, green, blue = image.convert("RGB").split()
    most = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    least = ImageChops.darker(ImageChops.darker(red, green), blue)
    return int(np.asarray(ImageChops.difference(most, least)).max()) > GREY
