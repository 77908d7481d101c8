"""N-way K-shot classification episodes over an ImageStore (Vinyals et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import (
    Adapt,
    ComputePath,
    Context,
    InputError,
    Model,
    Norm,
    Split,
    Task,
    together,
)
from metatrain.data.images import ImageStore
from metatrain.data.pixels import Depth, Picture, listed, stack
from metatrain.data.sources import on_device, open_data
from metatrain.data.stored import Rotations
from metatrain.measures import AUC, CLASSES, ECE, MOST_CLASSES, by_class
from metatrain.metrics import ACCURACY, Metric, accuracy, cross_entropy
from metatrain.problems.supervised import Supervised
from metatrain.tasks.augment import Augment
from metatrain.tasks.episode import (
    Episode,
    check_classes,
    choose,
    nearest_neighbour,
    turned,
    uneven,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Tell classes apart from a few images of each.

    Each machine copies a data set from an address once. Runs and bundles record `shape`, `checksum`
    and `bits` of the data set: they are used without it, and with no other one.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = ACCURACY
    # What a run records of its data set, besides the shape, which its network needs.
    RECORDED: ClassVar[tuple[str, ...]] = ("splits", "checksum", "bits")

    name: Literal["fewshot"] = "fewshot"
    data: str = "glyphs"
    """An imported data set's name, or its path or address, such as s3://bucket/omniglot."""
    splits: str | None = None
    """Which of the data set's splits into classes to use; `null`: its first."""
    ways: int = bounded(5, least=2, most=EXAMPLES)
    """Classes of a task."""
    shots: int = bounded(1, least=1, most=EXAMPLES)
    """Support images of each class."""
    imbalance: int = bounded(0, least=0, most=EXAMPLES)
    """How far the shots of a class may be from `shots`, both ways; a task has ways * shots."""
    queries: int = bounded(1, least=1, most=EXAMPLES)
    """Query images of each class."""
    invert: bool = False
    """Whether networks see 1 - x instead of an image x in 0..1."""
    augment: Augment | None = None
    """How images change at random, such as `{flip: true, crop: 4}`; `null`: not at all."""
    shape: tuple[int, int, int] | None = bounded(None, least=1, most=2048)
    """Channels, height and width of an image; `null`: the data set's."""
    checksum: str | None = None
    """Checksum of the data set that must be used; `null`: of any."""
    bits: Depth | None = None
    """How many bits the data set's grey images of 16 bits use; `null`: it has none."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.imbalance >= self.shots:
            raise InputError(
                "imbalance",
                got=self.imbalance,
                expected=f"below shots, which is {self.shots}: each class needs a support image",
            )

    @cached_property
    def store(self) -> ImageStore:
        return open_data(self.data, self.checksum)

    @cached_property
    def _classes(self) -> dict[str, Tensor]:
        """The data set's classes in each split."""
        classes = self.store.scheme(self.splits).classes
        return {split: torch.tensor(each) for split, each in classes.items()}

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Episode:
        """x [T, N, C, H, W] uint8 and labels [T, N] int64, in the order of the labels.

        N is ways * shots in the support set and ways * queries in the query set.
        """
        store = self.store
        rotations = self.rotations(split)
        classes = self._classes[split]
        pool = len(classes) * (4 if rotations == "classes" else 1)
        chosen = choose(generator, torch.full((count,), pool), self.ways)  # [T, W]
        if rotations == "classes":
            turns = chosen % 4
            chosen = classes[chosen // 4]
        else:
            chosen = classes[chosen]
            turns = torch.zeros_like(chosen)
        identity = 4 * chosen + turns
        if rotations == "per-task":
            turns = torch.randint(4, chosen.shape, generator=generator)
        most = self.shots + self.imbalance
        examples = choose(generator, store.sizes[chosen], most + self.queries)  # [T, W, each]
        rows = store.offsets[chosen][..., None] + examples
        labels = torch.arange(self.ways).expand(count, self.ways)
        shots = uneven(generator, count, self.ways, self.shots, self.imbalance)
        given = torch.arange(most) < shots[..., None]  # [T, W, most]
        support = rows[..., :most][given].view(count, -1)
        support_turns, support_y = (
            each[..., None].expand_as(given)[given].view(count, -1) for each in (turns, labels)
        )
        query, query_turns = rows[..., most:].flatten(1), turns.repeat_interleave(self.queries, 1)
        query_y = labels.repeat_interleave(self.queries, dim=1)
        support, support_turns, support_y, query, query_turns, query_y, identity = together(
            [support, support_turns, support_y, query, query_turns, query_y, identity],
            store.images.device,
        )
        images = store.images[support], store.images[query]
        if rotations != "none":
            images = turned(images[0], support_turns), turned(images[1], query_turns)
        if self.augment and self.augment.changes(split):
            images = self.augment.both(*images, generator, 255 if self.invert else 0)
        return Episode(images[0], support_y, images[1], query_y, identity)

    def rotations(self, split: Split) -> Rotations:
        """Which quarter turns there are in a split."""
        if self.augment and self.augment.turns and self.augment.changes(split):
            return self.augment.turns
        return self.store.scheme(self.splits).rotations.get(split, "none")

    def resident(self, device: torch.device) -> FewShot:
        """The same family with its images, and so its tasks, on a device."""
        there = replace(self)
        vars(there)["store"] = on_device(self.data, self.checksum, device)
        return there

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=self.shape or self.store.shape,
            outputs=self.ways,
            loss=cross_entropy,
            metrics={"accuracy": accuracy},
            norm=norm,
            path=path,
            to_float=self._to_float,
            pixels=True,
            classes=True,
            baselines={"nearest_neighbour_on_pixels": nearest_neighbour},
            measures=CLASSES
            | ({"auc": AUC} if self.ways == 2 else {})
            | {"ece": ECE}
            | ({"classes": by_class(self._class)} if self.ways <= MOST_CLASSES else {}),
        )

    def resolved(self) -> FewShot:
        """With all that `bind` and `examples` need of the data set."""
        if self.shape is not None and self.splits is not None:
            return self
        store = self.store
        splits = store.scheme(self.splits).name
        return replace(
            self, shape=store.shape, splits=splits, checksum=store.checksum, bits=store.bits
        )

    def examples(self, pictures: Sequence[Picture] | Tensor) -> Tensor:
        """[N, C, H, W] uint8: pictures of any size and mode, as the data set's images."""
        shape, bits = (self.shape, self.bits) if self.shape else (self.store.shape, self.store.bits)
        return stack(listed(pictures, shape[0]), shape, bits)

    def picture(self, problem: Supervised, adapt: Adapt, context: Context) -> Figure:
        """Show an episode: its images, and each query's predictions before and after adaptation."""
        from metatrain import figures

        split = context.ticket.split
        task = Task(*self.sample(context.generator, 1, split)[:4])
        adapted = adapt(task)
        before, after = (
            problem.predict(params, task, context)[0].softmax(-1)
            for _, params in (adapted[0], adapted[-1])
        )
        last, _ = adapted[-1]
        names = [chr(ord("A") + i) if self.ways <= 26 else str(i) for i in range(self.ways)]
        return figures.episode(
            support=[
                (x, names[y]) for x, y in zip(task.support_x[0], task.support_y[0], strict=True)
            ],
            query=[
                (x, names[y], names[y])
                for x, y in zip(task.query_x[0], task.query_y[0], strict=True)
            ],
            classes=names,
            before=before,
            after=after,
            title=(
                f"A {split} episode of {self.data}: {self.ways}-way {self.shots}-shot, "
                f"{figures.when(last)}"
            ),
        )

    def check(self, split: Split) -> None:
        if self.store.text:
            raise InputError(f"{self.data} holds texts", remedy="set family.name to texts")
        if self.shape is not None and self.shape != self.store.shape:
            raise InputError(
                f"family.shape is {list(self.shape)}, but the images of {self.data} are "
                f"{list(self.store.shape)}",
                remedy="give a data set of that shape, such as a folder that is imported with that "
                "--size; a new run may leave family.shape out",
            )
        if self.augment:
            self.augment.check(self.store.shape)
        check_classes(
            self.store,
            self,
            split,
            shots=self.shots + self.imbalance,
            turns=4 if self.rotations(split) == "classes" else 1,
        )

    def _class(self, turned: int) -> str:
        """The name of one of an episode's `classes`."""
        which, turn = divmod(turned, 4)
        name = self.store.class_names[which]
        return f"{name} turned by {90 * turn} degrees" if turn else name

    def describe(self) -> str:
        synthetic = " (synthetic)" if self.store.synthetic else ""
        uneven = f" imbalance {self.imbalance}" if self.imbalance else ""
        augment = f" {self.augment.describe()}" if self.augment else ""
        return (
            f"{self.data}/{self.store.scheme(self.splits).name}{synthetic} "
            f"{self.ways}-way {self.shots}-shot{uneven} {self.queries} query/class{augment}"
        )

    def summary(self) -> str:
        """Name the tasks without the data set at hand, as of a bundle."""
        channels, height, width = self.shape or self.store.shape
        colours = "grey" if channels == 1 else "RGB"
        return (
            f"{self.data}/{self.splits} {self.ways}-way {self.shots}-shot, "
            f"{width}x{height} {colours}"
        )

    def _to_float(self, images: Tensor) -> Tensor:
        x = images.float()
        x.div_(x.new_full((), 255))  # by a number, a GPU would multiply by its inverse: other bits
        return x.neg_().add_(1) if self.invert else x
