"""Published data sets: the lists of their classes, and their images by class."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metatrain import yaml_reader
from metatrain.core import InputError, Split
from metatrain.data.images import ImageStore, Scheme
from metatrain.data.splits import SPLITS


def lists(name: str) -> dict[Split, list[str]]:
    """Return the names of a data set's classes by split, as `lists/NAME.yaml` has them."""
    file = resources.files("metatrain.data") / "lists" / f"{name}.yaml"
    found: Any = yaml_reader.keys(file.read_bytes(), file.name)
    return {split: found[split] for split in SPLITS}


def sorted_names(name: str) -> list[str]:
    """Return the names of all classes of a data set, sorted."""
    return sorted(label for members in lists(name).values() for label in members)


def where_to_put(name: str, accepted: str) -> str:
    """Return what to do if a data set has no source.

    accepted: the layouts that are read, in words.
    """
    return f"run `metatrain data import {name} --source PLACE`, with PLACE replaced by {accepted}"


def by_class(
    name: str,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    names: list[str],
    each: int,
    source: object,
) -> ImageStore:
    """Return the data set of [N, C, H, W] images and their labels [N], sorted by class.

    names, each, source: as for `counted`.
    """
    sizes = counted(labels, names, each, source)
    if (np.diff(labels) < 0).any():  # else no copy is made: they may be more than a gigabyte
        images = images[np.argsort(labels, kind="stable")]
    return ImageStore(
        name=name,
        images=torch.from_numpy(images),
        class_names=names,
        sizes=torch.from_numpy(sizes),
        schemes=_schemes(name, lists(name), names),
        synthetic=False,
    )


def counted(
    labels: NDArray[np.int64], names: list[str], each: int, source: object
) -> NDArray[np.int64]:
    """Return how many images each class has.

    names: of the classes, by label.
    each: images that each class must have; another number is an InputError about `source`.
    """
    sizes = np.bincount(labels, minlength=len(names))
    if wrong := [(label, size) for label, size in enumerate(sizes) if size != each]:
        label, size = wrong[0]
        known = names[label] if label < len(names) else f"number {label}"
        raise InputError(
            f"{source} is incomplete: the class {known} has {size} images, and {each} belong to it",
            remedy="get it again",
        )
    return sizes


def _schemes(name: str, splits: dict[Split, list[str]], names: list[str]) -> list[Scheme]:
    """Return the published splits of 100 classes; of ten classes also all of them as a test."""
    divided = {split: sorted(map(names.index, members)) for split, members in splits.items()}
    published = {"cifar_fs": "cifar-fs", "mini_imagenet": "mini-ravi"}
    if name in published:
        return [_scheme(published[name], divided)]
    everything: dict[Split, list[int]] = {"test": list(range(len(names)))}
    return [_scheme("all", everything), _scheme("6-2-2", divided)]


def _scheme(name: str, classes: dict[Split, list[int]]) -> Scheme:
    return Scheme(name=name, classes=classes, rotations=dict.fromkeys(classes, "none"))
