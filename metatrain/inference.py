"""What was meta-learned, put to use: adapt to a few labelled images, predict others. Needs only a bundle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import torch
from torch import Tensor

from metatrain import bundle
from metatrain.core import Context, InputError, Meta, Norm, Params, Task, Ticket, generator_for
from metatrain.problem import Supervised
from metatrain.recipe import Recipe
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.pixels import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pictures = Sequence[Picture] | Tensor  # N of them: a list, or an array or tensor with a leading N

CHUNK = 100  # images that are predicted at once where they do not depend on each other: bounds the memory


class Predictions(NamedTuple):
    """Of N images."""

    classes: list[Any]  # the labels of the support set, sorted
    probabilities: Tensor  # [N, classes]

    @property
    def labels(self) -> list[Any]:
        """[N] the most probable ones."""
        return [self.classes[i] for i in self.probabilities.argmax(-1).tolist()]


@dataclass(frozen=True, kw_only=True)
class Adapted:
    """A network that was adapted to a support set."""

    classes: list[Any]  # the labels of the support set, sorted
    norm: Norm  # whose statistics normalise an image that is predicted; "transductive": of all given at once
    seconds: float  # that the inner loop took
    problem: Supervised = field(repr=False)
    family: FewShot = field(repr=False)
    support: Task = field(repr=False)  # T = 1
    before: Params = field(repr=False)  # of the one task, before and after the inner loop
    after: Params = field(repr=False)

    def predict(self, images: Pictures) -> Predictions:
        """Probabilities of the classes for each image, [N, classes].

        With norm "transductive" they depend on all images that are given together; else each on its own image only.
        """
        return Predictions(self.classes, self._probabilities(self.after, self.family.examples(images)))

    def picture(
        self, images: Pictures, labels: Sequence[str | None], title: str, captions: Sequence[str] | None = None
    ) -> Figure:
        """The support set, and the images with their predictions before and after adaptation.

        Of an image whose label is None it is not told whether a prediction is right. `captions` stand above the images,
        by default the labels.
        """
        from metatrain import figures

        x = self.family.examples(images)
        names = [str(self.classes[y]) for y in self.support.support_y[0].tolist()]
        return figures.episode(
            support=list(zip(self.support.support_x[0], names, strict=True)),
            query=list(zip(x, labels, captions or [label or "" for label in labels], strict=True)),
            classes=[str(c) for c in self.classes],
            before=self._probabilities(self.before, x),
            after=self._probabilities(self.after, x),
            title=title,
        )

    def _probabilities(self, params: Params, x: Tensor) -> Tensor:
        if not len(x):
            raise InputError("there are no images to predict: give at least one")
        at_once = len(x) if self.norm == "transductive" else CHUNK
        with torch.no_grad():
            tasks = [self.support._replace(query_x=part[None]) for part in x.split(at_once)]
            return torch.cat([self.problem.predict(params, task)[0] for task in tasks]).softmax(-1)


class Learned:
    """Meta-parameters with the recipe that they were learned by, ready to adapt to images."""

    def __init__(self, recipe: Recipe, meta: Meta, source: str) -> None:
        self.recipe, self.meta, self._source = recipe, meta, source
        self._setting = recipe.setting(recipe.evaluation.split)
        if not isinstance(recipe.family, FewShot) or not isinstance(self._setting.family, FewShot):
            raise InputError(
                f"{source} learned from {recipe.family.name} tasks: give a bundle that learned from images"
            )
        self._trained_on, self._family = recipe.family, self._setting.family

    @property
    def protocol(self) -> str:
        """How they were learned."""
        family, outer = self._trained_on, self.recipe.outer
        channels, height, width = family.shape or family.store.shape
        return (
            f"{family.data}/{family.splits} {family.ways}-way {family.shots}-shot, {width}x{height} "
            f"{'grey' if channels == 1 else 'RGB'}, {self.recipe.algorithm.name}, {outer.steps} steps of "
            f"{outer.tasks_per_step} tasks ({self.recipe.name})"
        )

    def adapt(self, images: Pictures, labels: Sequence[Any] | Tensor, norm: Norm | None = None) -> Adapted:
        """Adapt, as the recipe's evaluation does, to S images and their S labels, which may be of any kind.

        An image is a path, a PIL image, or an array or tensor [H, W], [H, W, C] or [C, H, W], uint8 or in 0..1. `norm`
        says whose statistics normalise an image that is predicted, by default the evaluation's. What the inner loop
        draws at random is what it draws for the evaluation's first task. Raises InputError where the classes are not as
        many as the network was trained for.
        """
        if norm is not None and norm not in get_args(Norm):
            raise InputError(f"norm is {norm!r}, expected one of {', '.join(get_args(Norm))}")
        x = self._family.examples(images)
        if any(getattr(label, "ndim", 0) for label in labels):
            raise InputError("labels must be one number or string for each image, not vectors: pass class indices")
        y = [label.item() if hasattr(label, "item") else label for label in labels]
        if len(y) != len(x):
            raise InputError(f"there are {len(x)} images but {len(y)} labels: give one label for each image")
        try:
            classes = sorted(set(y))
        except TypeError as error:
            raise InputError(f"labels must be numbers or strings, all of one kind ({error}): convert them") from error
        family = replace(self._family, ways=max(len(classes), 2))
        problem = family.bind(self.recipe.model, (norm or self._setting.norm[0],), "reference")
        fresh = self._setting.algorithm.init(problem, torch.Generator().manual_seed(0)).model
        if fresh.keys() != self.meta.model.keys():
            raise InputError(f"{self._source} has parameters of another version of its network: train it again")
        if len(classes) < 2 or any(fresh[name].shape != p.shape for name, p in self.meta.model.items()):
            raise InputError(
                f"{self._source} tells {self._family.ways} classes apart, got labels of {len(classes)} "
                f"({', '.join(map(str, classes[:10]))}): give images of {self._family.ways} classes"
            )
        x, targets = x[None], torch.tensor([[classes.index(label) for label in y]])
        support = Task(x, targets, x[:, :0], targets[:, :0])
        ticket = Ticket("score", self.recipe.evaluation.split, 0, 0)
        context = Context(ticket, generator_for(self._setting.seed, ticket, "adaptation"))
        started = time.perf_counter()
        before, *_, after = self._setting.algorithm.adapt(problem, self.meta, support, context)
        return Adapted(
            classes=classes,
            norm=problem.norm[0],
            seconds=time.perf_counter() - started,
            problem=problem,
            family=family,
            support=support,
            before=before,
            after=after,
        )


def illustrate(recipe: Recipe, meta: Meta) -> Figure:
    """The family's picture of what adaptation does, on tasks of the evaluation's split."""
    split = recipe.evaluation.split
    setting = recipe.setting(split)
    problem = setting.family.bind(recipe.model, setting.norm[:1], "reference")
    ticket = Ticket("score", split, 0, 0)
    context = Context(ticket, generator_for(setting.seed, ticket, "adaptation"))

    def adapt(task: Any) -> list[tuple[int, Params]]:
        return list(enumerate(setting.algorithm.adapt(problem, meta, task, context)))

    return setting.family.picture(problem, adapt, generator_for(setting.seed, ticket, "picture"), split)


def load(path: str | Path) -> Learned:
    """What a run's folder or bundle holds; InputError where it is missing, incomplete or damaged."""
    return Learned(*bundle.load(bundle.find(str(path)) or str(path)), str(path))
