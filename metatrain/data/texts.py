"""Labelled texts as a data set: each text is a row of bytes, padded with zeros to one length.

The files are those of images: a text is one row, [1, 1, bytes].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatrain import files
from metatrain.core import InputError, Split
from metatrain.data import columns, row_files
from metatrain.data.images import ImageStore, Scheme
from metatrain.data.pixels import FORMATS
from metatrain.data.splits import SPLITS, given_splits, shuffled_splits
from metatrain.names import few, quoted
from metatrain.storage import local

BYTES = 256  # of a text, if no other number is asked for
MOST_BYTES = 1024  # of a text: the longest row of an image
MOST_FILE = 1 << 20  # bytes of a file that is one text
MOST_TEXTS = 1_000_000
FEWEST_CLASSES = 4  # two to train on and two to test on
TEXT, LABEL, GROUP, SPLIT = "text", "label", "group", "split"  # columns of a file


def encode(texts: Sequence[str], length: int) -> Tensor:
    """[N, length] uint8: texts in UTF-8, cut as by `shortened`, with zeros after them."""
    rows = np.zeros((len(texts), length), np.uint8)
    for row, text in zip(rows, texts, strict=True):
        data = shortened(text, length).encode()
        row[: len(data)] = np.frombuffer(data, np.uint8)
    return torch.from_numpy(rows)


def decode(row: Tensor) -> str:
    """The text of a row [length] of bytes."""
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")


def shortened(text: str, length: int) -> str:
    """The characters that fit into so many bytes; spaces and line breaks become single spaces."""
    plain = " ".join(text.replace("\0", " ").split())
    return plain.encode(errors="replace")[:length].decode(errors="ignore")


def store(
    name: str,
    texts: Mapping[str, Sequence[str]],
    length: int = BYTES,
    splits: dict[Split, list[int]] | None = None,
) -> ImageStore:
    """Return the data set of each class's texts, in their order; equal ones of a class are one.

    splits: the classes of each, None: shuffled.
    """
    found = {label: distinct(own, length) for label, own in texts.items()}
    classes = splits or _shuffled([*found])
    scheme = Scheme(
        name="given" if splits else "shuffled",
        classes=classes,
        rotations=dict.fromkeys(SPLITS, "none"),
    )
    return ImageStore(
        name=name,
        images=torch.cat([encode(own, length) for own in found.values()])[:, None, None],
        class_names=[*found],
        sizes=torch.tensor([len(own) for own in found.values()]),
        schemes=[scheme],
        synthetic=False,
        text=True,
    )


def group_of(label: str) -> str:
    """The group of a class, which its name has before the last slash."""
    return label.rpartition("/")[0]


def _shuffled(labels: Sequence[str]) -> dict[Split, list[int]]:
    """Shuffled splits in which the classes of a group stay together, if there are enough groups."""
    groups = [group_of(label) for label in labels]
    names = [*dict.fromkeys(groups)]
    if len(names) < FEWEST_CLASSES:
        return shuffled_splits(len(labels))
    split_of = {
        names[i]: split for split, members in shuffled_splits(len(names)).items() for i in members
    }
    return {
        split: [c for c, group in enumerate(groups) if split_of[group] == split]
        for split in SPLITS
        if split in split_of.values()
    }


def distinct(texts: Sequence[str], length: int) -> list[str]:
    """Shortened texts without empty ones and repetitions, in their order."""
    return [*filter(None, dict.fromkeys(shortened(text, length) for text in texts))]


def is_text(source: str | Path) -> bool:
    """Whether an import's source holds texts: a file, or a folder of text files and no images."""
    path = local(source, "--source")
    if not path.is_dir():
        return path.exists()
    kinds = {file.suffix.lower() for file in path.rglob("*.*")}
    return ".txt" in kinds and not kinds & FORMATS.keys()


def read_texts(
    name: str, source: str | Path, length: int | None = None, least: int = 2
) -> tuple[ImageStore, list[str]]:
    """Read labelled texts of one's own: the data set, and notes on what was left out.

    source: a CSV or Parquet file with the columns `text` and `label`, and perhaps `group` and
        `split`; or a folder with a folder of text files for each class, perhaps below folders of
        groups and of splits.
    length: bytes that are kept of a text.
    least: classes with fewer texts are left out.
    """
    length = BYTES if length is None else length
    if not 1 <= length <= MOST_BYTES:
        raise InputError("--size", got=length, expected=f"1 to {MOST_BYTES} bytes of a text")
    if least < 2:
        raise InputError("--least", got=least, expected="at least 2 texts of a class")
    path = local(source, "--source")
    found = _of_folder(path) if path.is_dir() else _of_table(str(path))
    small = [label for label, own in found.items() if len(distinct(own, length)) < least]
    kept = {label: own for label, own in found.items() if label not in small}
    if len(kept) < FEWEST_CLASSES:
        raise InputError(
            f"{source} has {len(kept)} classes of {least} or more different texts, and at least "
            f"{FEWEST_CLASSES} are needed",
            remedy="give more texts, or lower --least",
        )
    splits, notes = given_splits([*kept])
    if small:
        notes.append(f"left out classes with fewer than {least} texts: {few(small)}")
    sizes = [len(text.encode(errors="replace")) for own in kept.values() for text in own]
    if longer := sum(size > length for size in sizes):
        notes.append(f"{longer} of {len(sizes)} texts are longer than {length} bytes and were cut")
    named = {label.partition("/")[2] if splits else label: own for label, own in kept.items()}
    return store(name, named, length, splits), notes


def _of_folder(source: Path) -> dict[str, list[str]]:
    """The texts of each class: of the files in its folder."""
    paths = sorted(path for path in source.rglob("*.txt") if path.is_file())
    if len(paths) > MOST_TEXTS:
        raise _too_many(source, len(paths))
    found: dict[str, list[str]] = {}
    for path in paths:
        label = path.parent.relative_to(source).as_posix()
        if label == ".":
            raise InputError(
                f"{path} lies in no class folder",
                remedy="move it into a folder named after its class",
            )
        try:
            text = files.read(path, MOST_FILE).decode()
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"{path} is no UTF-8 text ({error})", remedy="correct or remove it"
            ) from error
        if text.strip():
            found.setdefault(label, []).append(text)
    return found


def _of_table(source: str) -> dict[str, list[str]]:
    """The texts of each class, named `split/group/label` if there are such columns."""
    file = row_files.opened(source, row_files.stamp(source, "--source"), LABEL)
    if file.rows > MOST_TEXTS:
        raise _too_many(source, file.rows)
    missing = [name for name in (TEXT, LABEL) if name not in file.types]
    if missing:
        raise InputError(
            f"{source} has no column {quoted(missing[0])}, but {few([*file.types])}",
            remedy=f"name its columns {TEXT} and {LABEL}, and {SPLIT} if it divides the classes",
        )
    used = [name for name in (SPLIT, GROUP, LABEL, TEXT) if name in file.types]
    found: dict[str, list[str]] = {}
    values = (columns.values(file, name) for name in used)
    for number, (*label, text) in enumerate(zip(*values, strict=True), 1):
        if not isinstance(text, str) or any(
            part is None or not str(part).strip() for part in label
        ):
            raise InputError(
                f"row {number} of {source} lacks its text, its label or its group",
                remedy="fill it in, or remove the row",
            )
        if text.strip():
            found.setdefault("/".join(_plain(part) for part in label), []).append(text)
    return dict(sorted(found.items()))


def _plain(part: Any) -> str:
    """A label without slashes, which divide splits from labels."""
    return str(part).strip().replace("/", "\u2215")


def _too_many(source: object, number: int) -> InputError:
    return InputError(
        f"{source} has {number:,} texts", expected=f"at most {MOST_TEXTS:,}", remedy="give fewer"
    )
