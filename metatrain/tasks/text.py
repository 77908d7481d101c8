"""N-way K-shot classification of texts: sentences, paragraphs or short documents."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import ComputePath, InputError, Model, Norm, Split, Task, together
from metatrain.data import embeddings, texts
from metatrain.data.images import ImageStore
from metatrain.data.sources import on_device, open_data
from metatrain.measures import AUC, CLASSES, ECE, MOST_CLASSES, by_class
from metatrain.metrics import ACCURACY, Metric, accuracy, cross_entropy
from metatrain.models.text import ByteMLP, TextBag, TextConv, TextGRU, counts
from metatrain.problems.supervised import Supervised
from metatrain.tasks.episode import Episode, check_classes, choose

BUCKETS, LONGEST = 4096, 3  # of the baseline: numbers of a text, bytes of an n-gram


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Tell classes of texts apart from a few texts of each.

    A network gets the first `length` bytes of a text in UTF-8, zeros after its end. So a language
    of any script is read, and no vocabulary has to be learned. The baseline gives a text to the
    class whose mean of n-gram counts is nearest by the cosine. If the data set holds embeddings of
    texts, a network gets these numbers, and so does the baseline. Runs and bundles record `length`,
    `splits`, `checksum` and `embedding` of the data set, and are used without it.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = ACCURACY
    RECORDED: ClassVar[tuple[str, ...]] = ("splits", "checksum", "embedding")  # of its data set

    name: Literal["texts"] = "texts"
    data: str
    """An imported data set's name, or its path or address, such as s3://bucket/reviews."""
    splits: str | None = None
    """Which of the data set's splits into classes to use; `null`: its first."""
    ways: int = bounded(5, least=2, most=EXAMPLES)
    """Classes of a task."""
    shots: int = bounded(1, least=1, most=EXAMPLES)
    """Support texts of each class."""
    queries: int = bounded(1, least=1, most=EXAMPLES)
    """Query texts of each class."""
    grouped: bool = False
    """Whether a task's classes are of one group: their names are alike up to the last slash."""
    length: int | None = bounded(None, least=1, most=texts.MOST_BYTES)
    """Bytes of a text that networks get; `null`: all that the data set has."""
    checksum: str | None = None
    """Checksum of the data set that must be used; `null`: of any."""
    embedding: str | None = None
    """Checksum of the network whose embeddings the data set holds; `null`: it holds texts."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @cached_property
    def store(self) -> ImageStore:
        return open_data(self.data, self.checksum)

    @property
    def _length(self) -> int:
        return self.length or self.store.shape[2]

    @property
    def _recorded(self) -> bool:
        """Whether all is known that `bind` and `examples` need of the data set."""
        return None not in (self.length, self.splits, self.checksum)

    @property
    def _embedding(self) -> str | None:
        return self.embedding if self._recorded else self.store.embedding

    @cached_property
    def _groups(self) -> dict[Split, tuple[Tensor, Tensor]]:
        """Classes [groups, most] of each group that has enough of them, and their numbers."""
        found: dict[Split, tuple[Tensor, Tensor]] = {}
        for split, classes in self.store.scheme(self.splits).classes.items():
            groups: dict[str, list[Tensor]] = {}
            for c in classes:
                name = texts.group_of(self._class(c)) if self.grouped else ""
                groups.setdefault(name, []).append(torch.tensor(c))
            kept = [torch.stack(own) for own in groups.values() if len(own) >= self.ways]
            if kept:
                found[split] = pad_sequence(kept, True), torch.tensor([*map(len, kept)])
        return found

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Episode:
        """x [T, N, bytes] uint8 and labels [T, N] int64, in the order of the labels."""
        store = self.store
        members, sizes = self._groups[split]
        group = torch.zeros(count, dtype=torch.int64)
        if self.grouped:
            group = torch.randint(len(sizes), (count,), generator=generator)
        chosen = members[group].gather(1, choose(generator, sizes[group], self.ways))
        each = choose(generator, store.sizes[chosen], self.shots + self.queries)
        support, query = (store.offsets[chosen][..., None] + each).split(
            [self.shots, self.queries], dim=-1
        )
        labels = torch.arange(self.ways).expand(count, -1)
        support_y, query_y = (
            labels.repeat_interleave(n, dim=1) for n in (self.shots, self.queries)
        )
        support, support_y, query, query_y, chosen = together(
            [support.flatten(1), support_y, query.flatten(1), query_y, chosen], store.images.device
        )
        rows = store.images[:, 0, 0, : self._length]
        return Episode(rows[support], support_y, rows[query], query_y, chosen)

    def resident(self, device: torch.device) -> Texts:
        """The same family with its texts, and so its tasks, on a device."""
        there = replace(self)
        vars(there)["store"] = on_device(self.data, self.checksum, device)
        return there

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        if self._embedding and isinstance(model, TextBag | TextConv | TextGRU | ByteMLP):
            raise InputError(
                f"{model.name} reads bytes of texts, and {self.data} holds their embeddings",
                remedy="set model.name to mlp",
            )
        size = self._length // 2 if self._embedding else self._length
        features = embeddings.unpacked if self._embedding else ngrams
        return Supervised(
            model=model,
            inputs=(size,),
            outputs=self.ways,
            loss=cross_entropy,
            metrics={"accuracy": accuracy},
            norm=norm,
            path=path,
            to_float=embeddings.unpacked if self._embedding else lambda x: x.float(),
            classes=True,
            baselines={
                f"nearest_centroid_of_{'embeddings' if self._embedding else 'ngrams'}": partial(
                    nearest_centroid, ways=self.ways, features=features
                )
            },
            measures=CLASSES
            | ({"auc": AUC} if self.ways == 2 else {})
            | {"ece": ECE}
            | ({"classes": by_class(self._class)} if self.ways <= MOST_CLASSES else {}),
        )

    def _class(self, which: int) -> str:
        return self.store.class_names[which]

    def resolved(self) -> Texts:
        """With all that `bind` and `examples` need of the data set."""
        if self._recorded:
            return self
        store = self.store
        return replace(
            self,
            length=self._length,
            splits=store.scheme(self.splits).name,
            checksum=store.checksum,
            embedding=store.embedding,
        )

    def examples(self, raw: Any) -> Tensor:
        """[N, bytes] uint8 of a list or a Series of texts, or of their embeddings."""
        named = isinstance(raw, Mapping) or hasattr(raw, "columns")  # whose names are no texts
        if named or isinstance(raw, str | bytes | set) or not isinstance(raw, Iterable):
            raise InputError("texts", got=type(raw).__name__, expected="a list of strings")
        given = list(raw)
        odd = next((each for each in given if not (isinstance(each, str) and each.strip())), None)
        if odd is not None or any(each is None for each in given):
            raise InputError("a text", got=odd, expected="a string that is not empty")
        if not self._embedding:
            return texts.encode(given, self._length)
        if embeddings.encoder().checksum != self._embedding:
            raise InputError(
                "the embeddings of the installed network are not those of training: its checksum",
                got=embeddings.encoder().checksum,
                expected=repr(self._embedding),
            )
        return embeddings.packed(embeddings.embed(given))

    def shown(self, rows: Tensor) -> list[str]:
        """Texts of rows [N, bytes]; made-up ones if the rows are embeddings."""
        if self._embedding:
            return [f"text {i}" for i in range(len(rows))]
        return [texts.decode(row) for row in rows]

    def check(self, split: Split) -> None:
        store = self.store
        if not store.text:
            raise InputError(
                f"{self.data} holds images", remedy="set family.name to fewshot, or import texts"
            )
        if self.embedding != store.embedding and (self.embedding or self._recorded):
            raise InputError(
                "family.embedding",
                got=self.embedding,
                expected=f"{store.embedding!r}, as {self.data} holds {store.kind}",
            )
        if store.embedding and self._length != store.shape[2]:
            raise InputError(
                f"{self.data} holds embeddings, which are not cut", remedy="leave out family.length"
            )
        if self.length is not None and self.length > store.shape[2]:
            raise InputError(
                "family.length",
                got=self.length,
                expected=f"at most the {store.shape[2]} bytes that texts of {self.data} have",
                remedy="import longer texts with --size",
            )
        check_classes(store, self, split, shots=self.shots)
        if split not in self._groups:
            raise InputError(
                f"no group of the {split} split of {self.data} has {self.ways} classes",
                remedy="lower family.ways, set family.grouped to false, or import texts with a "
                f"column {texts.GROUP}",
            )

    def describe(self) -> str:
        return f"{self.data}/{self.store.scheme(self.splits).name} {self._shape()}"

    def summary(self) -> str:
        """Name the tasks without the data set at hand, as of a bundle."""
        return f"{self.data}/{self.splits} {self._shape()}"

    def _shape(self) -> str:
        kind = "embedded texts" if self._embedding else f"texts of {self.length or 'all'} bytes"
        return (
            f"{kind} {self.ways}-way{' of a group' * self.grouped} "
            f"{self.shots}-shot {self.queries} query/class"
        )


def ngrams(x: Tensor) -> Tensor:
    """The counts of n-grams that the baseline compares."""
    return counts(x, BUCKETS, LONGEST)


def nearest_centroid(
    task: Task, ways: int, features: Callable[[Tensor], Tensor] = ngrams
) -> Tensor:
    """[T] accuracy of the class, of so many ways, whose mean features are nearest by the cosine.

    features: numbers of length 1 of texts as tasks have them.
    """
    support, query = (features(x) for x in (task.support_x, task.query_x))
    classes = F.one_hot(task.support_y, ways).to(support.dtype)
    centroids = F.normalize(classes.mT @ support, dim=-1)
    return ((query @ centroids.mT).argmax(-1) == task.query_y).float().mean(1)
