"""Labelled images in one Arrow file that every worker of a node memory-maps.

A data set is a directory `NAME/` in the cache (METATRAIN_CACHE, else ~/.cache/metatrain):
`images.arrow`, and `manifest.json` with its size, checksum and counts, verified before Arrow opens
the file.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from metatrain import storage, yaml_reader
from metatrain.core import InputError
from metatrain.data import stored
from metatrain.data.pixels import Depth
from metatrain.data.stored import FORMAT
from metatrain.data.stored import Rotations as Rotations
from metatrain.data.stored import Scheme as Scheme
from metatrain.storage import cache

SHOWN = 10  # classes in a notebook


@dataclass(frozen=True, kw_only=True)
class ImageStore:
    """Images of one shape, uint8, as the source shows them, sorted by class."""

    name: str
    images: Tensor  # [N, C, H, W] uint8, memory-mapped: never write to it
    class_names: list[str]
    sizes: Tensor  # [classes] images of each
    schemes: list[Scheme]
    synthetic: bool
    checksum: str = ""  # of all of it, whatever wrote the file; empty before it is saved
    # How many of their 16 bits the source's grey images use; None if it has no such images.
    bits: Depth | None = None
    text: bool = False  # each image is a text, [1, 1, bytes]: see metatrain.data.texts
    # The network that made numbers of texts, by its checksum: see metatrain.data.embeddings.
    embedding: str | None = None

    def __repr__(self) -> str:
        return f"ImageStore({self.name!r}: {', '.join(self._facts())})"

    def _repr_html_(self) -> str:
        """Show the same facts in a notebook, and an image of each of some classes."""
        facts = f"<b>{html.escape(self.name)}</b>: {html.escape(', '.join(self._facts()))}"
        every = -(-len(self.sizes) // SHOWN) or 1
        shown = [c for c in range(0, len(self.sizes), every) if self.sizes[c]]
        if not shown or self.text:
            return facts
        first = [self.images[self.offsets[c]].cpu() for c in shown]
        strip = torch.cat(first, dim=2).permute(1, 2, 0).numpy()
        picture = Image.fromarray(strip if strip.shape[2] == 3 else strip[:, :, 0])
        file = io.BytesIO()
        picture.thumbnail((1000, 100))
        picture.save(file, "PNG")
        names = html.escape(", ".join(self.class_names[c] for c in shown))
        data = base64.b64encode(file.getvalue()).decode()
        return f'{facts}<br><img src="data:image/png;base64,{data}" alt="{names}" title="{names}">'

    def _facts(self) -> list[str]:
        facts = [f"{len(self.sizes)} classes", f"{len(self.images)} {self.kind}"]
        for scheme in self.schemes:
            counts = ", ".join(
                f"{split} {len(members)}" for split, members in scheme.classes.items()
            )
            facts.append(f"splits {scheme.name} ({counts})")
        facts += ["synthetic"] if self.synthetic else ["not synthetic"]
        return [*facts, f"checksum {self.checksum}" if self.checksum else "not saved"]

    @property
    def kind(self) -> str:
        """What the examples are, such as "images of 28x28 grey"."""
        channels, height, width = self.shape
        if self.embedding:
            return f"texts as {width // 2} numbers"
        if self.text:
            return f"texts of at most {width} bytes"
        return f"images of {width}x{height} {'grey' if channels == 1 else 'RGB'}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """[channels, height, width] of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def offsets(self) -> Tensor:
        """[classes] index of each class's first image."""
        return self.sizes.cumsum(0) - self.sizes

    def class_of(self, image: int) -> int:
        """Return the class of the image with this index."""
        return int(torch.searchsorted(self.offsets, image, right=True)) - 1

    def scheme(self, name: str | None) -> Scheme:
        """Return the splits of that name; None: the first ones."""
        if name is None:
            return self.schemes[0]
        for scheme in self.schemes:
            if scheme.name == name:
                return scheme
        known = ", ".join(s.name for s in self.schemes)
        raise InputError(
            f"data set {self.name!r} has no splits {name!r}", remedy=f"choose one of {known}"
        )

    @classmethod
    def open(cls, name: str) -> ImageStore:
        """Verify and memory-map a data set that was imported."""
        folder = folder_of(name)
        if not (folder / "manifest.json").exists():
            raise InputError(
                f"data set {name!r} is not imported yet",
                remedy=f"run `metatrain data import {name}`, with --source if it is your own; "
                "`metatrain data list` shows those that are there",
            )
        return cls.read(
            name,
            folder,
            f"run `metatrain data import {name}` again, with --source if it is your own",
        )

    @classmethod
    def read(cls, name: str, folder: Path, again: str) -> ImageStore:
        """Verify and memory-map the data set in a folder; `again` says how to get it again."""
        manifest, header, images = stored.load(name, folder, again)
        return cls(
            name=name,
            images=images,
            class_names=header.class_names,
            sizes=torch.tensor(header.sizes),
            schemes=header.schemes,
            synthetic=header.synthetic,
            checksum=manifest.content,
            bits=header.bits,
            text=header.text,
            embedding=header.embedding,
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
        if self.bits is not None:  # else the checksum is as it was before there were bits
            header["bits"] = self.bits
        if self.text:  # likewise
            header["text"] = True
        if self.embedding is not None:  # likewise
            header["embedding"] = self.embedding
        size = self.images[0].numel()
        pixels = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(size),
            len(self.images),
            [None, pa.py_buffer(self.images.contiguous().numpy())],
        )
        schema = pa.schema(
            [("pixels", pa.binary(size))], metadata={"metatrain": json.dumps(header)}
        )
        folder = folder_of(self.name)
        remedy = "check its free space, or set METATRAIN_CACHE to another folder"
        with storage.said(f"write {folder}", remedy):
            self._write(folder, header, schema, pixels)
        return folder

    def _write(
        self, folder: Path, header: dict[str, Any], schema: pa.Schema, pixels: pa.Array
    ) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            path = Path(temporary) / "new" / "images.arrow"
            path.parent.mkdir()
            with pa.ipc.new_file(str(path), schema) as writer:
                writer.write_batch(pa.record_batch([pixels], schema=schema))
            content = hashlib.sha256(json.dumps(header).encode())
            content.update(self.images.contiguous().numpy().data)
            manifest = {
                "format": FORMAT,
                "content": content.hexdigest()[:16],
                "bytes": path.stat().st_size,
                "sha256": _sha256(path),
                "images": len(self.images),
                "classes": len(self.sizes),
            }
            (path.parent / "manifest.json").write_text(json.dumps(manifest, indent=1))
            if folder.exists():
                folder.rename(Path(temporary) / "old")
            path.parent.rename(folder)


def duplicates(store: ImageStore, scheme: Scheme) -> list[str]:
    """Return images, named by class, that equal an image of a class in another split."""
    split_of = {c: split for split, members in scheme.classes.items() for c in members}
    first: dict[bytes, int] = {}
    found = []
    for c, digest in _digests(store):
        other = first.setdefault(digest, c)
        if c in split_of and other in split_of and split_of[c] != split_of[other]:
            names = (f"{store.class_names[x]} ({split_of[x]})" for x in (other, c))
            found.append(" = ".join(names))
    return found


def twins(store: ImageStore) -> list[tuple[int, int]]:
    """Return (image, equal earlier image) by index for each image that equals an earlier one.

    The earlier one is of the same class if there is such a one.
    """
    first: dict[bytes, int] = {}
    of_class: dict[tuple[int, bytes], int] = {}
    found = []
    for i, (c, digest) in enumerate(_digests(store)):
        anywhere = first.setdefault(digest, i)
        here = of_class.setdefault((c, digest), i)
        if anywhere != i:
            found.append((i, here if here != i else anywhere))
    return found


def _digests(store: ImageStore) -> Iterator[tuple[int, bytes]]:
    """Yield the class of each image, and a digest of its pixels."""
    class_of = torch.repeat_interleave(torch.arange(len(store.sizes)), store.sizes).tolist()
    for c, image in zip(class_of, store.images.numpy(), strict=True):
        yield c, hashlib.blake2b(image.tobytes(), digest_size=16).digest()


def folder_of(name: str) -> Path:
    """Return where the data set of that name is kept."""
    # Recipes name it as well: YAML must read it as text.
    if not re.fullmatch(r"\w[\w.-]{0,59}", name) or not yaml_reader.is_text(name):
        raise InputError(
            f"{name!r} cannot name a data set",
            remedy="use at most 60 letters, digits, '_', '-' and '.', and not a number",
        )
    return cache() / name


def checksum_of(name: str) -> str | None:
    """Return the recorded checksum of an imported data set's content; None if there is none."""
    try:
        return stored.manifest_of(folder_of(name), "import it again").content
    except InputError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
