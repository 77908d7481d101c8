"""Omniglot: 1623 handwritten characters, 20 drawings of each (Lake et al. 2015)."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from metatrain import files
from metatrain.core import InputError
from metatrain.data import archives, pixels
from metatrain.data.images import ImageStore, Scheme

CHARACTERS = {"images_background": 964, "images_evaluation": 659}
SHAPE = (1, 28, 28)
DRAWINGS = 20  # of each character
MOST_DRAWINGS = DRAWINGS * max(CHARACTERS.values())  # in an archive
MOST_BYTES = 1 << 14  # of a drawing; the published ones have at most 400
MOST_PIXELS = 1 << 16  # of a drawing; the published ones have 105 x 105
MOST_ARCHIVE = 1 << 25  # bytes of a zip; the published ones have 10 MB


class Drawing(NamedTuple):
    """A file of Omniglot."""

    alphabet: str
    character: str
    file: str
    data: bytes

    @property
    def place(self) -> str:
        """Its path below its part."""
        return f"{self.alphabet}/{self.character}/{self.file}"


def read(source: Path | None) -> ImageStore:
    """Read the images of 28x28 pixels, as in Vinyals et al. 2016, with the published splits.

    source: a folder that holds images_background and images_evaluation, as folders or zips; None
        downloads them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            source = Path(temporary)
            _download(source)
        parts = {part: sorted(_drawings(source, part)) for part in CHARACTERS}
    found = {part: Counter(f"{d.alphabet}/{d.character}" for d in parts[part]) for part in parts}
    if [len(characters) for characters in found.values()] != list(CHARACTERS.values()):
        counts = [len(characters) for characters in found.values()]
        raise InputError(
            f"{source} has {counts[0]} background and {counts[1]} evaluation characters; Omniglot "
            "has 964 and 659 in images_background and images_evaluation (folders or zips)",
            remedy="get it again",
        )
    if any(set(characters.values()) != {DRAWINGS} for characters in found.values()):
        raise InputError(
            f"{source} is incomplete: every Omniglot character has {DRAWINGS} drawings",
            remedy="get it again",
        )
    names = [name for characters in found.values() for name in characters]
    drawings = [drawing for part in parts.values() for drawing in part]
    images = np.empty((len(drawings), *SHAPE), np.uint8)
    for i, drawing in enumerate(drawings):
        try:
            images[i] = pixels.to_pixels(drawing.data, SHAPE, most=MOST_PIXELS)
        except InputError as error:
            raise InputError(
                f"{source} has a drawing that cannot be read, {drawing.place} ({error.what})",
                remedy="get it again",
            ) from error
    return ImageStore(
        name="omniglot",
        images=torch.from_numpy(images),
        class_names=names,
        sizes=torch.full((len(names),), 20),
        schemes=schemes(names),
        synthetic=False,
    )


def schemes(names: list[str]) -> list[Scheme]:
    """Return the published divisions of the 1623 characters.

    names: of the characters, sorted: 964 of background, then 659 of evaluation.

    The shuffles of the papers depend on a directory order that was never recorded: only the sizes
    can be repeated.
    """
    everything = list(range(len(names)))
    shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    vinyals_val_alphabets = {
        "Hebrew",
        "Mkhedruli_(Georgian)",
        "Armenian",
        "Early_Aramaic",
        "Bengali",
    }
    val = [c for c in everything[:1200] if names[c].split("/")[0] in vinyals_val_alphabets]
    train = sorted(set(everything[:1200]) - set(val))
    return [
        Scheme(
            name="omni-rand1100",  # Finn et al. 2017
            classes={"train": shuffled[:1100], "val": shuffled[1100:1200], "test": shuffled[1200:]},
            rotations={"train": "per-task", "val": "per-task", "test": "per-task"},
        ),
        Scheme(
            name="omni-rand1200",  # Nichol et al. 2018
            classes={"train": shuffled[:1200], "test": shuffled[1200:]},
            rotations={"train": "classes", "test": "none"},
        ),
        Scheme(
            # Snell et al. 2017: contiguous alphabets; the last 423 characters are the test set
            name="omni-vinyals",
            classes={"train": train, "val": val, "test": everything[1200:]},
            rotations={"train": "classes", "val": "classes", "test": "classes"},
        ),
        Scheme(
            # Antoniou et al. 2019; its 1151 + 50 + 423 is one more than there are
            name="omni-maml++",
            classes={"train": shuffled[:1150], "val": shuffled[1150:1200], "test": shuffled[1200:]},
            rotations={"train": "per-task", "val": "none", "test": "none"},
        ),
        Scheme(
            name="omni-torchvision",  # background=True / False
            classes={"train": everything[:964], "test": everything[964:]},
            rotations={"train": "none", "test": "none"},
        ),
    ]


def _download(folder: Path) -> None:
    from torchvision.datasets import Omniglot

    try:
        for background in (True, False):
            Omniglot(str(folder), background=background, download=True)
    except Exception as error:
        raise InputError(
            f"Omniglot could not be downloaded ({error})",
            remedy="pass --source with a folder that holds images_background and "
            "images_evaluation, as folders or zips",
        ) from error
    for part in ("images_background", "images_evaluation"):
        shutil.move(folder / "omniglot-py" / part, folder / part)


def _drawings(source: Path, part: str) -> Iterator[Drawing]:
    """Yield all drawings in the folder `source/part`, or in its zip."""
    if (source / part).is_dir():
        for path in (source / part).glob("*/*/*.png"):
            try:
                data = files.read(path, MOST_BYTES)
            except OSError as error:
                raise InputError(
                    f"{path} cannot be read ({error.strerror or error})", remedy="get it again"
                ) from error
            yield Drawing(path.parts[-3], path.parts[-2], path.name, data)
    elif (source / f"{part}.zip").exists():
        yield from _zipped(source / f"{part}.zip")
    else:
        raise InputError(
            f"{source} holds neither a folder {part} nor {part}.zip",
            remedy="pass --source with one that does",
        )


def _zipped(path: Path) -> Iterator[Drawing]:
    """Yield the drawings of an archive whose members were checked before one is read."""
    with archives.zipped(
        path,
        lambda name: name.endswith(".png"),
        "drawings",
        most_files=MOST_DRAWINGS,
        most_bytes=MOST_BYTES,
        most_archive=MOST_ARCHIVE,
    ) as members:
        for name, read_member in members.items():
            parts = name.split("/")
            if len(parts) < 3 or {"", ".", ".."} & set(parts):
                raise archives.damaged(path, "its name is not ALPHABET/CHARACTER/FILE", name)
            yield Drawing(parts[-3], parts[-2], parts[-1], read_member())
