"""The two files of a data set, checked beyond their checksums: anybody may have written them."""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor

from metatrain import files
from metatrain.awaiting import reading
from metatrain.core import InputError, Split
from metatrain.data.pixels import Depth

FORMAT = 2  # of the files; another one is imported again
MOST_MANIFEST = 1 << 16  # bytes
MOST_SIDE = 1024  # pixels; that of --size
MAGIC = 8  # bytes at the start of an Arrow file, before its messages

Rotations = Literal["none", "per-task", "classes"]
Count = Annotated[int, Field(ge=1, lt=1 << 40)]
Side = Annotated[int, Field(ge=1, le=MOST_SIDE)]


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A named, class-disjoint division into splits.

    `rotations` says what turns by 90, 180 and 270 degrees are in each split: not used ("none"), one
    drawn for each class of a task ("per-task"), or classes of their own ("classes").
    """

    name: str
    classes: dict[Split, list[int]]
    rotations: dict[Split, Rotations]

    def __post_init__(self) -> None:
        seen = [c for members in self.classes.values() for c in members]
        if len(seen) != len(set(seen)):
            remedy = "leave every class in one split"
            raise InputError(f"the splits {self.name!r} share classes", remedy=remedy)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says of images.arrow."""

    format: Literal[2]
    content: Annotated[str, Field(pattern="^[0-9a-f]{16}$")]  # it names a folder
    bytes: Count
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    images: Count
    classes: Count


@dataclass(frozen=True, kw_only=True)
class Header:
    """What images.arrow says of its pixels."""

    shape: tuple[Literal[1, 3], Side, Side]
    class_names: list[str]
    sizes: list[Annotated[int, Field(ge=0, lt=1 << 40)]]
    schemes: Annotated[list[Scheme], Field(min_length=1)]
    synthetic: bool
    bits: Depth | None = None
    text: bool = False
    embedding: Annotated[str, Field(pattern="^[0-9a-f]{16}$")] | None = None

    def __post_init__(self) -> None:
        classes, square = range(len(self.sizes)), self.shape[1] == self.shape[2]
        if len(self.class_names) != len(classes):
            raise ValueError(f"it has {len(self.class_names)} names of {len(classes)} classes")
        if len({scheme.name for scheme in self.schemes}) != len(self.schemes):
            raise ValueError("two of its splits have one name")
        for scheme in self.schemes:
            if not all(c in classes for members in scheme.classes.values() for c in members):
                raise ValueError(f"its splits {scheme.name!r} have classes that it lacks")
            if not scheme.classes.keys() <= scheme.rotations.keys():
                raise ValueError(f"its splits {scheme.name!r} do not say what turns")
            if self.text and self.shape[:2] != (1, 1):
                raise ValueError("its texts are not rows of bytes")
            if self.embedding and not (self.text and self.shape[2] % 2 == 0):
                raise ValueError("its embeddings are not those of texts")
            if not square and set(scheme.rotations.values()) != {"none"}:
                raise ValueError(f"its splits {scheme.name!r} turn images that are not square")


def manifest_of(folder: Path, again: str) -> Manifest:
    """Read a data set's manifest.

    again: what to do to get the data set again. Raises InputError if it is damaged.
    """
    path = folder / "manifest.json"
    try:
        return parsed_manifest(files.read(path, MOST_MANIFEST, follow=False))
    except InputError as error:
        raise InputError(f"{path} {error.what}", remedy=again) from error
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be read ({reason})", remedy=again) from error


def parsed_manifest(data: bytes) -> Manifest:
    """Return what the bytes of a manifest say; InputError if they are none."""
    try:
        return TypeAdapter(Manifest).validate_json(data, strict=True)
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("format",) and error.errors()[0]["type"] != "missing":
            raise InputError("was written by another version") from error
        raise InputError(f"is damaged ({_reason(error)})") from error


def load(name: str, folder: Path, again: str) -> tuple[Manifest, Header, Tensor]:
    """Verify and memory-map the data set in a folder: its images are [N, C, H, W] uint8.

    again: what to do to get the data set again. Raises InputError if it is damaged.
    """
    manifest, path = manifest_of(folder, again), folder / "images.arrow"
    try:
        with files.opened(path, manifest.bytes, follow=False) as file:
            if os.fstat(file.fileno()).st_size < manifest.bytes:
                raise OSError("it was cut")
            with reading(f"the data set {name}", manifest.bytes):
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != manifest.sha256:
                raise OSError("its checksum differs")
            mapped = mmap.mmap(file.fileno(), manifest.bytes, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path} is not what was imported", remedy=again) from error
    try:
        header, pixels = _parsed(mapped)
        if [len(header.sizes), sum(header.sizes)] != [manifest.classes, manifest.images]:
            raise ValueError("its counts are not those of its manifest")
    except Exception as error:  # Arrow raises nearly anything for a broken file
        raise InputError(f"{path} is damaged ({_reason(error)})", remedy=again) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")  # nothing writes to it
        return manifest, header, torch.from_numpy(pixels).view(-1, *header.shape)


def _parsed(mapped: mmap.mmap) -> tuple[Header, Any]:
    """Return the header and [bytes] uint8 of an Arrow file that `ImageStore.save` wrote.

    The pixels are taken as they lie in the file: Arrow would unpack compressed ones into memory,
    however many there are.
    """
    source = pa.BufferReader(pa.py_buffer(mapped))
    schema = pa.ipc.open_file(source).schema
    header = TypeAdapter(Header).validate_json((schema.metadata or {})[b"metatrain"], strict=True)
    wanted = sum(header.sizes) * math.prod(header.shape)
    source.seek(MAGIC)
    kinds = [(message := pa.ipc.read_message(source)).type for _ in range(2)]
    body = message.body
    if (
        kinds != ["schema", "record batch"]
        or schema.names != ["pixels"]
        or schema.types != [pa.binary(math.prod(header.shape))]
        or not wanted <= body.size < wanted + 64  # padded
    ):
        raise ValueError("its pixels are not those of its header")
    return header, np.frombuffer(body, np.uint8, wanted)


def _reason(error: Exception) -> str:
    """Return the first thing that is wrong, on one line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = str(first["msg"]).removeprefix("Value error, ")
        return f"{place}: {reason}" if place else reason
    return " ".join(str(error).split())[:200] or type(error).__name__
