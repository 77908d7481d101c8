"""The known data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from metatrain import files
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.data import (
    cifar,
    emoji,
    fashion_mnist,
    glyphs,
    intents,
    letters,
    mini_imagenet,
    omniglot,
    remote,
    tables,
    topics,
    udhr,
)
from metatrain.data.images import ImageStore, folder_of
from metatrain.storage import local, said

SOURCES: dict[str, Callable[[Path | None], ImageStore]] = {
    "glyphs": glyphs.read,
    "omniglot": omniglot.read,
    "cifar_fs": cifar.read_fs,
    "mini_imagenet": mini_imagenet.read,
    "cifar10": cifar.read_ten,
    "fashion_mnist": fashion_mnist.read,
    "letters": letters.read,
    "emoji": emoji.read,
    "udhr": udhr.read,
    "intents": intents.read,
    "topics": topics.read,
}


def open_data(name: str, checksum: str | None = None) -> ImageStore:
    """Open an imported data set, or the one at a path or an address such as s3://bucket/omniglot.

    The built-in data set is drawn if the cache lacks it. One that lies elsewhere is copied to the
    cache, unless the cache has the one with this checksum.
    """
    if name == tables.NAME:
        raise InputError(
            f"{name!r} are rows of numbers, and no images or texts", remedy="name another data set"
        )
    if remote.is_elsewhere(name):
        folder = remote.fetch(name, checksum)
        return ImageStore.read(name, folder, f"remove {folder}, so that it is fetched again")
    if name == "glyphs" and not _is_there(name):
        _draw(name)
    return ImageStore.open(name)


def _is_there(name: str) -> bool:
    return (folder_of(name) / "manifest.json").exists()


def _draw(name: str) -> None:
    """Draw the built-in data set: one process of a machine does, and the others wait."""
    folder = folder_of(name)
    with said(f"write {folder}", "set METATRAIN_CACHE to another folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(folder.with_name(f".{name}.lock")):
            if not _is_there(name):
                with awaiting("drawing the glyphs, once for this machine"):
                    import_data(name)


@lru_cache(maxsize=2)
def on_device(name: str, checksum: str | None, device: torch.device) -> ImageStore:
    """The data set with its examples on a device: one copy for all splits."""
    store = open_data(name, checksum)
    return replace(store, images=store.images.to(device))


def import_data(name: str, source: str | Path | None = None) -> ImageStore:
    """Bring a known data set into the cache, verifying its counts."""
    SOURCES[name](None if source is None else local(source, "--source")).save()
    return ImageStore.open(name)
