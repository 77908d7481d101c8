"""What a run learns: the recipe, and how its tasks are drawn for each kind of work."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from metatrain import algorithms, custom, custom_source, models, schema, tasks
from metatrain.core import Algorithm, InputError, Model, Norm, Split, TaskFamily, Ticket, Work
from metatrain.custom import OwnClass
from metatrain.learner import Outer

AnyFamily = Annotated[tasks.BuiltIn, Field(discriminator="name"), OwnClass(TaskFamily)]
AnyModel = Annotated[models.BuiltIn, Field(discriminator="name"), OwnClass(Model)]
AnyAlgorithm = Annotated[algorithms.BuiltIn, Field(discriminator="name"), OwnClass(Algorithm)]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured after training, and how that differs from training.

    `family` and `algorithm` override keys of the recipe's, such as {queries: 15} and {inner_steps:
    10}. `norm` may list several modes; the first is the result. The tasks are a fixed list that
    `seed` determines.
    """

    __pydantic_config__ = {"extra": "forbid"}

    tasks: int = 600
    seed: int = 1
    split: Literal["val", "test"] = "test"
    tasks_per_ticket: int = 20
    norm: Norm | tuple[Norm, ...] = "transductive"
    family: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        norms = (self.norm,) if isinstance(self.norm, str) else self.norm
        if not norms or len(set(norms)) < len(norms):
            raise InputError(
                f"evaluation.norm must name one or more modes, each once, got {list(norms)}"
            )
        if self.tasks < 2 or self.tasks_per_ticket < 1:
            raise InputError(
                "an evaluation needs at least 2 tasks and 1 task a ticket, "
                f"got tasks {self.tasks} and tasks_per_ticket {self.tasks_per_ticket}"
            )


@dataclass(frozen=True, kw_only=True)
class Validation:
    """What is measured on the val split in training, each `every_steps` outer steps (never if it is
    0).

    `family` and `algorithm` override keys of the recipe's, and `norm` is one mode. Each follows the
    evaluation's if it is None: what chooses among trials is then measured like the result.
    """

    __pydantic_config__ = {"extra": "forbid"}

    every_steps: int = 0
    tasks: int = 100
    seed: int = 2
    norm: Norm | None = None
    family: dict[str, Any] | None = None
    algorithm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 0 or self.tasks < 1:
            raise InputError(
                "validation.every_steps cannot be negative and validation.tasks must be at least "
                "1, "
                f"got {self.every_steps} and {self.tasks}"
            )


class Setting(NamedTuple):
    """What tickets of one kind of work are computed with."""

    split: Split
    family: TaskFamily
    algorithm: Algorithm
    norm: tuple[Norm, ...]
    seed: int
    tasks: int  # a step's, or an evaluation's
    tasks_per_ticket: int

    def tickets(self, work: Work, step: int = 0) -> list[Ticket]:
        """All tickets of this work, in the order in which their answers are added."""
        parts = -(-self.tasks // self.tasks_per_ticket)
        return [Ticket(work, self.split, step, part) for part in range(parts)]


@dataclass(frozen=True, kw_only=True, repr=False)
class Recipe:
    """Everything that decides what is learnt: with a seed it determines the parameters."""

    FILE: ClassVar[str] = "recipe"  # what a sentence calls a file that is read as this
    __pydantic_config__ = {"extra": "forbid"}

    name: str
    seed: int = 0
    family: AnyFamily
    model: AnyModel
    algorithm: AnyAlgorithm
    norm: Norm = "transductive"
    outer: Outer
    validation: Validation = Validation()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        check_name(self.name)

    def setting(self, work: Work) -> Setting:
        """How the tasks of a kind of work are drawn and computed. InputError if an override does
        not fit.
        """
        outer, evaluation, validation = self.outer, self.evaluation, self.validation
        if work == "update":
            tasks, chunk = outer.tasks_per_step, outer.tasks_per_ticket
            return Setting(
                "train", self.family, self.algorithm, (self.norm,), self.seed, tasks, chunk
            )
        family, algorithm = self._overridden("family", work), self._overridden("algorithm", work)
        norms = (evaluation.norm,) if isinstance(evaluation.norm, str) else evaluation.norm
        if work == "score":
            tasks, chunk = evaluation.tasks, evaluation.tasks_per_ticket
            return Setting(
                evaluation.split, family, algorithm, norms, evaluation.seed, tasks, chunk
            )
        norm, chunk = (
            (validation.norm or norms[0],),
            min(validation.tasks, evaluation.tasks_per_ticket),
        )
        return Setting("val", family, algorithm, norm, validation.seed, validation.tasks, chunk)

    def __repr__(self) -> str:
        parts = (self.family.name, self.model.name, self.algorithm.name)
        return (
            f"<{type(self).__name__} {self.name}: {', '.join(parts)}, {self.outer.steps} "
            "outer steps>"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(schema.as_yaml(self))}</pre>"

    def _overridden(self, name: str, work: Work) -> Any:
        """The family or the algorithm of a validation or an evaluation."""
        own = getattr(self.validation, name) if work == "validate" else None
        group, changes = (
            ("validation", own)
            if own is not None
            else ("evaluation", getattr(self.evaluation, name))
        )
        return schema.override(getattr(self, name), changes, f"{group}.{name}")


def check_name(name: str) -> None:
    """Refuse names that are no folder's."""
    if not name or name.startswith(".") or any(character in name for character in "/\\"):
        raise InputError(
            "name",
            got=name,
            expected="one that a folder can have",
            remedy="without / and no dot first",
        )


def is_sweep(tree: schema.Tree) -> bool:
    """Whether the keys of a file are those of a sweep, which names its recipe."""
    return bool({"space", "recipe"} & tree.keys()) and "family" not in tree


def own_classes(recipe: Recipe) -> list[str]:
    """The names of the user's own classes in a recipe."""
    return custom.own(
        component.name for component in (recipe.family, recipe.model, recipe.algorithm)
    )


def own_code(recipe: Recipe, *, whole: bool = False) -> list[Path]:
    """The files and package folders that the user's own classes in a recipe need, if they are not
    installed.

    If some cannot be sent, that is an InputError if it has to be the `whole` of them, and otherwise
    a warning.
    """
    return custom_source.folders(own_classes(recipe), whole=whole)
