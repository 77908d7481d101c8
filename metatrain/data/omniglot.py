"""Omniglot: 1623 handwritten characters, 20 drawings of each (Lake et al. 2015)."""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError

from metatrain.core import InputError
from metatrain.data import pixels
from metatrain.data.images import ImageStore, Scheme


def read(source: Path | None) -> ImageStore:
    """Read the images of 28x28 pixels, as in Vinyals et al. 2016, with the published splits.

    source: a folder that holds images_background and images_evaluation, as folders or zips; None
        downloads them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            source = Path(temporary)
            _download(source)
        files: dict[str, dict[str, list[bytes]]] = {
            "images_background": {},
            "images_evaluation": {},
        }
        for part, members in files.items():
            try:
                found = sorted(_pngs(source, part))
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise InputError(
                    f"{source / part}.zip is damaged ({error})", remedy="get it again"
                ) from error
            for (alphabet, character, _), data in found:
                members.setdefault(f"{alphabet}/{character}", []).append(data)
    counts = [len(members) for members in files.values()]
    if counts != [964, 659]:
        raise InputError(
            f"{source} has {counts[0]} background and {counts[1]} evaluation characters; Omniglot "
            "has 964 and 659 in images_background and images_evaluation (folders or zips)",
            remedy="get it again",
        )
    names = [name for members in files.values() for name in members]
    drawings = [
        drawing
        for members in files.values()
        for character in members.values()
        for drawing in character
    ]
    if any(len(character) != 20 for members in files.values() for character in members.values()):
        raise InputError(
            f"{source} is incomplete: every Omniglot character has 20 drawings",
            remedy="get it again",
        )
    try:
        images = pixels.stack(
            [Image.open(io.BytesIO(drawing)) for drawing in drawings], (1, 28, 28)
        )
    except (UnidentifiedImageError, InputError) as error:
        raise InputError(
            f"{source} has a drawing that cannot be read ({error})", remedy="get it again"
        ) from error
    return ImageStore(
        name="omniglot",
        images=images,
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


def _pngs(source: Path, part: str) -> Iterator[tuple[tuple[str, str, str], bytes]]:
    """Yield ((alphabet, character, file), bytes) of all drawings in `source/part` or its zip."""
    if (source / part).is_dir():
        for path in (source / part).glob("*/*/*.png"):
            yield (path.parts[-3], path.parts[-2], path.name), path.read_bytes()
    elif (source / f"{part}.zip").is_file():
        with zipfile.ZipFile(source / f"{part}.zip") as archive:
            for name in archive.namelist():
                parts = name.split("/")
                if name.endswith(".png") and len(parts) >= 3:
                    yield (parts[-3], parts[-2], parts[-1]), archive.read(name)
    else:
        raise InputError(
            f"{source} holds neither a folder {part} nor {part}.zip",
            remedy="pass --source with one that does",
        )
