"""A sweep file: which keys of a recipe are searched, in which ranges, how, and for how long."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from optuna.distributions import BaseDistribution
from pydantic import Field
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain as TuneDomain

from cluster.config import RunConfig
from cluster.workers.worker import Layout
from metatrain import console, schema, storage
from metatrain.core import InputError
from metatrain.learner import Learner
from metatrain.recipe import check_name
from metatrain.start import check_data, check_fit, initial_meta
from metatrain.storage import Folder

Values = dict[str, Any]  # dotted key -> value: what a trial has of its own

Kind = Literal["uniform", "loguniform", "quantised", "integers", "choice", "grid"]
LISTED = ("choice", "grid")
BOUNDS = {"uniform": "[low, high]", "loguniform": "[low, high]", "integers": "[low, high]"}
BOUNDS |= {"quantised": "[low, high, step]", "choice": "[a, b, ...]", "grid": "[a, b, ...]"}
Mode = Literal["min", "max"]
SHARED = {
    "name",
    "evaluation",
    "validation",
    "workers",
    "checkpoint",
    "tracking",
    "output",
}  # the same for all trials


@dataclass(frozen=True, kw_only=True)
class Budget:
    """`trials` (of a grid: all), each of at most `steps` outer steps (default: the recipe's), all
    within `minutes`.

    A sweep that is resumed has its minutes anew.
    """

    __pydantic_config__ = {"extra": "forbid"}

    trials: int | None = None
    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "steps", "minutes"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"budget.{name} must be above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class InFull:
    """Every trial makes all its steps."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class ASHA:
    """Asynchronous successive halving (Li et al., 2020, algorithm 2).

    After `first_rung` outer steps, and `reduction` times as many each time, a trial goes on if it
    is among the best 1 / `reduction` of those that came so far.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["asha"] = "asha"
    first_rung: int
    reduction: float = 3

    def __post_init__(self) -> None:
        if self.first_rung < 1 or self.reduction <= 1:
            raise InputError(
                "scheduler.first_rung must be at least 1 and scheduler.reduction above 1, "
                f"got {self.first_rung} and {self.reduction}"
            )


@dataclass(frozen=True, kw_only=True)
class PBT:
    """Population-based training (Jaderberg et al., 2017, algorithm 1).

    Every `every_steps` outer steps a trial of the worst `quantile` goes on from a checkpoint of one
    of the best, with its values perturbed: times 0.8 or 1.2, or with probability `resample` drawn
    anew, within their ranges.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["pbt"] = "pbt"
    every_steps: int
    quantile: float = 0.25
    resample: float = 0.25

    def __post_init__(self) -> None:
        if self.every_steps < 1 or not 0 < self.quantile <= 0.5 or not 0 <= self.resample <= 1:
            raise InputError(
                "scheduler.every_steps must be at least 1, quantile in (0, 0.5] and resample in "
                "[0, 1], "
                f"got {self.every_steps}, {self.quantile} and {self.resample}"
            )


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep file.

    `recipe` is a recipe's file, beside this one or from the working directory, `set` changes keys
    of it for all trials, and `space` names the keys that are searched, each with one of {uniform:
    [low, high]}, {loguniform: [low, high]}, {quantised: [low, high, step]}, {integers: [low, high]}
    (both ends included), {choice: [...]} and {grid: [...]}.

    Trials are compared by `metric`, which is validation's (val/accuracy_after and such). At most
    `at_once` run together (default: as many as fit), each with the resources that the recipe's
    `workers` asks for. `output` is its folder (default: runs/NAME).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    recipe: str
    set: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any]
    metric: str | None = None
    budget: Budget = Budget()
    search: Literal["random", "grid", "optuna"] = "random"
    scheduler: Annotated[InFull | ASHA | PBT, Field(discriminator="name")] = InFull()
    at_once: int | None = None
    seed: int = 0
    output: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        for name, least in (("at_once", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")


class Domain(NamedTuple):
    """What a key may be."""

    kind: Kind
    values: tuple[Any, ...]

    def samples(self) -> Sequence[Any]:
        """Both ends of a range and a value between, or all that is listed: where these are valid,
        all is.
        """
        if self.kind in LISTED:
            return self.values
        between = self.for_tune().sample(random_state=np.random.RandomState(0))
        return (*self.values[:2], _plain(between))

    def for_tune(self) -> TuneDomain:
        low, high, *step = self.values if self.kind not in LISTED else (None, None)
        match self.kind:
            case "uniform":
                return tune.uniform(low, high)
            case "loguniform":
                return tune.loguniform(low, high)
            case "quantised":
                return tune.quniform(low, high, *step)
            case "integers":
                return tune.randint(low, high + 1)
            case _:
                return tune.choice(list(self.values))

    def for_optuna(self) -> BaseDistribution:
        return OptunaSearch.convert_search_space({"key": self.for_tune()})["key"]

    def clip(self, value: Any) -> Any:
        return value if self.kind in LISTED else min(max(value, self.values[0]), self.values[1])

    def __str__(self) -> str:
        return f"{self.kind} {list(self.values)}"


class Search(NamedTuple):
    """A sweep with all that it leaves open resolved, and found to be possible."""

    sweep: Sweep
    base: RunConfig  # what all trials share
    space: dict[str, Domain]
    metric: str
    mode: Mode
    trials: int
    folder: Folder

    @property
    def steps(self) -> int:
        return self.base.outer.steps

    def drawn(self) -> list[Values]:
        """All trials of a random search or a grid."""
        if self.sweep.search == "grid":
            return [
                dict(zip(self.space, point, strict=True))
                for point in product(*(d.values for d in self.space.values()))
            ]
        state = np.random.RandomState(fitting(self.sweep.seed))
        domains = {key: domain.for_tune() for key, domain in self.space.items()}
        return [
            {key: _plain(domain.sample(random_state=state)) for key, domain in domains.items()}
            for _ in range(self.trials)
        ]


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[Sweep, RunConfig]:
    """A sweep file, and what its trials share: the recipe that it names, with what it changes of
    it.
    """
    if path.is_dir():
        raise InputError(_of_folder(path))
    tree = schema.read(path)
    if is_recipe(tree):
        raise InputError(f"{path} is a recipe", remedy=f"{console.program()} train {path}")
    sweep = schema.parse(Sweep, schema.apply_overrides(tree, overrides), str(path))
    places = [path.parent / sweep.recipe, Path(sweep.recipe)]
    found = next((place for place in places if place.exists()), places[0])
    return sweep, shared(sweep, schema.read(found), str(path), str(found))


def shared(sweep: Sweep, tree: schema.Tree, path: str, found: str) -> RunConfig:
    """What all trials of a sweep share, from its recipe's keys. Errors name the sweep `path` and
    the recipe `found`.
    """
    for key, value in schema.flatten(sweep.set):
        schema.put(tree, key, value)
    if sweep.budget.steps is not None:
        schema.put(tree, "outer.steps", sweep.budget.steps)
    for key, _ in schema.flatten(sweep.set):
        if key in dict(searched(sweep.space)):
            raise InputError(
                f"{key} is in set and in space of {path}", remedy="it is either fixed or searched"
            )
    base = schema.parse(RunConfig, tree, f"{found} with `set` of {path}")
    every = base.validation.every_steps
    if not 0 < every <= base.outer.steps:
        raise InputError(
            (
                f"a sweep compares trials by validation, and validation.every_steps is {every} of "
                f"{base.outer.steps} outer "
                "steps"
            ),
            remedy=(
                f"pass --set set.validation.every_steps={max(base.outer.steps // 10, 1)}, or "
                f"set it in {path}"
            ),
        )
    if base.checkpoint.uri is not None:
        raise InputError(
            "checkpoint.uri would be the same for all trials of a sweep",
            remedy=("leave it out, and give output"),
        )
    if base.workers.cpus == base.workers.gpus == 0:
        raise InputError(
            "workers.cpus and workers.gpus are 0, so that all trials would start at once",
            remedy="set one",
        )
    return base


def standalone(sweep: Sweep, base: RunConfig) -> dict[str, str]:
    """Both as files that need no others."""
    whole = dataclasses.replace(sweep, recipe="recipe.yaml", set={})
    return {
        f"{name}.yaml": schema.as_yaml(content)
        for name, content in (("sweep", whole), ("recipe", base))
    }


def is_recipe(tree: schema.Tree) -> bool:
    """Whether the keys of a file are a recipe's, and no sweep's."""
    return (
        "space" not in tree
        and "recipe" not in tree
        and bool({"family", "model", "algorithm"} & tree.keys())
    )


def _of_folder(path: Path) -> str:
    """What a folder is, if it was given as a sweep file, and the command that takes it."""
    for mark, what, command in (
        ("sweep.yaml", "a sweep's folder", "tune"),
        ("config.yaml", "a run's folder", "train"),
    ):
        if (path / mark).is_file():
            return f"{path} is {what}: {console.program()} {command} {path / mark} --resume {path}"
    return f"{path} is a folder: give a YAML file such as those in recipes/sweeps/"


def load(path: Path, overrides: Sequence[str] = (), resume: str | None = None) -> Search:
    """Read a sweep file and the recipe that it names; InputError for whatever could not be
    searched.

    `resume` is the folder of a sweep to continue, or "auto": the one that its output says.
    """
    sweep, base = read(path, overrides)
    return resolve(in_folder(sweep, resume, overrides), base, str(path))


def in_folder(sweep: Sweep, resume: str | None, overrides: Iterable[str]) -> Sweep:
    """The sweep with the folder that it continues as its output; InputError if overrides give
    another one.
    """
    if resume is None or resume == "auto":
        return sweep
    given = any(item.partition("=")[0].strip() == "output" for item in overrides)
    if given and sweep.output is not None and place_of(sweep.output) != place_of(resume):
        raise InputError(
            f"output is {sweep.output}, and --resume continues the sweep in {resume}",
            remedy=("give one of them"),
        )
    return dataclasses.replace(sweep, output=resume.rstrip("/") or resume)


def place_of(output: str) -> str:
    """An output as other folders see it."""
    return output.rstrip("/") if storage.is_remote(output) else str(Path(output).absolute())


def resolve(sweep: Sweep, base: RunConfig, path: str) -> Search:
    """What a sweep comes to; InputError for whatever could not be searched."""
    check_data(base.recipe())
    every = base.validation.every_steps
    saved = dataclasses.replace(
        base.checkpoint, every_steps=every
    )  # what is reported can be gone on from
    base = dataclasses.replace(base, checkpoint=saved, family=base.family.standalone())
    space = {key: _domain(key, given) for key, given in searched(sweep.space)}
    if not space:
        raise InputError(
            f"{path} searches nothing", remedy="name keys in space, such as algorithm.inner_lr"
        )
    trials = _trials(sweep, space)
    metric, mode = _metric(sweep, base)
    _check_keys(space, base)
    if isinstance(sweep.scheduler, ASHA):
        _check_asha(sweep.scheduler, base)
    elif isinstance(sweep.scheduler, PBT):
        _check_pbt(sweep.scheduler, sweep, space, base)
    output = sweep.output or f"runs/{sweep.name}"
    folder = Folder(place_of(output))
    return Search(sweep, base, space, metric, mode, trials, folder)


def searched(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, range) of a space, whose keys may be nested as in a recipe: `--set
    space.outer.lr=...` does that.
    """
    for key, given in space.items():
        is_group = (
            isinstance(given, dict)
            and given
            and all(isinstance(value, dict) for value in given.values())
        )
        yield from searched(given, f"{prefix}{key}.") if is_group else [(f"{prefix}{key}", given)]


def _domain(key: str, given: Any) -> Domain:
    kinds = get_args(Kind)
    if not (isinstance(given, dict) and len(given) == 1 and next(iter(given)) in kinds):
        raise InputError(
            f"space.{key}",
            got=given,
            expected=(f"one of {', '.join(kinds)}, such as {{uniform"),
            remedy="[0, 1]}",
        )
    (kind, values), *_ = given.items()
    wrong = InputError(f"space.{key}", remedy=f"{kind} takes {BOUNDS[kind]}, got {values!r}")
    if not isinstance(values, list) or not values:
        raise wrong
    if kind in LISTED:
        return Domain(kind, tuple(values))
    try:
        numbers = [float(v) for v in values]  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        raise wrong from None
    if len(numbers) != BOUNDS[kind].count(",") + 1 or not all(map(math.isfinite, numbers)):
        raise wrong
    if (
        not numbers[0] < numbers[1]
        or (kind == "loguniform" and numbers[0] <= 0)
        or (kind == "quantised" and numbers[2] <= 0)
    ):
        above = " above 0" if kind == "loguniform" else ""
        raise InputError(
            f"space.{key}",
            remedy=f"{kind} takes {BOUNDS[kind]} with low < high{above}, got {values}",
        )
    if kind == "integers":
        if not all(number.is_integer() for number in numbers):
            raise wrong
        return Domain(kind, tuple(map(int, numbers)))
    found = Domain(kind, tuple(numbers))
    try:
        found.for_tune()
    except ValueError as error:
        raise InputError(
            f"space.{key}",
            remedy=f"{kind} takes low and high that are multiples of step, got {values}",
        ) from error
    return found


def _trials(sweep: Sweep, space: Mapping[str, Domain]) -> int:
    grids = [key for key, domain in space.items() if domain.kind == "grid"]
    if sweep.search == "grid":
        others = [key for key in space if key not in grids]
        if others:
            raise InputError(
                f"space.{others[0]} is {space[others[0]].kind}, and search",
                remedy="grid takes grids only",
            )
        points = math.prod(len(domain.values) for domain in space.values())
        if sweep.budget.trials not in (None, points):
            raise InputError(
                f"budget.trials is {sweep.budget.trials} and the grid has {points} points",
                remedy=("leave it out"),
            )
        return points
    if grids:
        raise InputError(
            f"space.{grids[0]} is a grid, which needs search",
            remedy=f"grid; for {sweep.search} write choice",
        )
    if sweep.budget.trials is None:
        raise InputError(
            f"budget.trials is missing; say how many trials a {sweep.search} search makes"
        )
    return sweep.budget.trials


def _metric(sweep: Sweep, base: RunConfig) -> tuple[str, Mode]:
    metric = f"val/{base.family.metric.name}_after"
    if sweep.metric not in (None, metric):
        raise InputError(
            f"metric is {sweep.metric!r}, expected {metric}, by which {base.family.name} is "
            "validated"
        )
    return metric, base.family.metric.better


def _check_keys(space: Mapping[str, Domain], base: RunConfig) -> None:
    """Refuse keys that do not exist, values that are refused, and trials that could not be
    compared.
    """
    validated = base.setting("validate").family
    for key, domain in space.items():
        group = key.split(".")[0]
        if group in SHARED or key == "outer.steps":
            better = "budget.steps" if key == "outer.steps" else "set"
            raise InputError(
                f"space.{key} cannot be searched, it is the same for all trials",
                remedy=(f"give it in {better}"),
            )
        for value in domain.samples():
            source = f"space.{key} at {value}"
            config = _with(base, {key: value}, source)
            try:
                check_data(config.recipe())
                meta = initial_meta(config.recipe())
                check_fit(config.recipe(), meta)
                Learner(meta, config.outer)
            except InputError as error:
                raise InputError(f"{source}", remedy=f"{error}") from error
            if config.setting("validate").family != validated:
                raise InputError(
                    (
                        f"{source} changes the validation tasks, too, so that trials could not be "
                        "compared: fix them with "
                        f"set: {{evaluation.{key}"
                    ),
                    remedy="...}",
                )


def _check_asha(scheduler: ASHA, base: RunConfig) -> None:
    every = base.validation.every_steps
    if scheduler.first_rung % every:
        raise InputError(
            f"scheduler.first_rung must be a multiple of validation.every_steps = {every}"
        )
    if scheduler.first_rung >= base.outer.steps:
        raise InputError(
            f"scheduler.first_rung = {scheduler.first_rung} must be below the {base.outer.steps} "
            "outer steps of a "
            "trial, or nothing would be stopped"
        )


def _check_pbt(scheduler: PBT, sweep: Sweep, space: Mapping[str, Domain], base: RunConfig) -> None:
    if sweep.search != "random":
        raise InputError(
            f"search is {sweep.search}, and scheduler pbt draws its own values",
            remedy="leave search out",
        )
    every = base.validation.every_steps
    if sweep.at_once is not None and sweep.at_once < (sweep.budget.trials or 0):
        raise InputError(
            (
                f"at_once is {sweep.at_once} of {sweep.budget.trials} trials, and those of pbt "
                "learn "
                "from each other"
            ),
            remedy="leave it out; where not all fit on the cluster, they take turns",
        )
    if scheduler.every_steps % every:
        raise InputError(
            f"scheduler.every_steps must be a multiple of validation.every_steps = {every}"
        )
    for key, domain in space.items():
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in domain.values)
        if key.split(".")[0] not in ("outer", "algorithm") or not numbers:
            raise InputError(
                f"space.{key} cannot change in a running training",
                remedy=("pbt takes numbers of outer and algorithm"),
            )
        starts = [
            Layout(meta).flatten(meta)
            for value in domain.samples()
            for meta in [initial_meta(_with(base, {key: value}, key).recipe())]
        ]
        if any(not torch.equal(start, starts[0]) for start in starts):
            raise InputError(
                f"space.{key} decides what a training starts from",
                remedy=("it cannot change in a running one by pbt"),
            )


def _with(base: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    tree = schema.dump(base)
    for key, value in values.items():
        schema.put(tree, key, value)
    return schema.parse(RunConfig, tree, source)


def fitting(seed: int) -> int:
    """The seed, or 32 bits of its hash if it is above what numpy and Optuna take."""
    return (
        seed
        if seed < 2**32
        else int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    )


def _plain(value: Any) -> Any:
    """A number of Python's, not of numpy's."""
    return value.item() if isinstance(value, np.generic) else value


def changed(before: Search, now: Search) -> str | None:
    """What makes `now` another sweep than the one that is to go on; how much of it there is and how
    fast may change.
    """

    def tree(search: Search) -> dict[str, Any]:
        sweep = dataclasses.replace(
            search.sweep, budget=Budget(), at_once=None, recipe="", set={}, output=None
        )
        base = schema.flatten(schema.dump(search.base))
        free = [f"workers.{name}" for name in ("min", "max", "cpus", "threads", "wait_s")]
        own = {f"its {key}": value for key, value in schema.flatten(schema.dump(sweep))}
        return own | {f"its recipe's {key}": value for key, value in base if key not in free}

    old, new = tree(before), tree(now)
    return next(
        (key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)), None
    )
