"""Labelled images in one Arrow file that every worker of a node memory-maps, and where they come from.

A data set is a directory `NAME/` in the cache (METATRAIN_CACHE, else ~/.cache/metatrain): `images.arrow`, and
`manifest.json` with its size, checksum and counts, verified before Arrow opens the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from metatrain.core import InputError, Split
from metatrain.tasks import glyphs

Rotations = Literal["none", "per-task", "classes"]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A named, class-disjoint division into splits.

    `rotations` says what turns by 90, 180 and 270 degrees are in each split: not used ("none"), one drawn for each
    class of a task ("per-task"), or classes of their own ("classes").
    """

    name: str
    classes: dict[Split, list[int]]
    rotations: dict[Split, Rotations]

    def __post_init__(self) -> None:
        seen = [c for members in self.classes.values() for c in members]
        if len(seen) != len(set(seen)):
            raise InputError(f"the splits {self.name!r} share classes; every class must be in one split")


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """Images of one shape, uint8, ink bright on dark, sorted by class."""

    name: str
    images: Tensor  # [N, C, H, W] uint8, memory-mapped: never write to it
    class_names: list[str]
    sizes: Tensor  # [classes] images of each
    schemes: list[Scheme]
    synthetic: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.images.shape[1:])

    @property
    def offsets(self) -> Tensor:
        """[classes] index of each class's first image."""
        return self.sizes.cumsum(0) - self.sizes

    def scheme(self, name: str | None) -> Scheme:
        """The splits of that name; the first ones where the name is None."""
        if name is None:
            return self.schemes[0]
        for scheme in self.schemes:
            if scheme.name == name:
                return scheme
        known = ", ".join(s.name for s in self.schemes)
        raise InputError(f"data set {self.name!r} has no splits {name!r}; choose one of {known}")

    @classmethod
    def open(cls, name: str) -> ImageStore:
        """Verify and memory-map a data set; the built-in one is drawn first where it is not there yet."""
        folder = cache() / name
        if not (folder / "manifest.json").exists():
            if name not in SOURCES:
                raise InputError(f"there is no data set {name!r}; `metatrain data list` shows those that exist")
            if name != "glyphs":
                raise InputError(f"data set {name!r} is not imported yet: run `metatrain data import {name}`")
            import_data(name)
        manifest = json.loads((folder / "manifest.json").read_text())
        path = folder / "images.arrow"
        if not path.exists() or path.stat().st_size != manifest["bytes"] or _sha256(path) != manifest["sha256"]:
            raise InputError(f"{path} is not what was imported: run `metatrain data import {name}` again")
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        header = json.loads(batch.schema.metadata[b"metatrain"])
        sizes = torch.tensor(header["sizes"])
        pixels = np.frombuffer(batch.column("pixels").buffers()[1], dtype=np.uint8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not writable.*")  # nothing writes to it
            images = torch.from_numpy(pixels).view(-1, *header["shape"])
        if len(images) != sizes.sum() or [len(images), len(sizes)] != [manifest["images"], manifest["classes"]]:
            raise InputError(f"{path} has other counts than its manifest: run `metatrain data import {name}` again")
        return cls(
            name=name,
            images=images,
            class_names=header["class_names"],
            sizes=sizes,
            schemes=[Scheme(**scheme) for scheme in header["schemes"]],
            synthetic=header["synthetic"],
        )

    def save(self) -> Path:
        """Write the data set into the cache; a reader sees all of it or nothing."""
        header = {
            "shape": self.shape,
            "class_names": self.class_names,
            "sizes": self.sizes.tolist(),
            "schemes": [asdict(scheme) for scheme in self.schemes],
            "synthetic": self.synthetic,
        }
        size = self.images[0].numel()
        pixels = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size), len(self.images), [None, pa.py_buffer(self.images.contiguous().numpy())]
        )
        schema = pa.schema([("pixels", pa.binary(size))], metadata={"metatrain": json.dumps(header)})
        folder = cache() / self.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            path = Path(temporary) / "new" / "images.arrow"
            path.parent.mkdir()
            with pa.ipc.new_file(str(path), schema) as writer:
                writer.write_batch(pa.record_batch([pixels], schema=schema))
            manifest = {
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
                "images": len(self.images),
                "classes": len(self.sizes),
            }
            (path.parent / "manifest.json").write_text(json.dumps(manifest, indent=1))
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            path.parent.rename(folder)
        return folder


def cache() -> Path:
    """Where data sets are kept."""
    return Path(os.environ.get("METATRAIN_CACHE") or Path.home() / ".cache" / "metatrain")


def import_data(name: str, source: Path | None = None) -> ImageStore:
    """Bring a data set into the cache, verifying its counts."""
    if name not in SOURCES:
        raise InputError(f"there is no data set {name!r} to import; choose one of {', '.join(SOURCES)}")
    SOURCES[name](source).save()
    return ImageStore.open(name)


def _glyphs(source: Path | None) -> ImageStore:
    if source is not None:
        raise InputError("glyphs are drawn, not read: leave out --source")
    images = torch.from_numpy(glyphs.draw(glyphs.CLASSES, glyphs.DRAWINGS, seed=0))
    order = list(range(glyphs.CLASSES))
    train, val = glyphs.CLASSES * 7 // 10, glyphs.CLASSES * 8 // 10
    none: dict[Split, Rotations] = {"train": "none", "val": "none", "test": "none"}
    splits: dict[Split, list[int]] = {"train": order[:train], "val": order[train:val], "test": order[val:]}
    return ImageStore(
        name="glyphs",
        images=images.flatten(0, 1)[:, None],
        class_names=[f"glyph{i:04d}" for i in order],
        sizes=torch.full((glyphs.CLASSES,), glyphs.DRAWINGS),
        schemes=[Scheme(name="glyphs", classes=splits, rotations=none)],
        synthetic=True,
    )


def _omniglot(source: Path | None) -> ImageStore:
    """Omniglot (Lake et al. 2015), 28x28 as in Vinyals et al. 2016, with the splits of the papers."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as temporary:
        if source is None:
            source = Path(temporary)
            _download_omniglot(source)
        files: dict[str, dict[str, list[bytes]]] = {"images_background": {}, "images_evaluation": {}}
        for part, members in files.items():
            for (alphabet, character, _), data in sorted(_pngs(source, part)):
                members.setdefault(f"{alphabet}/{character}", []).append(data)
    counts = [len(members) for members in files.values()]
    if counts != [964, 659]:
        raise InputError(
            f"{source} has {counts[0]} background and {counts[1]} evaluation characters; "
            "Omniglot has 964 and 659 in images_background and images_evaluation (folders or zips)"
        )
    names = [name for members in files.values() for name in members]
    drawings = [drawing for members in files.values() for character in members.values() for drawing in character]
    if any(len(character) != 20 for members in files.values() for character in members.values()):
        raise InputError(f"{source} is incomplete: every Omniglot character has 20 drawings")
    pixels = np.empty((len(drawings), 1, 28, 28), np.uint8)
    for i, data in enumerate(drawings):
        with Image.open(io.BytesIO(data)) as image:
            pixels[i, 0] = 255 - np.asarray(image.convert("L").resize((28, 28), Image.Resampling.LANCZOS))
    return ImageStore(
        name="omniglot",
        images=torch.from_numpy(pixels),
        class_names=names,
        sizes=torch.full((len(names),), 20),
        schemes=omniglot_schemes(names),
        synthetic=False,
    )


def omniglot_schemes(names: list[str]) -> list[Scheme]:
    """The published divisions of the 1623 characters, which come sorted: 964 background, then 659 evaluation.

    The papers' shuffles depend on a directory order that was never recorded: only the sizes can be repeated.
    """
    everything = list(range(len(names)))
    shuffled = torch.randperm(len(names), generator=torch.Generator().manual_seed(0)).tolist()
    vinyals_val_alphabets = {"Hebrew", "Mkhedruli_(Georgian)", "Armenian", "Early_Aramaic", "Bengali"}
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
            name="omni-vinyals",  # Snell et al. 2017: contiguous alphabets; the last 423 characters are the test set
            classes={"train": train, "val": val, "test": everything[1200:]},
            rotations={"train": "classes", "val": "classes", "test": "classes"},
        ),
        Scheme(
            name="omni-maml++",  # Antoniou et al. 2019; its 1151 + 50 + 423 is one more than there are
            classes={"train": shuffled[:1150], "val": shuffled[1150:1200], "test": shuffled[1200:]},
            rotations={"train": "per-task", "val": "none", "test": "none"},
        ),
        Scheme(
            name="omni-torchvision",  # background=True / False
            classes={"train": everything[:964], "test": everything[964:]},
            rotations={"train": "none", "test": "none"},
        ),
    ]


def _download_omniglot(folder: Path) -> None:
    from torchvision.datasets import Omniglot

    try:
        for background in (True, False):
            Omniglot(str(folder), background=background, download=True)
    except Exception as error:
        raise InputError(
            f"Omniglot could not be downloaded ({error}): pass --source with a folder that holds "
            "images_background and images_evaluation, as folders or zips"
        ) from error
    for part in ("images_background", "images_evaluation"):
        shutil.move(folder / "omniglot-py" / part, folder / part)


def _pngs(source: Path, part: str) -> Iterator[tuple[tuple[str, str, str], bytes]]:
    """((alphabet, character, file), bytes) of all drawings in the folder or zip `source/part`."""
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
        raise InputError(f"{source} holds neither a folder {part} nor {part}.zip: pass --source with one that does")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SOURCES: dict[str, Callable[[Path | None], ImageStore]] = {"glyphs": _glyphs, "omniglot": _omniglot}
