"""Any folder of class folders as a data set: one's own images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from metatrain.core import InputError, Split
from metatrain.data import pixels
from metatrain.data.images import ImageStore, Rotations, Scheme, twins
from metatrain.data.pixels import FORMATS, Depth
from metatrain.names import few

FEWEST_PIXELS, MOST_PIXELS = (
    16,
    84,
)  # a side, where no size is asked for; 84 is that of mini-ImageNet
MOST_ASKED = 1024
SPLITS: tuple[Split, ...] = ("train", "val", "test")
_SPLIT_FOLDER = (
    re.compile(  # what data sets call them: Training, test_set, val2017, meta-train, 1_train
        r"(?:\d+[\W_]+)?(?:(?:meta|data|images?|imgs?)[\W_]*)?"
        r"(?:(?P<train>train(?:ing)?|trn)|(?P<val>val(?:id(?:ation)?)?|(?P<dev>dev(?:elopment)?))"
        r"|(?P<test>test(?:ing)?|tst|(?P<eval>eval(?:uation)?)))"
        r"(?:[\W_]*(?:set|data|images?|imgs?|split|(?:19|20)\d\d))?",
        re.IGNORECASE,
    )
)
FEWEST_CLASSES = 4  # two to train on and two to test on
NO_IMAGE = f"is none of {', '.join(sorted(FORMATS))}"
GREY = 16  # how far apart the channels of a grey image may be, of 255: JPEG colours greys a little


class Report(NamedTuple):
    """What an import did with the files it found."""

    taken: int
    resized: int
    refused: list[tuple[str, str]]  # (file or folder, why)
    notes: list[str]  # what else somebody should know, such as how numbers became pixels
    twins: list[
        tuple[str, str]
    ]  # an image that became the same pixels as an earlier one, and that one


class _Found(NamedTuple):
    path: Path
    width: int
    height: int
    coloured: bool
    highest: int | None  # as pixels.Read
    scaling: str | None


def read_folder(
    name: str,
    source: Path,
    size: int | None = None,
    least: int = 2,
    watch: Callable[[list[Path]], Iterable[Path]] = iter,
) -> tuple[ImageStore, Report]:
    """The images of all folders in `source` that hold some: each is a class, named by its path.

    They become `size` x `size` pixels (by default the median of their shorter sides, between 16 and
    84), grey where no image has colours. Classes of fewer than `least` images are refused, as are
    files that cannot be read. If `source` has folders train, test and perhaps val (or training,
    valid, dev, eval ...) with the classes in them, these are the splits; otherwise the classes are
    shuffled into them. The highest value of all grey images of 16 bits decides how many bits they
    use. `watch` sees the files go by.
    """
    if size is not None and not FEWEST_PIXELS <= size <= MOST_ASKED:
        raise InputError(
            f"--size must be between {FEWEST_PIXELS} and {MOST_ASKED} pixels, got {size}"
        )
    if least < 2:
        raise InputError(
            f"--least must be at least 2 images, one to learn from and one to test on; got {least}"
        )
    classes, refused = _scan(source, watch)
    for class_name in [c for c, found in classes.items() if len(found) < least]:
        refused.append(
            (class_name, f"has {len(classes.pop(class_name))} images, at least {least} are needed")
        )
    if len(classes) < FEWEST_CLASSES:
        because = (
            f"; refused: {'; '.join(f'{what} {why}' for what, why in refused[:3])}"
            if refused
            else ""
        )
        raise InputError(
            (
                f"{source} has {len(classes)} class folders of {least} or more images and at least "
                f"{FEWEST_CLASSES} are "
                "needed"
            ),
            remedy=f"give a folder with a folder of images for each class{because}",
        )
    _refuse_deeper_splits(source, list(classes))
    given, notes = _given_splits(list(classes))
    everything = [found for members in classes.values() for found in members]
    side = size or int(
        np.clip(median(min(f.width, f.height) for f in everything), FEWEST_PIXELS, MOST_PIXELS)
    )
    shape = (3 if any(f.coloured for f in everything) else 1, side, side)
    names = [n.partition("/")[2] for n in classes] if given else list(classes)
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
    return store, Report(
        len(everything), resized, refused, [*notes, *_repeated_names(list(classes)), *scaled], same
    )


def shuffled_splits(classes: int) -> dict[Split, list[int]]:
    """A fifth of the classes, but at least five, each for validation and test; below 15 half of
    them for test only.
    """
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0)).tolist()
    if classes < 15:
        return {"train": sorted(order[classes // 2 :]), "test": sorted(order[: classes // 2])}
    held = max(5, classes // 5)
    return {
        "train": sorted(order[2 * held :]),
        "val": sorted(order[held : 2 * held]),
        "test": sorted(order[:held]),
    }


def labelled_files(path: Path) -> tuple[list[tuple[Path, str | None]], list[tuple[Path, str]]]:
    """An image file, or all of a folder, each with its class: the name of the folder in there that
    it lies in.

    Beside them the files of the folder that are refused, each with the reason.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist", remedy="give image files, or a folder of them")
    if path.is_file():
        return [(path, None)], []
    files = _files(path)
    found = [file for file in files if file.suffix.lower() in FORMATS]
    refused = [(file, NO_IMAGE) for file in files if file.suffix.lower() not in FORMATS]
    if not found:
        others = f", but {few([file.name for file, _ in refused])}" if refused else ""
        raise InputError(
            f"{path} holds no images{others}",
            remedy=(f"give image files, or a folder of {', '.join(sorted(FORMATS))}"),
        )
    names = [file.parent.relative_to(path).as_posix() for file in found]
    return [
        (file, None if name == "." else name) for file, name in zip(found, names, strict=True)
    ], refused


def _files(folder: Path) -> list[Path]:
    """All files but hidden ones, sorted; links are followed, but not into a folder that they lie
    in.
    """
    found = []
    for name, folders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        inside = {parent.resolve() for parent in (here, *here.parents)}
        folders[:] = [
            f for f in folders if not f.startswith(".") and (here / f).resolve() not in inside
        ]
        found += [here / file for file in files if not file.startswith(".")]
    return sorted(found)


def _scan(
    source: Path, watch: Callable[[list[Path]], Iterable[Path]]
) -> tuple[dict[str, list[_Found]], list[tuple[str, str]]]:
    """The readable images of each class, sorted, and what was refused and why."""
    if not source.is_dir():
        raise InputError(
            f"--source {source} is not a folder",
            remedy=("give one that holds a folder of images for each class"),
        )
    classes: dict[str, list[_Found]] = {}
    refused = []
    for path in watch(_files(source)):
        name, file = path.parent.relative_to(source).as_posix(), path.relative_to(source).as_posix()
        if path.suffix.lower() not in FORMATS:
            refused.append((file, NO_IMAGE))
        elif name == ".":
            refused.append((file, "lies in no class folder"))
        else:
            try:
                image, highest, scaling = pixels.read(path)
            except InputError as error:
                refused.append(
                    (
                        file,
                        str(error).removeprefix(f"{path} ").removesuffix(": replace or remove it"),
                    )
                )
                classes.setdefault(name, [])
            else:
                classes.setdefault(name, []).append(
                    _Found(path, *image.size, _is_coloured(image), highest, scaling)
                )
    return classes, refused


def _split_folders(names: Iterable[str]) -> dict[str, Split]:
    """Those of the folders that are named as splits. What may mean something else, such as dev,
    does beside a train.
    """
    matches = {name: match for name in names if (match := _SPLIT_FOLDER.fullmatch(name.strip()))}
    trains = any(match["train"] for match in matches.values())
    return {
        name: next(split for split in SPLITS if match[split])
        for name, match in matches.items()
        if trains or not (match["dev"] or match["eval"])
    }


def _given_splits(names: list[str]) -> tuple[dict[Split, list[int]] | None, list[str]]:
    """The splits, if the classes lie in folders train, test and perhaps val, and a note of other
    names; else None.
    """
    tops = [name.partition("/") for name in names]
    split_of = _split_folders(top for top, _, name in tops if name)
    if not split_of:
        loose = _split_folders(names)
        if len(set(loose.values())) > 1:
            raise InputError(
                (
                    f"the folders {', '.join(sorted(loose))} are named as splits and hold images, "
                    "but "
                    "no class folders"
                ),
                remedy="put the images of each class into a folder of its own in there",
            )
        return None, []
    for top, _, name in tops:
        if not name or top not in split_of:
            raise InputError(
                f"there are folders {', '.join(sorted(split_of))} and beside them {top}",
                remedy=(
                    "every "
                    "class must lie in "
                    "train, val or test; rename or move it, or give one folder of classes without "
                    "splits"
                ),
            )
    for split in SPLITS:
        if len(same := sorted(top for top in split_of if split_of[top] == split)) > 1:
            raise InputError(
                f"the folders {' and '.join(same)} are all named as the {split} split",
                remedy=("merge or rename them"),
            )
    splits = {
        split: [i for i, (top, _, _) in enumerate(tops) if split_of[top] == split]
        for split in SPLITS
    }
    if min(len(splits["train"]), len(splits["test"]), len(splits["val"]) or 2) < 2:
        sizes = ", ".join(f"{split} has {len(members)}" for split, members in splits.items())
        raise InputError(
            "train and test need at least 2 classes each, and val 2 or none",
            remedy=f"{sizes}; move some",
        )
    seen: dict[str, str] = {}
    for top, _, name in tops:
        other = seen.setdefault(name.casefold(), top)
        if other != top:
            raise InputError(
                f"class {name!r} is in {other} and in {top}",
                remedy="every class must be in one split",
            )
    others = [
        f"{top} is the {split} split"
        for top, split in sorted(split_of.items())
        if top.lower() != split
    ]
    return {split: members for split, members in splits.items() if members}, others


def _refuse_deeper_splits(source: Path, names: list[str]) -> None:
    """InputError if folders below the first level are splits: their classes would be shuffled over
    all splits.
    """
    inside: dict[str, set[str]] = {}
    for name in names:
        *parents, last = name.split("/")
        for depth, folder in enumerate([*parents, last]):
            inside.setdefault("/".join(parents[:depth]), set()).add(folder)
    holders = {}
    for folder, members in inside.items():
        split_of = _split_folders(members)
        if folder and len(set(split_of.values())) > 1:
            holders[folder] = sorted(split_of)
    if not holders:
        return
    (folder, splits), *_ = holders.items()
    where = (
        f"{', '.join(splits)} are splits by their names, but lie in "
        f"{few([f'{source / h}' for h in holders])}"
    )
    if all(name.startswith(f"{folder}/") for name in names):
        raise InputError(f"the folders {where}", remedy=f"give --source {source / folder}")
    raise InputError(
        f"the folders {where}",
        remedy=(
            f"move the classes into train, val and test right below {source}, "
            "or give a folder of classes without splits"
        ),
    )


def _repeated_names(names: list[str]) -> list[str]:
    """A note of classes in several folders whose own names are the same: they are different classes
    here.
    """
    classes: dict[str, list[str]] = {}
    for name in names:
        classes.setdefault(name.rpartition("/")[2].casefold(), []).append(name)
    repeated = [same for same in classes.values() if len(same) > 1]
    if not repeated:
        return []
    count = "1 class name is" if len(repeated) == 1 else f"{len(repeated)} class names are"
    return [f"{count} in several folders, each a class of its own: {few(repeated[0])}"]


def _depth(source: Path, everything: list[_Found]) -> tuple[Depth | None, list[str]]:
    """How many bits the grey images of 16 bits use, None if there are none; and notes on all that
    was scaled.
    """
    notes = [
        f"{n} images are of {how}"
        for how, n in Counter(f.scaling for f in everything if f.scaling).items()
    ]
    deep = {
        f.path.relative_to(source).as_posix(): f.highest
        for f in everything
        if f.highest is not None
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
    return (
        image.mode not in ("1", "L")
        and int(np.ptp(np.asarray(image.convert("RGB")), axis=-1).max()) > GREY
    )
