"""A sweep file: which keys of a recipe are searched, how, and for how long; what trials share."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field

from cluster.config import RunConfig
from metatrain import console, schema, storage
from metatrain.bounds import SEED, STEPS, bounded, check_bounds
from metatrain.core import InputError
from metatrain.recipe import check_name

MOST_TRIALS = 10_000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a sweep may compute."""

    __pydantic_config__ = {"extra": "forbid"}

    trials: int | None = bounded(None, least=1, most=MOST_TRIALS)
    """How many trials a sweep makes; a grid makes one for each of its points."""
    steps: int | None = bounded(None, least=1, most=STEPS)
    """Outer steps of each trial; `null`: those of the recipe."""
    minutes: float | None = bounded(None, above=0, most=10**6)
    """For all trials together; a resumed sweep gets its full minutes again."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class InFull:
    """Every trial makes all its steps."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class ASHA:
    """Asynchronous successive halving (Li et al., 2020, algorithm 2).

    A rung is a number of outer steps. A trial that reaches a rung continues if it is among the best
    1 / `reduction` of the trials that reached the rung so far.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["asha"] = "asha"
    first_rung: int = bounded(least=1, most=STEPS)
    """Outer steps after which the first trials stop."""
    reduction: float = bounded(3, above=1, most=1000)
    """Each rung has so many times the steps of the rung before; 1 / `reduction` of trials pass."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class PBT:
    """Population-based training (Jaderberg et al., 2017, algorithm 1).

    Every `every_steps` outer steps a trial of the worst `quantile` continues from a checkpoint of
    one of the best, with perturbed values: times 0.8 or 1.2, or drawn again, within their ranges.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["pbt"] = "pbt"
    every_steps: int = bounded(least=1, most=STEPS)
    """Outer steps between two exchanges."""
    quantile: float = bounded(0.25, above=0, most=0.5)
    """Part of the trials that counts as worst, and as best."""
    resample: float = bounded(0.25, least=0, most=1)
    """Probability that a value is drawn again instead of perturbed."""

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file.

    Trials are compared by the last validation of each; the family's metric says whether a higher or
    a lower value is better. The resources of a trial are those of the recipe's `workers`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    """What it is called; each trial is NAME-00, NAME-01 ..."""
    recipe: str
    """The recipe's file, beside the sweep file or in the working directory."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys of the recipe that change for all trials."""
    space: dict[str, Any]
    """Keys to search, each with a range."""
    metric: str | None = None
    """What trials are compared by; `null`: validation by the family's metric."""
    budget: Budget = Budget()
    """`trials`, outer `steps` of each trial (default: the recipe's), `minutes` for all."""
    search: Literal["random", "grid", "optuna"] = "random"
    """How values are chosen: `random`, `grid` or `optuna`."""
    scheduler: Annotated[InFull | ASHA | PBT, Field(discriminator="name")] = InFull()
    """Which trials stop early: `none`, `asha` or `pbt` with their keys."""
    at_once: int | None = bounded(None, least=1, most=10_000)
    """How many trials run together; `null`: as many as fit on the cluster."""
    seed: int = bounded(0, least=0, most=SEED)
    """Seed of the search; that of the trainings is the recipe's."""
    output: str | None = None
    """Folder of the sweep, or its address in a storage; `null`: runs/NAME."""

    def __post_init__(self) -> None:
        check_name(self.name)
        check_bounds(self)


def read(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Sweep, RunConfig]:
    """Read a sweep file, and what its trials share: the recipe that it names, with its changes."""
    path = storage.local(path, "a sweep file")
    if path.is_dir():
        refuse_folder(str(path))
    tree = schema.read(path)
    if is_recipe(tree):
        raise InputError(f"{path} is a recipe", remedy=f"{console.program()} train {path}")
    sweep = schema.parse(Sweep, schema.apply_overrides(tree, overrides), str(path))
    recipe = storage.checked(sweep.recipe)
    if not storage.is_remote(recipe):
        places = [path.parent / recipe, Path(recipe)]
        recipe = str(next((place for place in places if place.exists()), places[0]))
    return sweep, shared(sweep, schema.read(recipe), str(path), recipe)


def shared(sweep: Sweep, tree: schema.Tree, path: str, recipe: str) -> RunConfig:
    """Return what all trials share, from the keys of the sweep's recipe.

    Errors name the file of the sweep, `path`, and that of the recipe, `recipe`.
    """
    fixed = list(schema.flatten(sweep.set))
    for key, value in fixed:
        schema.put(tree, key, value)
    if sweep.budget.steps is not None:
        schema.put(tree, "outer.steps", sweep.budget.steps)
    ranges = dict(searched(sweep.space))
    for key, _ in fixed:
        if key in ranges:
            raise InputError(
                f"{key} is in set and in space of {path}", remedy="either fix it or search it"
            )
    base = schema.parse(RunConfig, tree, f"{recipe} with `set` of {path}")
    steps, every = base.outer.steps, base.validation.every_steps
    if not 0 < every <= steps:
        raise InputError(
            "validation.every_steps",
            got=every,
            expected=f"1 to {steps}, since a sweep compares trials by their validation",
            remedy=f"pass --set set.validation.every_steps={max(steps // 10, 1)}, or set it in "
            f"{path}",
        )
    if base.checkpoint.uri is not None:
        raise InputError(
            "checkpoint.uri would be the same for all trials of a sweep",
            remedy="leave it out, and give output",
        )
    if base.workers.cpus == base.workers.gpus == 0:
        raise InputError(
            "workers.cpus and workers.gpus are 0, so all trials would start at once",
            remedy="set one of them",
        )
    return base


def searched(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, range) of a space, nested or not: `--set space.outer.lr=...` nests it."""
    for key, given in space.items():
        is_group = (
            isinstance(given, dict)
            and given
            and all(isinstance(value, dict) for value in given.values())
        )
        yield from searched(given, f"{prefix}{key}.") if is_group else [(f"{prefix}{key}", given)]


def as_files(sweep: Sweep, base: RunConfig) -> dict[str, str]:
    """Return a recipe and its sweep, in this order, as the texts of files that need no others."""
    whole = dataclasses.replace(sweep, recipe="recipe.yaml", set={})
    return {
        f"{name}.yaml": schema.as_yaml(content)
        for name, content in (("recipe", base), ("sweep", whole))
    }


def is_recipe(tree: schema.Tree) -> bool:
    """Whether the keys of a file are those of a recipe, and not of a sweep."""
    return (
        "space" not in tree
        and "recipe" not in tree
        and bool({"family", "model", "algorithm"} & tree.keys())
    )


def in_folder(sweep: Sweep, resume: str | None, overrides: Iterable[str]) -> Sweep:
    """Return the sweep with the folder that it resumes as its output.

    Raises InputError if `overrides` give another output.
    """
    if resume is None or resume == "auto":
        return sweep
    given = any(item.partition("=")[0].strip() == "output" for item in overrides)
    if given and sweep.output is not None and place_of(sweep.output) != place_of(resume):
        raise InputError(
            f"output is {sweep.output}, and --resume continues the sweep in {resume}",
            remedy="give one of them",
        )
    return dataclasses.replace(sweep, output=storage.checked(resume))


def place_of(output: str) -> str:
    """Return an output as it reads from any working directory."""
    return output.rstrip("/") if storage.is_remote(output) else str(Path(output).absolute())


def refuse_folder(path: str, submit: bool = False) -> NoReturn:
    """Refuse a folder that was given as a file, and say which command takes what lies in it."""
    for file, what, command in (
        ("sweep.yaml", "a sweep's folder", "tune"),
        ("config.yaml", "a run's folder", "train"),
    ):
        if storage.is_file(f"{path}/{file}"):
            way = ["submit" if submit else command, f"{path}/{file}", "--resume", path]
            raise InputError(f"{path} is {what}", remedy=shlex.join([console.program(), *way]))
    examples = "recipes/" if submit else "recipes/sweeps/"
    raise InputError(f"{path} is a folder", remedy=f"give a YAML file such as those in {examples}")
