"""What was meta-learned, put to use: adapt to a few labelled examples, predict others. Needs only a
bundle.
"""

from __future__ import annotations

import dataclasses
import html
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from metatrain import bundle
from metatrain.core import (
    Context,
    InputError,
    Meta,
    Norm,
    Params,
    RawExamples,
    RawNumbers,
    Task,
    Ticket,
    generator_for,
)
from metatrain.isolation import isolated
from metatrain.names import counted
from metatrain.ops.build import Unavailable
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe
from metatrain.tasks.fewshot import FewShot

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from metatrain.core import TaskFamily

# examples that are predicted at once if they do not depend on each other: bounds the memory
CHUNK = 100
SHOWN = 10  # predictions in a notebook's cell


@dataclass(frozen=True, repr=False)
class Predictions:
    """Classes of N examples."""

    classes: list[Any]  # the labels of the support set, sorted
    probabilities: Tensor  # [N, classes]; nan if the network gave no finite numbers

    @property
    def labels(self) -> list[Any]:
        """[N] the most probable ones; None for an example without finite probabilities."""
        found = zip(
            self.probabilities.argmax(-1).tolist(),
            self.probabilities.isfinite().all(-1).tolist(),
            strict=True,
        )
        return [self.classes[i] if finite else None for i, finite in found]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        return (
            f"<{counted(len(self), 'prediction')} of {len(self.classes)} classes: "
            f"{_some(self.labels)}>"
        )

    def _repr_html_(self) -> str:
        rows = zip(self.labels, self.probabilities.tolist(), strict=True)
        heads = ["prediction", *self.classes]
        return _table(
            self, heads, [[label, *(f"{100 * p:.1f}%" for p in row)] for label, row in rows]
        )


@dataclass(frozen=True, repr=False)
class Numbers:
    """Predicted numbers of N examples, in the units of the data."""

    values: Tensor  # [N], or [N, outputs] if there are several

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values.numpy(), dtype=dtype)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'prediction')}: {_some(self.values.tolist())}>"

    def _repr_html_(self) -> str:
        return _table(self, ["prediction"], [[value] for value in self.values.tolist()])


@dataclass(frozen=True, kw_only=True, repr=False)
class Adapted:
    """A network that was adapted to a support set. Threads may share it."""

    classes: (
        list[Any] | None
    )  # the labels of the support set, sorted; None if its targets are numbers
    # whose statistics normalise an example that is predicted; "transductive": of all given at once
    norm: Norm
    seconds: float  # that the inner loop took
    steps: int  # of adaptation
    threads: int
    problem: Supervised
    family: TaskFamily
    support: Task  # T = 1
    context: Context  # of an evaluation
    before: Params  # of the one task, before and after the inner loop
    after: Params

    def predict(self, examples: Any) -> Any:
        """Predictions of classes, or Numbers, for N examples of the kind that `adapt` took.

        With norm "transductive" they depend on all examples that are given together; else each on
        its own only.
        """
        return self.predictions(self.outputs(self.after, self.examples(examples)))

    def predictions(self, outputs: Tensor) -> Any:
        """What the network's outputs [N, outputs] say: Predictions of classes, or Numbers."""
        if self.classes is not None:
            return Predictions(self.classes, outputs.softmax(-1))
        if isinstance(self.family, RawNumbers):
            return Numbers(self.family.predictions(outputs))
        return Numbers(outputs[:, 0] if self.problem.outputs == 1 else outputs)

    def examples(self, raw: Any) -> Tensor:
        """[N, *in]: what the network gets of N examples, which may be none."""
        with isolated(self.threads):
            return _examples(self.family, self.problem, raw)

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """[N, outputs] of the network with the parameters `before` or `after` adaptation."""
        if not len(x):
            raise InputError("there is nothing to predict", remedy="give at least one example")
        at_once = len(x) if self.norm == "transductive" else CHUNK
        with isolated(self.threads), torch.no_grad():
            parts = [
                self.problem.predict(params, self.support._replace(query_x=part[None]), self.context)
                for part in x.split(at_once)
            ]
            return torch.cat(parts, dim=1)[0]

    def picture(
        self,
        images: Any,
        labels: Sequence[str | None],
        title: str,
        captions: Sequence[str] | None = None,
    ) -> Figure:
        """The support set, and the images with their predictions before and after adaptation.

        If an image's label is None, its prediction is not marked right or wrong. `captions` stand
        above the images, by default the labels.
        """
        from metatrain import figures

        x = self.examples(images)
        classes = [str(c) for c in self.classes or []]
        names = [classes[y] for y in self.support.support_y[0].tolist()]
        return figures.episode(
            support=list(zip(self.support.support_x[0], names, strict=True)),
            query=list(zip(x, labels, captions or [label or "" for label in labels], strict=True)),
            classes=classes,
            before=self.outputs(self.before, x).softmax(-1),
            after=self.outputs(self.after, x).softmax(-1),
            title=title,
        )

    def __repr__(self) -> str:
        to = (
            ""
            if self.classes is None
            else f" of {len(self.classes)} classes ({_some(self.classes)})"
        )
        return (
            f"<adapted to {counted(self.support.support_x.shape[1], 'example')}{to} in "
            f"{1000 * self.seconds:.1f} ms>"
        )


class Learned:
    """Meta-parameters with the recipe that they were learned by, ready to adapt. Threads may share
    it.
    """

    def __init__(self, recipe: Recipe, meta: Meta, source: str, threads: int = 1) -> None:
        self.recipe, self.meta, self.source, self._threads = recipe, meta, source, threads
        self._setting = recipe.setting("score")
        self._problems: dict[
            tuple[Norm, int], tuple[TaskFamily, Supervised]
        ] = {}  # by norm and number of classes
        with isolated(threads):
            self._problem = self._bind(self._setting.family, self._setting.norm[0])

    @property
    def has_classes(self) -> bool:
        """Whether targets are labels; else they are numbers."""
        return self._problem.targets == "classes"

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of an example, as the network gets it."""
        return tuple(self._problem.inputs)

    @property
    def targets(self) -> int:
        """How many numbers, or labels, belong to an example."""
        return 1 if self._problem.targets == "classes" else self._problem.outputs

    @property
    def protocol(self) -> str:
        """How they were learned."""
        family, outer = self.recipe.family, self.recipe.outer
        tasks = family.summary() if isinstance(family, FewShot) else family.describe()
        return (
            f"{tasks}, {self.recipe.algorithm.name}, {outer.steps} steps of {outer.tasks_per_step} "
            "tasks "
            f"({self.recipe.name})"
        )

    def __repr__(self) -> str:
        return f"<{self.source}: {self.protocol}>"

    def adapt(self, examples: Any, targets: Any, norm: Norm | None = None) -> Adapted:
        """Adapt, as the recipe's evaluation does, to S examples and their S labels or numbers.

        An image is a path, a PIL image, or an array or tensor [H, W], [H, W, C] or [C, H, W], uint8
        or in 0..1; its label may be of any kind. Rows of a table are a DataFrame, or arrays in the
        order of `recipe.family.features`. Examples of other families are arrays [S, *in]: of a
        sinusoid x, of a series the two values before the target. `norm` says whose statistics
        normalise an example that is predicted, by default the evaluation's. What the inner loop
        draws at random is what it draws for the evaluation's first task. Raises InputError if the
        classes are not as many as the network was trained for, or if adaptation diverges.
        """
        if norm is not None and norm not in get_args(Norm):
            raise InputError(f"norm is {norm!r}, expected one of {', '.join(get_args(Norm))}")
        with isolated(self._threads):
            return self._adapt(examples, targets, norm or self._setting.norm[0])

    def _adapt(self, examples: Any, targets: Any, norm: Norm) -> Adapted:
        setting, family, outputs = self._setting, self._setting.family, self._problem.outputs
        x = _examples(family, self._problem, examples)
        if not len(x):
            raise InputError("there are no examples to adapt to", remedy="give one or more")
        classes = None
        if self._problem.targets == "classes":
            labels = _labels(targets, len(x))
            classes = _classes(labels)
            y = torch.tensor([classes.index(label) for label in labels])
        else:
            y = (
                family.targets(targets)
                if isinstance(family, RawNumbers)
                else _array(targets, "targets", (outputs,))
            )
        family, problem = self._bound(norm, classes)
        if len(y) != len(x):
            raise InputError(
                f"there are {len(x)} examples and {len(y)} targets",
                remedy="give each example its target",
            )
        support = Task(x[None], y[None], x[None, :0], y[None, :0])
        ticket = Ticket("score", setting.split, 0, 0)
        context = Context(ticket, generator_for(setting.seed, ticket, "adaptation"))
        started = time.perf_counter()
        adapting = setting.algorithm.adapt(problem, self.meta, support, context)
        before = next(adapting)
        ((steps, after),) = deque(enumerate(adapting, 1), maxlen=1) or [(0, before)]
        seconds = time.perf_counter() - started
        if not all(bool(p.isfinite().all()) for p in after.values()):
            raise InputError(
                f"adaptation to these {len(x)} examples diverged in {steps} inner steps",
                remedy=(
                    "their "
                    "values may be far from "
                    "those of training; check them, or lower the inner rate of evaluation.algorithm"
                ),
            )
        return Adapted(
            classes=classes,
            norm=problem.norm[0],
            seconds=seconds,
            steps=steps,
            threads=self._threads,
            problem=problem,
            family=family,
            support=support,
            context=context,
            before=before,
            after=after,
        )

    def _bound(self, norm: Norm, classes: list[Any] | None) -> tuple[TaskFamily, Supervised]:
        """The family of so many classes, and its problem; InputError if the network was not trained
        for them.
        """
        key = norm, len(classes or [])
        if key not in self._problems:
            family = self._setting.family
            if classes is not None and "ways" in {item.name for item in dataclasses.fields(family)}:  # type: ignore[arg-type]
                family = replace(family, ways=max(len(classes), 2))  # type: ignore[type-var]
            problem = self._bind(family, norm)
            self._check_network(problem, classes)
            self._problems[key] = family, problem
        return self._problems[key]

    def _bind(self, family: TaskFamily, norm: Norm) -> Supervised:
        """Bound to the kernels that training uses, if this machine has them."""
        try:
            problem = family.bind(self.recipe.model, (norm,), "fused")
        except Unavailable:
            problem = family.bind(self.recipe.model, (norm,), "reference")
        if not isinstance(problem, Supervised):
            raise InputError(
                f"{self.source} learned from {self.recipe.family.name} tasks, which are episodes",
                remedy=("give a run that learned from examples"),
            )
        return problem

    def _check_network(self, problem: Supervised, classes: list[Any] | None) -> None:
        """Refuse a number of classes that the network was not trained for, and parameters of
        another network.
        """
        if classes is not None and len(classes) < 2:
            raise InputError(
                "all examples have the same label, so that there is nothing to tell apart",
                remedy=("give a second class"),
            )
        needed = self._setting.algorithm.init(problem, torch.Generator().manual_seed(0)).model
        same_names = needed.keys() == self.meta.model.keys()
        same_shapes = same_names and all(
            needed[name].shape == p.shape for name, p in self.meta.model.items()
        )
        if not same_names or (classes is None and not same_shapes):
            raise InputError(
                f"{self.source} has parameters of another version of its network",
                remedy="train it again",
            )
        if classes is not None and not (same_shapes and problem.outputs == len(classes)):
            ways = getattr(self._setting.family, "ways", problem.outputs)
            raise InputError(
                (
                    f"{self.source} tells {ways} classes apart, got labels of {len(classes)} "
                    f"({', '.join(map(str, classes[:10]))})"
                ),
                remedy=f"give examples of {ways} classes",
            )


def illustrate(recipe: Recipe, meta: Meta) -> Figure:
    """The family's picture of what adaptation does, on tasks of the evaluation's split."""
    setting = recipe.setting("score")
    problem = setting.family.bind(recipe.model, setting.norm[:1], "reference")
    ticket = Ticket("score", setting.split, 0, 0)
    adaptation, picture = (
        Context(ticket, generator_for(setting.seed, ticket, purpose))
        for purpose in ("adaptation", "picture")
    )

    def adapt(task: Any) -> list[tuple[int, Params]]:
        return list(enumerate(setting.algorithm.adapt(problem, meta, task, adaptation)))

    return setting.family.picture(problem, adapt, picture)


def load(path: str | Path, threads: int = 1) -> Learned:
    """What a run's folder or bundle holds, ready to adapt in so many threads.

    InputError if it is missing, incomplete or damaged.
    """
    if not isinstance(threads, int) or threads < 1:
        raise InputError(f"threads is {threads!r}, expected a whole number from 1 on")
    with isolated(threads):
        return Learned(*bundle.load(bundle.find(str(path)) or str(path)), str(path), threads)


def _examples(family: TaskFamily, problem: Supervised, raw: Any) -> Tensor:
    if isinstance(family, RawExamples):
        return family.examples(raw)
    return _array(raw, "examples", tuple(problem.inputs))


def _array(raw: Any, what: str, shape: tuple[int, ...]) -> Tensor:
    """[N, *shape] float32 of an array, tensor, DataFrame or list; [N] if each is one number."""
    _refuse_unordered(raw, what)
    if isinstance(raw, np.ma.MaskedArray) and np.ma.is_masked(raw):
        raise InputError(f"{what} have masked values", remedy="leave these examples out")
    if isinstance(raw, Tensor):
        raw = raw.detach().cpu()
    elif isinstance(raw, Iterable) and not hasattr(raw, "__array__"):
        raw = list(raw)
    try:
        given = np.array(raw)
        if given.dtype == np.bool_ or (
            given.dtype == object and any(isinstance(v, bool) for v in given.flat)
        ):
            raise InputError(f"{what} are true and false", remedy="give numbers, such as 1 and 0")
        with np.errstate(over="ignore"):
            array = torch.from_numpy(given.astype(np.float32))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{what} must be numbers, got {type(raw).__name__} ({error})", remedy="convert them"
        ) from error
    if array.dim() == 1 and shape == (1,):
        array = array[:, None]
    if array.shape[1:] != shape or not array.dim():
        expected = ", ".join(map(str, shape))
        raise InputError(f"{what} have the shape {list(array.shape)}, expected [N, {expected}]")
    if not bool(array.isfinite().all()):
        raise InputError(
            f"{what} have values that are not finite", remedy="leave these examples out"
        )
    return array


def _labels(raw: Any, examples: int) -> list[Any]:
    """One label for each example, as plain values."""
    _refuse_unordered(raw, "labels")
    if isinstance(raw, str | bytes) or not isinstance(raw, Iterable):
        raise InputError(
            f"labels must be a list with one for each example, got {type(raw).__name__}"
        )
    labels = [label.item() if getattr(label, "ndim", None) == 0 else label for label in raw]
    if any(getattr(label, "ndim", 0) or isinstance(label, list | tuple) for label in labels):
        raise InputError(
            "labels must be one number or string for each example, not vectors",
            remedy="pass class indices",
        )
    if len(labels) != examples:
        raise InputError(
            f"there are {examples} examples but {len(labels)} labels",
            remedy=("give one label for each example"),
        )
    if any(map(_is_missing, labels)):
        raise InputError("a label is missing (None or nan)", remedy="give each example its label")
    return labels


def _is_missing(label: Any) -> bool:
    try:
        return label is None or bool(label != label)  # nan equals nothing
    except TypeError:  # pandas' NA is neither equal nor not
        return True


def _refuse_unordered(raw: Any, what: str) -> None:
    if isinstance(raw, set | frozenset):
        raise InputError(f"{what} are a set, which has no order", remedy="give a list")


def _classes(labels: list[Any]) -> list[Any]:
    try:
        return sorted(set(labels))
    except TypeError as error:
        raise InputError(
            f"labels must be numbers or strings, all of one kind ({error})", remedy="convert them"
        ) from error


def _some(values: Sequence[Any]) -> str:
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(values) > SHOWN else "")


def _table(what: object, heads: Sequence[Any], rows: list[list[Any]]) -> str:
    """A notebook's view of predictions: the first ones, names escaped."""

    def cells(tag: str, values: Sequence[Any]) -> str:
        texts = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
        return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[:SHOWN])
    more = f"<p>{len(rows) - SHOWN} more</p>" if len(rows) > SHOWN else ""
    return f"<table><tr>{cells('th', heads)}</tr>{body}</table>{more}"
