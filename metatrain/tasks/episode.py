"""Episodes of classes of examples, and the draws that make them."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metatrain.core import InputError, Split, Task
from metatrain.data.images import ImageStore


class Episode(NamedTuple):
    """Tasks of classes of images or texts, T at once."""

    support_x: Tensor  # [T, S, C, H, W] or [T, S, bytes] uint8
    support_y: Tensor  # [T, S] int64
    query_x: Tensor
    query_y: Tensor
    # [T, ways]: the data set's class of each label; of images 4 times it, and its quarter turns
    classes: Tensor


class Classes(Protocol):
    """What a family of classes is asked for."""

    @property
    def data(self) -> str: ...

    @property
    def splits(self) -> str | None: ...

    @property
    def ways(self) -> int: ...

    @property
    def queries(self) -> int: ...

    @property
    def checksum(self) -> str | None: ...


def check_classes(
    store: ImageStore, family: Classes, split: Split, *, shots: int, turns: int = 1
) -> None:
    """Refuse another data set than the recorded one, and a split that cannot give such tasks.

    shots: the most support examples of a class.
    turns: classes that a class of the data set becomes.
    """
    kind, data = "texts" if store.text else "images", family.data
    if family.checksum not in (None, store.checksum):
        raise InputError(
            f"{data} is not the data set that this was trained on: its checksum",
            got=store.checksum,
            expected=repr(family.checksum),
            remedy="import that one again, or use this one with --set family.checksum=null",
        )
    scheme = store.scheme(family.splits)
    classes = scheme.classes.get(split, [])
    where = f"the {split} split of {data}/{scheme.name}"
    if not classes:
        raise InputError(
            f"{where} is empty: the data set has only {', '.join(scheme.classes)}",
            remedy=_other_splits(store, split),
        )
    available = len(classes) * turns
    if family.ways > available:
        raise InputError(
            f"{family.ways} ways were asked for, but {where} has {available} classes",
            remedy="lower family.ways",
        )
    fewest, wanted = int(store.sizes[torch.tensor(classes)].min()), shots + family.queries
    if wanted > fewest:
        raise InputError(
            f"{shots} shots and {family.queries} queries need {wanted} {kind} of a class, "
            f"but {where} has classes of {fewest}",
            remedy="lower family.shots or family.queries",
        )


def _other_splits(store: ImageStore, split: Split) -> str:
    """What to do if a split is empty."""
    others = [scheme.name for scheme in store.schemes if scheme.classes.get(split)]
    ways = [f"set family.splits to {' or '.join(others)}"] if others else []
    ways += ["set validation.every_steps to 0"] if split == "val" else []
    return ", or ".join(ways) or "use another data set"


def choose(generator: torch.Generator, sizes: Tensor, k: int) -> Tensor:
    """For each size n, k distinct numbers below n in random order: [*sizes.shape, k]."""
    least, most = (int(bound) for bound in sizes.aminmax())
    keys = torch.rand(*sizes.shape, most, generator=generator)
    if least < most:
        keys.masked_fill_(torch.arange(most) >= sizes[..., None], -1.0)
    return keys.topk(k, dim=-1).indices


def uneven(generator: torch.Generator, count: int, ways: int, shots: int, most: int) -> Tensor:
    """[T, W]: support examples of each class of `count` tasks, ways * shots in each task.

    What a class has more than `shots`, uniform in -most..most, another one has less.
    """
    found = torch.full((count, ways), shots)
    if not most:
        return found
    pairs = ways // 2
    more = torch.randint(-most, most + 1, (count, pairs), generator=generator)
    order = torch.rand(count, ways, generator=generator).argsort(1)
    found.scatter_add_(1, order[:, :pairs], more)
    return found.scatter_add_(1, order[:, pairs : 2 * pairs], -more)


def turned(images: Tensor, turns: Tensor) -> Tensor:
    """Images [T, N, C, H, W], each turned by its number of quarters [T, N]; may change them."""
    if images.device.type != "cpu":  # to look for places, the host would have to wait
        before = _quarters(images.shape[-1], images.device)[turns][:, :, None]
        return images.flatten(3).take_along_dim(before, -1).view_as(images)
    for turn in (1, 2, 3):
        where = (turns == turn).nonzero(as_tuple=True)
        if len(where[0]):
            images[where] = torch.rot90(images[where], turn, dims=(-2, -1))
    return images


@lru_cache(maxsize=4)
def _quarters(side: int, device: torch.device) -> Tensor:
    """[4, side * side]: for each pixel of an image turned by quarters, where it was before."""
    pixels = torch.arange(side * side).view(side, side)
    return torch.stack([torch.rot90(pixels, turn).flatten() for turn in range(4)]).to(device)


def nearest_neighbour(task: Task) -> Tensor:
    """[T] accuracy of giving a query image the label of the support image with closest pixels."""
    query, support = task.query_x.flatten(2).float(), task.support_x.flatten(2).float()
    distance = torch.cdist(query, support)  # [T, Q, S]
    return (task.support_y.gather(1, distance.argmin(-1)) == task.query_y).float().mean(1)
