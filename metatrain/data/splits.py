"""Which classes of a folder train, validate and test: as its folders say, or shuffled."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from metatrain.core import InputError, Split
from metatrain.names import few

SPLITS: tuple[Split, ...] = ("train", "val", "test")
# Names that data sets give to splits: Training, test_set, val2017, meta-train, 1_train.
_SPLIT_FOLDER = re.compile(
    r"(?:\d+[\W_]+)?(?:(?:meta|data|images?|imgs?)[\W_]*)?"
    r"(?:(?P<train>train(?:ing)?|trn)|(?P<val>val(?:id(?:ation)?)?|(?P<dev>dev(?:elopment)?))"
    r"|(?P<test>test(?:ing)?|tst|(?P<eval>eval(?:uation)?)))"
    r"(?:[\W_]*(?:set|data|images?|imgs?|split|(?:19|20)\d\d))?",
    re.IGNORECASE,
)


def shuffled_splits(classes: int) -> dict[Split, list[int]]:
    """Divide so many classes: a fifth, but at least five, each for validation and for test.

    Fewer than 15 classes are divided into halves that train and test.
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


def given_splits(names: list[str]) -> tuple[dict[Split, list[int]] | None, list[str]]:
    """Return the splits if the classes lie in folders train, test and perhaps val, else None.

    The list has notes of splits with other names.
    """
    tops = [name.partition("/") for name in names]
    split_of = _split_folders(top for top, _, name in tops if name)
    if not split_of:
        loose = _split_folders(names)
        if len(set(loose.values())) > 1:
            raise InputError(
                f"the folders {', '.join(sorted(loose))} are named as splits and hold images, but "
                "no class folders",
                remedy="put the images of each class into a folder of its own in there",
            )
        return None, []
    for top, _, name in tops:
        if not name or top not in split_of:
            raise InputError(
                f"there are folders {', '.join(sorted(split_of))} and beside them {top}",
                remedy="move or rename it so that each class is in train, val or test, or give one "
                "folder of classes without splits",
            )
    for split in SPLITS:
        if len(same := sorted(top for top in split_of if split_of[top] == split)) > 1:
            raise InputError(
                f"the folders {' and '.join(same)} are all named as the {split} split",
                remedy="merge or rename them",
            )
    splits = {
        split: [i for i, (top, _, _) in enumerate(tops) if split_of[top] == split]
        for split in SPLITS
    }
    if min(len(splits["train"]), len(splits["test"]), len(splits["val"]) or 2) < 2:
        sizes = ", ".join(f"{split} has {len(members)}" for split, members in splits.items())
        raise InputError(
            f"train and test need at least 2 classes each and val 2 or none, and {sizes}",
            remedy="move class folders",
        )
    seen: dict[str, str] = {}
    for top, _, name in tops:
        other = seen.setdefault(name.casefold(), top)
        if other != top:
            raise InputError(
                f"class {name!r} is in {other} and in {top}",
                remedy="leave every class in one split",
            )
    others = [
        f"{top} is the {split} split"
        for top, split in sorted(split_of.items())
        if top.lower() != split
    ]
    return {split: members for split, members in splits.items() if members}, others


def refuse_deeper_splits(source: Path, names: list[str]) -> None:
    """Refuse splits below the first level: their classes would be shuffled over all splits."""
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
        remedy=f"move the classes into train, val and test right below {source}, or give a folder "
        "of classes without splits",
    )


def _split_folders(names: Iterable[str]) -> dict[str, Split]:
    """Return the folders that are named as splits.

    A name that may mean something else, such as dev, counts only beside a train.
    """
    matches = {name: match for name in names if (match := _SPLIT_FOLDER.fullmatch(name.strip()))}
    trains = any(match["train"] for match in matches.values())
    return {
        name: next(split for split in SPLITS if match[split])
        for name, match in matches.items()
        if trains or not (match["dev"] or match["eval"])
    }
