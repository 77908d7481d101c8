"""Any folder of class folders as a data set: one's own images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from metatrain.core import InputError, Split
from metatrain.tasks import pixels
from metatrain.tasks.images import ImageStore, Rotations, Scheme
from metatrain.tasks.pixels import FORMATS

FEWEST_PIXELS, MOST_PIXELS = 16, 84  # a side, where no size is asked for; 84 is that of mini-ImageNet
MOST_ASKED = 1024
SPLITS: tuple[Split, ...] = ("train", "val", "test")
FEWEST_CLASSES = 4  # two to train on and two to test on
GREY = 16  # how far apart the channels of a grey image may be, of 255: JPEG colours greys a little


class Report(NamedTuple):
    """What an import did with the files it found."""

    taken: int
    resized: int
    refused: list[tuple[str, str]]  # (file or folder, why)


class _Found(NamedTuple):
    path: Path
    width: int
    height: int
    coloured: bool


def read_folder(
    name: str,
    source: Path,
    size: int | None = None,
    least: int = 2,
    watch: Callable[[list[Path]], Iterable[Path]] = iter,
) -> tuple[ImageStore, Report]:
    """The images of all folders in `source` that hold some: each is a class, named by its path.

    They become `size` x `size` pixels (by default the median of their shorter sides, between 16 and 84), grey where no
    image has colours. Classes of fewer than `least` images are refused, as are files that cannot be read. Where
    `source` has folders train, test and perhaps val with the classes in them, these are the splits; otherwise the
    classes are shuffled into them. `watch` sees the files go by.
    """
    if size is not None and not FEWEST_PIXELS <= size <= MOST_ASKED:
        raise InputError(f"--size must be between {FEWEST_PIXELS} and {MOST_ASKED} pixels, got {size}")
    if least < 2:
        raise InputError(f"--least must be at least 2 images, one to learn from and one to test on; got {least}")
    classes, refused = _scan(source, watch)
    for class_name in [c for c, found in classes.items() if len(found) < least]:
        refused.append((class_name, f"has {len(classes.pop(class_name))} images, at least {least} are needed"))
    if len(classes) < FEWEST_CLASSES:
        because = f"; refused: {'; '.join(f'{what} {why}' for what, why in refused[:3])}" if refused else ""
        raise InputError(
            f"{source} has {len(classes)} class folders of {least} or more images and at least {FEWEST_CLASSES} are "
            f"needed: give a folder with a folder of images for each class{because}"
        )
    given = _given_splits(list(classes))
    everything = [found for members in classes.values() for found in members]
    side = size or int(np.clip(median(min(f.width, f.height) for f in everything), FEWEST_PIXELS, MOST_PIXELS))
    shape = (3 if any(f.coloured for f in everything) else 1, side, side)
    names = [n.partition("/")[2] for n in classes] if given else list(classes)
    none: dict[Split, Rotations] = dict.fromkeys(SPLITS, "none")
    splits = given or shuffled_splits(len(classes))
    store = ImageStore(
        name=name,
        images=pixels.stack(list(watch([f.path for f in everything])), shape),
        class_names=names,
        sizes=torch.tensor([len(members) for members in classes.values()]),
        schemes=[Scheme(name="folders" if given else "shuffled", classes=splits, rotations=none)],
        synthetic=False,
    )
    resized = sum((f.width, f.height) != (side, side) for f in everything)
    return store, Report(len(everything), resized, refused)


def shuffled_splits(classes: int) -> dict[Split, list[int]]:
    """A fifth of the classes, but at least five, each for validation and test; below 15 half of them for test only."""
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0)).tolist()
    if classes < 15:
        return {"train": sorted(order[classes // 2 :]), "test": sorted(order[: classes // 2])}
    held = max(5, classes // 5)
    return {"train": sorted(order[2 * held :]), "val": sorted(order[held : 2 * held]), "test": sorted(order[:held])}


def labelled_files(path: Path) -> list[tuple[Path, str | None]]:
    """An image file, or all of a folder, each with its class: the name of the folder in there that it lies in."""
    if not path.exists():
        raise InputError(f"{path} does not exist: give image files, or a folder of them")
    if path.is_file():
        return [(path, None)]
    found = [file for file in _files(path) if file.suffix.lower() in FORMATS]
    if not found:
        raise InputError(f"{path} holds no images: give image files, or a folder of {', '.join(sorted(FORMATS))}")
    names = [file.parent.relative_to(path).as_posix() for file in found]
    return [(file, None if name == "." else name) for file, name in zip(found, names, strict=True)]


def _files(folder: Path) -> list[Path]:
    """All files but hidden ones, sorted; links are followed, but not into a folder that they lie in."""
    found = []
    for name, folders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        inside = {parent.resolve() for parent in (here, *here.parents)}
        folders[:] = [f for f in folders if not f.startswith(".") and (here / f).resolve() not in inside]
        found += [here / file for file in files if not file.startswith(".")]
    return sorted(found)


def _scan(
    source: Path, watch: Callable[[list[Path]], Iterable[Path]]
) -> tuple[dict[str, list[_Found]], list[tuple[str, str]]]:
    """The readable images of each class, sorted, and what was refused and why."""
    if not source.is_dir():
        raise InputError(f"--source {source} is not a folder: give one that holds a folder of images for each class")
    classes: dict[str, list[_Found]] = {}
    refused = []
    for path in watch(_files(source)):
        name, file = path.parent.relative_to(source).as_posix(), path.relative_to(source).as_posix()
        if path.suffix.lower() not in FORMATS:
            refused.append((file, f"is none of {', '.join(sorted(FORMATS))}"))
        elif name == ".":
            refused.append((file, "lies in no class folder"))
        else:
            try:
                image = pixels.read(path)
            except InputError as error:
                refused.append((file, str(error).removeprefix(f"{path} ").removesuffix(": replace or remove it")))
                classes.setdefault(name, [])
            else:
                classes.setdefault(name, []).append(_Found(path, *image.size, _is_coloured(image)))
    return classes, refused


def _given_splits(names: list[str]) -> dict[Split, list[int]] | None:
    """The splits, where the classes lie in folders train, test and perhaps val; None where in none of these."""
    tops = [name.partition("/") for name in names]
    split_folders = {top for top, _, name in tops if name and top.lower() in SPLITS}
    if not split_folders:
        return None
    for top, _, name in tops:
        if not name or top.lower() not in SPLITS:
            raise InputError(
                f"there are folders {', '.join(sorted(split_folders))} and beside them {top}: every class must lie in "
                "train, val or test; rename or move it, or give one folder of classes without splits"
            )
    splits = {split: [i for i, (top, _, _) in enumerate(tops) if top.lower() == split] for split in SPLITS}
    if min(len(splits["train"]), len(splits["test"]), len(splits["val"]) or 2) < 2:
        sizes = ", ".join(f"{split} has {len(members)}" for split, members in splits.items())
        raise InputError(f"train and test need at least 2 classes each, and val 2 or none: {sizes}; move some")
    seen: dict[str, str] = {}
    for top, _, name in tops:
        if name in seen:
            raise InputError(f"class {name!r} is in {seen[name]} and in {top}: every class must be in one split")
        seen[name] = top
    return {split: members for split, members in splits.items() if members}


def _is_coloured(image: Image.Image) -> bool:
    return image.mode not in ("1", "L") and int(np.ptp(np.asarray(image.convert("RGB")), axis=-1).max()) > GREY
