"""What a sweep file comes to: its trials, all found to be possible before the first one starts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from cluster.config import RunConfig
from metatrain import schema
from metatrain.core import InputError, Meta
from metatrain.first_look import check_data
from metatrain.learner import Learner
from metatrain.metrics import Better
from metatrain.start import check_fit, prepare
from metatrain.storage import Folder
from tuning import config
from tuning.config import ASHA, MOST_TRIALS, PBT, Budget, Sweep
from tuning.space import Domain, Values, fitted, plain, read_domain

MOST_KEYS = 50
SHARED = {  # the same for all trials
    "name",
    "evaluation",
    "evaluations",
    "validation",
    "workers",
    "checkpoint",
    "tracking",
    "output",
}


class Search(NamedTuple):
    """A sweep with all that it leaves open resolved, and found to be possible."""

    sweep: Sweep
    base: RunConfig  # what all trials share
    space: dict[str, Domain]
    metric: str
    mode: Better
    trials: int
    folder: Folder

    @property
    def steps(self) -> int:
        return self.base.outer.steps

    def drawn(self) -> list[Values]:
        """Return all trials of a random search or a grid."""
        if self.sweep.search == "grid":
            points = product(*(domain.values for domain in self.space.values()))
            return [dict(zip(self.space, point, strict=True)) for point in points]
        state = np.random.RandomState(fitted(self.sweep.seed))
        domains = {key: domain.for_tune() for key, domain in self.space.items()}
        return [
            {key: plain(domain.sample(random_state=state)) for key, domain in domains.items()}
            for _ in range(self.trials)
        ]


def load(path: str | Path, overrides: Sequence[str] = (), resume: str | None = None) -> Search:
    """Read a sweep file and the recipe that it names, and resolve the sweep.

    `resume` is the folder of a sweep to resume, or "auto": the folder that the sweep's output says.
    Raises InputError for a sweep that is not possible.
    """
    sweep, base = config.read(path, overrides)
    return resolve(config.in_folder(sweep, resume, overrides), base, str(path))


def resolve(sweep: Sweep, base: RunConfig, path: str) -> Search:
    """Resolve a sweep whose trials share `base`; InputError names its file, `path`."""
    check_data(prepare(base.recipe()))
    if base.validation.patience:
        raise InputError(
            "validation.patience",
            got=base.validation.patience,
            expected="0 in a sweep, whose trials its scheduler ends",
            remedy="set it to 0 in the sweep's `set`, or choose a scheduler such as asha",
        )
    if base.takes_best:
        raise InputError(
            "evaluation.of",
            got=base.evaluation.of,
            expected="last in a sweep, which compares trials after the same steps",
        )
    # Trials can resume from each validation that they report.
    saved = dataclasses.replace(base.checkpoint, every_steps=base.validation.every_steps)
    base = dataclasses.replace(base, checkpoint=saved, family=base.family.resolved())
    space = {key: read_domain(key, given) for key, given in config.searched(sweep.space)}
    if len(space) > MOST_KEYS:
        raise InputError(f"{path} searches {len(space)} keys", expected=f"at most {MOST_KEYS}")
    if not space:
        raise InputError(
            f"{path} searches nothing", remedy="name keys in space, such as algorithm.inner_lr"
        )
    trials = _trials(sweep, space)
    metric = f"val/{base.family.metric.name}_after"
    if sweep.metric not in (None, metric):
        expected = f"{metric}, by which {base.family.name} is validated"
        raise InputError("metric", got=sweep.metric, expected=expected)
    _check_keys(space, base)
    if isinstance(sweep.scheduler, ASHA):
        _check_asha(sweep.scheduler, base)
    elif isinstance(sweep.scheduler, PBT):
        _check_pbt(sweep.scheduler, sweep, space, base)
    folder = Folder(config.place_of(sweep.output or f"runs/{sweep.name}"))
    return Search(sweep, base, space, metric, base.family.metric.better, trials, folder)


def changed(before: Search, now: Search) -> str | None:
    """Return a key by which `now` is another sweep than `before`, which it is to resume.

    How many trials there are, how long they take and what computes them may change.
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
    keys = sorted(old.keys() | new.keys())
    return next((key for key in keys if old.get(key) != new.get(key)), None)


def _trials(sweep: Sweep, space: Mapping[str, Domain]) -> int:
    """Return how many trials a sweep makes."""
    grids = [key for key, domain in space.items() if domain.kind == "grid"]
    if sweep.search == "grid":
        others = [key for key in space if key not in grids]
        if others:
            raise InputError(
                f"search is grid, and space.{others[0]} is {space[others[0]].kind}",
                remedy="list its values as {grid: [...]}, or leave search out",
            )
        points = math.prod(len(domain.values) for domain in space.values())
        if points > MOST_TRIALS:
            raise InputError(
                f"the grid has {points} points",
                expected=f"at most {MOST_TRIALS:,}",
                remedy="list fewer values, or set search to random",
            )
        if sweep.budget.trials not in (None, points):
            raise InputError(
                f"budget.trials is {sweep.budget.trials}, and the grid has {points} points",
                remedy="leave it out",
            )
        return points
    if grids:
        raise InputError(
            f"space.{grids[0]} is a grid, and search is {sweep.search}",
            remedy="set search to grid, or write {choice: [...]}",
        )
    if sweep.budget.trials is None:
        raise InputError(
            "budget.trials is missing", remedy=f"say how many trials a {sweep.search} search makes"
        )
    return sweep.budget.trials


def _check_keys(space: Mapping[str, Domain], base: RunConfig) -> None:
    """Refuse keys and values that a recipe cannot have, and trials that could not be compared."""
    validated = base.setting("validate").family
    for key, domain in space.items():
        if key.split(".")[0] in SHARED or key == "outer.steps":
            better = "budget.steps" if key == "outer.steps" else "set"
            raise InputError(
                f"space.{key} cannot be searched, it is the same for all trials",
                remedy=f"give it in {better}",
            )
        for value in domain.samples():
            source = f"space.{key} at {value}"
            trial = _with(base, {key: value}, source)
            try:
                prepared = prepare(trial.recipe())
                check_data(prepared)
                check_fit(prepared, prepared.meta)
                Learner(prepared.meta, trial.outer)
            except InputError as error:
                raise InputError.at(source, error) from error
            if prepared.setting("validate").family != validated:
                raise InputError(
                    f"{source} also changes the validation tasks, so trials could not be compared",
                    remedy=f"fix them with set: {{evaluation.{key}: ...}}",
                )


def _check_asha(scheduler: ASHA, base: RunConfig) -> None:
    every, steps = base.validation.every_steps, base.outer.steps
    if scheduler.first_rung % every:
        raise InputError(
            "scheduler.first_rung",
            got=scheduler.first_rung,
            expected=f"a multiple of validation.every_steps = {every}",
        )
    if scheduler.first_rung >= steps:
        raise InputError(
            "scheduler.first_rung",
            got=scheduler.first_rung,
            expected=f"below the {steps} outer steps of a trial, or no trial would stop early",
        )


def _check_pbt(scheduler: PBT, sweep: Sweep, space: Mapping[str, Domain], base: RunConfig) -> None:
    if sweep.search != "random":
        raise InputError(
            f"search is {sweep.search}, and scheduler pbt draws its own values",
            remedy="leave search out",
        )
    if sweep.at_once is not None and sweep.at_once < (sweep.budget.trials or 0):
        raise InputError(
            f"at_once is {sweep.at_once} of {sweep.budget.trials} trials, and trials of pbt learn "
            "from each other",
            remedy="leave it out; if not all trials fit on the cluster, they take turns",
        )
    every = base.validation.every_steps
    if scheduler.every_steps % every:
        raise InputError(
            "scheduler.every_steps",
            got=scheduler.every_steps,
            expected=f"a multiple of validation.every_steps = {every}",
        )
    for key, domain in space.items():
        if key.split(".")[0] not in ("outer", "algorithm") or not domain.is_numeric:
            raise InputError(
                f"space.{key} cannot change in a running training",
                remedy="give pbt numbers of outer and algorithm",
            )
        trials = (_with(base, {key: value}, key) for value in domain.samples())
        first, *others = (prepare(trial.recipe()).meta for trial in trials)
        if not all(_is_same(first, other) for other in others):
            raise InputError(
                f"space.{key} decides what a training starts from, so pbt cannot change it later",
                remedy="use another scheduler",
            )


def _is_same(a: Meta, b: Meta) -> bool:
    """Whether two trainings start from the same tensors."""
    return all(
        old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
        for old, new in zip(a, b, strict=True)
    )


def _with(base: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    tree = schema.dump(base)
    for key, value in values.items():
        schema.put(tree, key, value)
    return schema.parse(RunConfig, tree, source)
