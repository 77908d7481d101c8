"""Language models of bytes: predict the byte that follows, in a language of a task's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import ComputePath, InputError, Model, Norm, Split, Task
from metatrain.data.images import ImageStore
from metatrain.data.sources import open_data
from metatrain.metrics import Metric
from metatrain.models.text import VOCABULARY
from metatrain.problems.supervised import Supervised
from metatrain.tasks.episode import choose

BITS = Metric("bits", "min")  # per byte
BREAK = ord("\n")  # between texts


@dataclass(frozen=True, kw_only=True)
class Language:
    """Predict each byte from the `context` bytes before it; each class of texts is a language.

    The support set is the first `shots` bytes of the language's texts, in their order. Those of a
    training task begin anywhere. Query bytes are drawn from all that follow. The baseline
    `byte_frequencies` predicts by how often a byte is in the support set, plus one.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = BITS
    RECORDED: ClassVar[tuple[str, ...]] = ("splits", "checksum")  # of its data set

    name: Literal["language"] = "language"
    data: str = "udhr"
    """An imported data set of texts, or its path or address."""
    splits: str | None = None
    """Which of the data set's splits into classes to use; `null`: its first."""
    shots: int = bounded(2048, least=1, most=EXAMPLES)
    """Support bytes of a task."""
    queries: int = bounded(512, least=1, most=EXAMPLES)
    """Query bytes of a task."""
    context: int = bounded(8, least=1, most=256)
    """Bytes before a byte that networks get; zeros before the first text."""
    checksum: str | None = None
    """Checksum of the data set that must be used; `null`: of any."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @cached_property
    def store(self) -> ImageStore:
        return open_data(self.data, self.checksum)

    @cached_property
    def _streams(self) -> list[Tensor]:
        """The bytes [N] of each class's texts, one after the other."""
        rows = F.pad(self.store.images[:, 0, 0], (0, 1))
        ends = (rows > 0).sum(1)
        rows[torch.arange(len(rows)), ends] = BREAK
        return [part[part > 0] for part in rows.split(self.store.sizes.tolist())]

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """x [T, N, context] uint8 and y [T, N, 1] float32, the bytes that follow."""
        classes = self.store.scheme(self.splits).classes[split]
        drawn = torch.randint(len(classes), (count,), generator=generator).tolist()
        places = []
        for which in drawn:
            left = len(self._streams[classes[which]]) - self.shots - self.queries
            start = 0
            if split == "train":
                start = int(torch.randint(left + 1, (), generator=generator))
            rest = torch.tensor(left + self.queries - start)
            query = start + self.shots + choose(generator, rest, self.queries)
            places.append(torch.cat([start + torch.arange(self.shots), query]))
        streams = [self._streams[classes[which]] for which in drawn]
        windows = [F.pad(own, (self.context, 0)).unfold(0, self.context + 1, 1) for own in streams]
        found = torch.stack([own[at] for own, at in zip(windows, places, strict=True)])
        x, y = found[..., :-1], found[..., -1:].float()
        return Task(
            *(
                part[:, rows]
                for rows in (slice(self.shots), slice(self.shots, None))
                for part in (x, y)
            )
        )

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=(self.context,),
            outputs=VOCABULARY,
            feedback=1,
            loss=nats,
            metrics={"bits": bits},
            norm=norm,
            path=path,
            to_float=lambda x: x.float(),
            baselines={"byte_frequencies": byte_frequencies},
        )

    def resolved(self) -> Language:
        """With all that a run records of its data set."""
        store = self.store
        return replace(self, splits=store.scheme(self.splits).name, checksum=store.checksum)

    def check(self, split: Split) -> None:
        store = self.store
        if not store.text or store.embedding:
            raise InputError(f"{self.data} holds {store.kind}", remedy="give a data set of texts")
        if self.checksum not in (None, store.checksum):
            raise InputError(
                f"{self.data} is not the data set that this was trained on: its checksum",
                got=store.checksum,
                expected=repr(self.checksum),
                remedy="import that one again, or use this one with --set family.checksum=null",
            )
        scheme, needed = store.scheme(self.splits), self.shots + self.queries
        sizes = {c: len(self._streams[c]) for c in scheme.classes.get(split, [])}
        if not sizes or min(sizes.values()) < needed:
            fewest = f"a class of {min(sizes.values()):,} bytes" if sizes else "no class"
            raise InputError(
                f"{self.shots} shots and {self.queries} queries need {needed:,} bytes of a class, "
                f"but the {split} split of {self.data}/{scheme.name} has {fewest}",
                remedy="lower family.shots or family.queries, or give longer texts",
            )

    def describe(self) -> str:
        splits = self.splits or "first splits"
        return (
            f"{self.data}/{splits} next byte of a language after {self.context}, "
            f"{self.shots} support bytes, {self.queries} query bytes"
        )


def nats(logits: Tensor, following: Tensor) -> Tensor:
    """[T] mean cross entropy of logits [T, N, 256] and the bytes [T, N, 1] that follow."""
    target = following.flatten().long()
    each = F.cross_entropy(logits.flatten(0, 1), target, reduction="none")
    return each.view(following.shape).flatten(1).mean(1)


def bits(logits: Tensor, following: Tensor) -> Tensor:
    """[T] mean bits that a byte needs."""
    return nats(logits if torch.is_grad_enabled() else logits.double(), following) / math.log(2)


def byte_frequencies(task: Task) -> Tensor:
    """[T] bits of predicting by how often each byte is in the support set, plus one."""
    none = torch.zeros(len(task.support_y), VOCABULARY, device=task.support_y.device)
    seen = task.support_y[..., 0].long()
    counted = none.scatter_add(1, seen, torch.ones_like(task.support_y[..., 0])) + 1
    chance = counted / counted.sum(1, keepdim=True)
    return -chance.gather(1, task.query_y[..., 0].long()).log2().mean(1)
