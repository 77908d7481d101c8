"""A run's meta-parameters, ready to adapt. Needs only a bundle."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from metatrain import bundle, protocol
from metatrain.core import (
    AnyTable,
    Context,
    InputError,
    Making,
    Meta,
    Norm,
    Params,
    Pictured,
    RawNumbers,
    Task,
    Ticket,
    attackable,
    generator_for,
)
from metatrain.inference.adapted import Adapted
from metatrain.inference.given import array_of, classes_of, examples_of, labels_of
from metatrain.isolation import isolated
from metatrain.ops.build import KernelsUnavailable
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe
from metatrain.tasks.cipher import Cipher
from metatrain.tasks.language import Language

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metatrain.core import TaskFamily
    from metatrain.inference.estimators import Classifier, Regressor

EACH = 4  # made images of a real one in a picture


def load(path: str | Path, threads: int = 1) -> Learned:
    """Load a run's folder or a bundle, ready to adapt in so many threads.

    Raises InputError if it is missing, incomplete or damaged.
    """
    if not isinstance(threads, int) or threads < 1:
        raise InputError("threads", got=threads, expected="a whole number from 1 on")
    with isolated(threads):
        return Learned(*bundle.load(bundle.find(str(path)) or str(path)), str(path), threads)


class Learned:
    """Meta-parameters with the recipe that they were learned by, ready to adapt.

    Threads may share it.
    """

    def __init__(self, recipe: Recipe, meta: Meta, source: str, threads: int = 1) -> None:
        self.recipe, self.meta, self.source, self.threads = recipe, meta, source, threads
        self._setting = recipe.setting("score")
        # By norm and number of classes.
        self._problems: dict[tuple[Norm, int], tuple[TaskFamily, Supervised]] = {}
        with isolated(threads):
            self._problem = self._bind(self._setting.family, self._setting.norm[0])

    @property
    def has_classes(self) -> bool:
        """Whether targets are labels; else they are numbers."""
        return self._problem.classes

    @property
    def inputs(self) -> tuple[int, ...]:
        """The shape of an example, as the network gets it."""
        return tuple(self._problem.inputs)

    @property
    def targets(self) -> int:
        """How many numbers, or labels, belong to an example."""
        return 1 if self._problem.classes else self._problem.feedback

    @property
    def protocol(self) -> str:
        """What the parameters were learned from."""
        return protocol.of_learned(self.recipe)

    def __repr__(self) -> str:
        return f"<{self.source}: {self.protocol}>"

    def __deepcopy__(self, memo: Any) -> Learned:
        return self  # nothing changes it

    def __reduce__(self) -> tuple[Any, ...]:
        return Learned, (self.recipe, self.meta, self.source, self.threads)

    @property
    def norm(self) -> Norm:
        """The norm of the evaluation, unless another one is asked for."""
        return self._setting.norm[0]

    def classifier(self) -> Classifier:
        """Return a scikit-learn classifier: it adapts to the rows of a table, and predicts others.

        Raises InputError if the network did not learn from made tables with classes.
        """
        from metatrain.inference.estimators import Classifier

        return Classifier(self._of_tables(classes=True))

    def regressor(self) -> Regressor:
        """Return the same for tables whose target is a number."""
        from metatrain.inference.estimators import Regressor

        return Regressor(self._of_tables(classes=False))

    def _of_tables(self, *, classes: bool) -> Learned:
        """Return this network; InputError if it does not predict such targets of tables."""
        made = isinstance(self._setting.family, AnyTable)
        if made and self.has_classes == classes:
            return self
        kind = "classes" if classes else "numbers"
        other = "regressor()" if classes else "classifier()"
        raise InputError(
            f"{self.source} learned from {self.recipe.family.name} tasks, and not to predict "
            f"{kind} of any table",
            remedy=f"use {other}" if made else "use adapt(examples, targets)",
        )

    def adapt(self, examples: Any, targets: Any, norm: Norm | None = None) -> Adapted:
        """Adapt, as the recipe's evaluation does, to S examples and their S labels or numbers.

        examples: an image is a path, a PIL image, or an array or tensor [H, W], [H, W, C] or
            [C, H, W], uint8 or in 0..1. Rows of a table are a DataFrame, or arrays in the order of
            `recipe.family.features`. Examples of other families are arrays [S, *in]: x of a
            sinusoid, the two values before the target of a series.
        targets: labels of any kind for images, else numbers.
        norm: the images whose statistics normalise a prediction; default: as in the evaluation.

        The inner loop draws the random numbers of the evaluation's first task. Raises InputError if
        the network was trained for another number of classes, or if adaptation diverges.
        """
        if norm is not None and norm not in get_args(Norm):
            raise InputError("norm", got=norm, expected=f"one of {', '.join(get_args(Norm))}")
        with isolated(self.threads):
            return self._adapt(examples, targets, norm or self.norm)

    def _adapt(self, examples: Any, targets: Any, norm: Norm) -> Adapted:
        family, numbers = self._setting.family, self._problem.feedback
        x = examples_of(family, self._problem, examples)
        if not len(x):
            raise InputError("there are no examples to adapt to", remedy="give one or more")
        classes = None
        if self._problem.classes:
            labels = labels_of(targets, len(x))
            classes = classes_of(labels)
            y = torch.tensor([classes.index(label) for label in labels])
        else:
            y = (
                family.targets(targets)
                if isinstance(family, RawNumbers)
                else array_of(targets, "targets", (numbers,))
            )
        if len(y) != len(x):
            raise InputError(
                f"there are {len(x)} examples and {len(y)} targets",
                remedy="give each example its target",
            )
        return self.adapted(x, y, classes, norm)

    def adapted(self, x: Tensor, y: Tensor, classes: list[Any] | None, norm: Norm) -> Adapted:
        """Adapt to examples [S, *in] and targets [S, *out] as the network gets them.

        classes: the labels that y [S] numbers; None if it has numbers.

        What is given in double precision is computed in double precision.
        """
        setting = self._setting
        meta = self._in_double if x.dtype == torch.float64 else self.meta
        family, problem = self._bound(norm, classes)
        support = Task(x[None], y[None], x[None, :0], y[None, :0])
        ticket = Ticket("score", setting.split, 0, 0)
        context = Context(ticket, generator_for(setting.seed, ticket, "adaptation"))
        started = time.perf_counter()
        adapting = setting.algorithm.adapt(problem, meta, support, context)
        before = next(adapting)
        ((steps, after),) = deque(enumerate(adapting, 1), maxlen=1) or [(0, before)]
        seconds = time.perf_counter() - started
        if not all(bool(p.isfinite().all()) for p in after.values()):
            raise InputError(
                f"adaptation to these {len(x)} examples diverged in {steps} inner steps",
                remedy="check whether their values are far from those of training, or lower the "
                "inner rate of evaluation.algorithm",
            )
        return Adapted(
            classes=classes,
            norm=problem.norm[0],
            seconds=seconds,
            steps=steps,
            threads=self.threads,
            problem=problem,
            family=family,
            support=support,
            context=context,
            before=before,
            after=after,
        )

    @cached_property
    def _in_double(self) -> Meta:
        return Meta.unflat({name: p.double() for name, p in self.meta.flat().items()})

    def _bound(self, norm: Norm, classes: list[Any] | None) -> tuple[TaskFamily, Supervised]:
        """Return the family of these classes, and its problem that fits the network."""
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
        """Bind a family to the kernels that training uses, if this machine has them."""
        try:
            problem = family.bind(self.recipe.model, (norm,), "fused")
        except KernelsUnavailable:
            problem = family.bind(self.recipe.model, (norm,), "reference")
        if not isinstance(problem, Supervised):
            raise InputError(
                f"{self.source} learned from {self.recipe.family.name} tasks, which are episodes",
                remedy="give a run that learned from examples",
            )
        if not takes_examples(family, problem):
            raise InputError(
                f"{self.source} learned from {self.recipe.family.name} tasks, which take no "
                "examples of your own",
                remedy="measure it with `metatrain evaluate`",
            )
        return problem

    def _check_network(self, problem: Supervised, classes: list[Any] | None) -> None:
        """Refuse another number of classes than in training, and another network's parameters."""
        if classes is not None and len(classes) < 2:
            raise InputError(
                "all examples have the same label, so there is nothing to tell apart",
                remedy="give a second class",
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
        if classes is not None and not (same_shapes and len(classes) <= problem.outputs):
            # A family without `ways` may have tasks of fewer classes.
            ways = getattr(self._setting.family, "ways", problem.outputs)
            most = "" if hasattr(self._setting.family, "ways") else "at most "
            raise InputError(
                f"{self.source} tells {ways} classes apart, got labels of {len(classes)} "
                f"({', '.join(map(str, classes[:10]))})",
                remedy=f"give examples of {most}{ways} classes",
            )


def takes_examples(family: TaskFamily, problem: Any) -> bool:
    """Whether what a network learned can be used on examples of one's own.

    Bytes and letters are classes whose number counts, and would be numbered anew; who reads pulls
    is asked nothing but which arm is best.
    """
    examples = isinstance(problem, Supervised) and problem.predicts_targets
    return examples and not isinstance(family, Cipher | Language)


def illustrate(recipe: Recipe, meta: Meta) -> Figure | None:
    """Have the family show what adaptation does, on tasks of the evaluation's split, if it can."""
    setting = recipe.setting("score")
    if not isinstance(setting.family, Pictured):
        return None
    problem = setting.family.bind(recipe.model, setting.norm[:1], "reference")
    ticket = Ticket("score", setting.split, 0, 0)
    adaptation, picture = (
        Context(ticket, generator_for(setting.seed, ticket, use))
        for use in ("adaptation", "picture")
    )

    def adapt(task: Any) -> list[tuple[int, Params]]:
        return list(enumerate(setting.algorithm.adapt(problem, meta, task, adaptation)))

    return setting.family.picture(problem, adapt, picture)


def illustrate_made(recipe: Recipe, meta: Meta) -> Figure | None:
    """Show what the algorithm makes of the evaluation's images, if it makes some."""
    from metatrain import figures

    setting = recipe.setting("score")
    if not isinstance(setting.algorithm, Making):
        return None
    problem = attackable(setting.family.bind(recipe.model, setting.norm[:1], "reference"))
    generator = generator_for(setting.seed, Ticket("score", setting.split, 0, 0), "picture")
    real = problem.in_floats(setting.family.sample(generator, 1, setting.split))[1].support_x
    made = [setting.algorithm.make(meta, real, generator)[0] for _ in range(EACH)]
    return figures.made_images(real[0], made, f"{recipe.name}: made of {setting.split} images")
