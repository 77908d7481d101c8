"""The recipe of a run, and how its tasks are drawn for each purpose."""

from __future__ import annotations

import html
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import Field

from metatrain import algorithms, custom, custom_source, models, schema, tasks
from metatrain.bounds import EXAMPLES, RATE, SEED, STEPS, bounded, check_bounds
from metatrain.core import (
    Algorithm,
    InputError,
    Model,
    Norm,
    Purpose,
    Setting,
    TaskFamily,
    Work,
)
from metatrain.custom import OwnClass
from metatrain.ensembles import Convex, purpose_of_fit
from metatrain.evaluation import Evaluation, Validation
from metatrain.outer import Outer
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.language import Language
from metatrain.tasks.text import Texts

AnyFamily = Annotated[tasks.BuiltIn, Field(discriminator="name"), OwnClass(TaskFamily)]
AnyModel = Annotated[models.BuiltIn, Field(discriminator="name"), OwnClass(Model)]
AnyAlgorithm = Annotated[algorithms.BuiltIn, Field(discriminator="name"), OwnClass(Algorithm)]

MOST_NAME = 200  # bytes: a file's name has 255, and trials add theirs


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Train the network with supervision on all training classes, or on all training tasks pooled.

    `metatrain pretrain` reads these keys, and `metatrain train` does not use them. The number of
    workers does not change how sums are grouped.
    """

    __pydantic_config__ = {"extra": "forbid"}

    steps: int = bounded(1000, least=1, most=STEPS)
    """Steps of Adam."""
    examples_per_step: int = bounded(128, least=1, most=EXAMPLES)
    """Examples of a step."""
    examples_per_part: int = bounded(32, least=1, most=EXAMPLES)
    """Examples that a worker computes at once; their batch statistics normalise them."""
    lr: float = bounded(0.001, least=0, most=RATE)
    """Learning rate."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """Everything that decides what is learnt: with a seed it determines the parameters."""

    FILE: ClassVar[str] = "recipe"  # the word for a file of this kind in errors
    __pydantic_config__ = {"extra": "forbid"}

    name: str
    """Name of the run."""
    seed: int = bounded(0, least=-SEED, most=SEED)
    """Seed of the initial weights and of all training tasks."""
    family: AnyFamily
    """The tasks."""
    model: AnyModel
    """The network."""
    algorithm: AnyAlgorithm
    """How the network learns a task, and how it learns to learn."""
    norm: Norm = "transductive"
    """The examples whose batch statistics normalise a query example in training."""
    outer: Outer
    """The outer loop."""
    validation: Validation = field(default_factory=Validation)
    """What is measured during training."""
    evaluation: Evaluation = field(default_factory=Evaluation)
    """What is measured after training."""
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    """Further evaluations by name, such as `{ways10: {family: {ways: 10}}}`."""
    pretraining: Pretraining | None = None
    """How `metatrain pretrain` trains the network; `null`: as the defaults say."""
    started_from: str | None = None
    """Name and checksum of the weights at `model.weights`, as a run records them."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_bounds(self)
        for name, evaluation in self.evaluations.items():
            check_variant(name)
            if evaluation.of is not None:
                raise InputError(
                    f"evaluations.{name}.of",
                    got=evaluation.of,
                    expected="no key: all evaluations are of the same parameters",
                    remedy="set evaluation.of",
                )
        if self.evaluation.of == "best" and not self.validation.every_steps:
            raise InputError(
                "evaluation.of",
                got="best",
                expected="last without validations",
                remedy="set validation.every_steps",
            )

    @property
    def takes_best(self) -> bool:
        """Whether the result is of the best validation; else of the last step."""
        return (self.evaluation.of or ("best" if self.validation.patience else "last")) == "best"

    def settings(self) -> dict[Purpose, Setting]:
        """How the tasks of each purpose are drawn and computed.

        Raises InputError if an override does not fit.
        """
        purposes = [Purpose("update"), Purpose("validate"), Purpose("score")]
        purposes += [Purpose("score", name) for name in self.evaluations]
        found = {purpose: self.setting(*purpose) for purpose in purposes}
        fitted = [s for s in found.values() if isinstance(s.ensemble, Convex)]
        return found | {purpose_of_fit(s.purpose): self._for_fit(s) for s in fitted}

    def setting(self, work: Work, variant: str = "") -> Setting:
        """How the tasks of one purpose are drawn and computed."""
        purpose, outer = Purpose(work, variant), self.outer
        if work == "update":
            return Setting(
                purpose,
                "train",
                self.family,
                self.algorithm,
                (self.norm,),
                self.seed,
                outer.tasks_per_step,
                outer.tasks_per_ticket,
            )
        if work == "validate":
            return self._validation()
        main = self.evaluation
        evaluation, key = main, "evaluation"
        if variant:  # it changes the main one further
            own, key = self.evaluations[variant], f"evaluations.{variant}"
            family, algorithm = main.family | own.family, main.algorithm | own.algorithm
            evaluation = replace(own, family=family, algorithm=algorithm)
        return Setting(
            purpose,
            evaluation.split,
            self._family(evaluation.family, f"{key}.family"),
            schema.override(self.algorithm, evaluation.algorithm, f"{key}.algorithm"),
            evaluation.norms(),
            evaluation.seed,
            evaluation.tasks,
            evaluation.tasks_per_ticket,
            evaluation.corruption,
            evaluation.attack,
            evaluation.ensemble,
        )

    def _validation(self) -> Setting:
        """The evaluation's setting, changed by the validation's own keys; its tasks are its own."""
        own, like = self.validation, self.setting("score")
        family, algorithm = like.family, like.algorithm
        if own.family is not None:
            family = self._family(own.family, "validation.family")
        if own.algorithm is not None:
            algorithm = schema.override(self.algorithm, own.algorithm, "validation.algorithm")
        return Setting(
            Purpose("validate"),
            "val",
            family,
            algorithm,
            (own.norm or like.norm[0],),
            own.seed,
            own.tasks,
            min(own.tasks, like.tasks_per_ticket),
            like.corruption,
            like.attack,
        )

    def _for_fit(self, like: Setting) -> Setting:
        """Validation tasks of an evaluation's kind, on which its ensemble's weights are fitted."""
        own = self.validation
        return like._replace(
            purpose=purpose_of_fit(like.purpose),
            split="val",
            seed=own.seed,
            tasks=own.tasks,
            tasks_per_ticket=min(own.tasks, like.tasks_per_ticket),
        )

    def _family(self, changes: dict[str, Any], source: str) -> AnyFamily:
        """The family with changed keys; of another data set it does not know what it recorded."""
        if isinstance(self.family, FewShot | Texts | Language) and "data" in changes:
            recorded = dict.fromkeys(self.family.RECORDED)
            changes = changes if changes["data"] == self.family.data else recorded | changes
        return schema.override(self.family, changes, source)

    def __repr__(self) -> str:
        parts = (self.family.name, self.model.name, self.algorithm.name)
        return (
            f"<{type(self).__name__} {self.name}: {', '.join(parts)}, {self.outer.steps} "
            "outer steps>"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(schema.as_yaml(self))}</pre>"


def check_name(name: str) -> None:
    """Refuse a name that a folder cannot have."""
    is_long = len(name.encode("utf-8", "replace")) > MOST_NAME
    wrong = is_long or not name.isprintable() or any(c in name for c in "/\\")
    if not name or name.startswith(".") or wrong:
        raise InputError(
            "name",
            got=name,
            expected="one that a folder can have",
            remedy=f"use at most {MOST_NAME} bytes, without / and a dot at its start",
        )


def check_variant(name: str) -> None:
    """Refuse a name of an evaluation that cannot be part of a metric's name in MLflow."""
    taken = [norm.replace("+", "_plus_") for norm in get_args(Norm)]
    if not (name.isascii() and name.isidentifier()) or name in taken:
        raise InputError(
            "a name in evaluations",
            got=name,
            expected="a letter, then letters, digits and underscores, and not the name of a norm",
            remedy="give one such as ways10",
        )


def is_sweep(tree: schema.Tree) -> bool:
    """Tell whether the keys of a file are those of a sweep, which names its recipe."""
    return bool({"space", "recipe"} & tree.keys()) and "family" not in tree


def is_pretraining(tree: schema.Tree) -> bool:
    """Tell whether the keys that a run recorded are those of a pre-training."""
    return tree.get("pretraining") is not None


def own_classes(recipe: Recipe) -> list[str]:
    """Return the names of the user's own classes in a recipe."""
    return custom.own(
        component.name for component in (recipe.family, recipe.model, recipe.algorithm)
    )


def own_code(recipe: Recipe, *, whole: bool = False) -> list[Path]:
    """Return the files and package folders that the user's own classes in a recipe need.

    What is installed is not among them. If some cannot be sent, that is an InputError if it has to
    be the `whole` of them, and otherwise a warning.
    """
    return custom_source.folders(own_classes(recipe), whole=whole)
