"""Tune's schedulers and Optuna's sampler, which know the trials in a sweep's journal."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import optuna
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.optuna import OptunaSearch

from metatrain.metrics import Better
from tuning.config import ASHA, PBT
from tuning.journal import Journal
from tuning.search import Search
from tuning.space import Domain, Values, fitted


class _KnowingASHA(ASHAScheduler):  # type: ignore[misc]
    """Successive halving that can be resumed.

    What trials reported before counts, and is not judged again.
    """

    def __init__(self, journal: Journal, mode: Better, **options: Any) -> None:
        super().__init__(mode=mode, **options)
        self._searched = mode
        self._known = {str(trial.number): list(trial.reports) for trial in journal.trials.values()}
        for trial in journal.trials.values():
            if trial.over:
                self.on_trial_add(
                    None, SimpleNamespace(trial_id=f"past-{trial.number}", name=str(trial.number))
                )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for report in self._known.get(getattr(trial, "name", str(trial)), []):
            result = {"step": report.step, "compared": report.compared(self._searched)}
            super().on_trial_result(tune_controller, trial, result)


def scheduler(search: Search, journal: Journal) -> TrialScheduler:
    """Return the scheduler that a sweep asks for; it knows what trials reported before."""
    asked = search.sweep.scheduler
    of: dict[str, Any] = {"time_attr": "step", "metric": "compared", "mode": search.mode}
    if isinstance(asked, PBT):
        return PopulationBasedTraining(
            **of,
            perturbation_interval=asked.every_steps,
            hyperparam_mutations={
                "values": {key: _mutation(domain) for key, domain in search.space.items()}
            },
            quantile_fraction=asked.quantile,
            resample_probability=asked.resample,
            custom_explore_fn=_Within(search.space),
        )
    if not isinstance(asked, ASHA):
        return FIFOScheduler()
    return _KnowingASHA(
        journal,
        **of,
        max_t=search.steps,
        grace_period=asked.first_rung,
        reduction_factor=asked.reduction,
    )


def _mutation(domain: Domain) -> Any:
    return list(domain.values) if domain.kind == "choice" else domain.for_tune()


class _Within:
    """Keeps perturbed values inside their ranges."""

    def __init__(self, space: Mapping[str, Domain]) -> None:
        self._space = dict(space)

    def __call__(self, config: dict[str, Any]) -> dict[str, Any]:
        clipped = {key: self._space[key].clip(value) for key, value in config["values"].items()}
        return config | {"values": clipped}


def optuna_search(search: Search, journal: Journal, again: list[Values]) -> OptunaSearch:
    """Return Optuna's sampler, which knows the trials that ended.

    again: the values of the trials that did not end; the sampler suggests them first.
    """

    def named(values: Values) -> Values:
        return {f"values/{key}": value for key, value in values.items()}

    optuna.logging.set_verbosity(logging.WARNING)
    algorithm = OptunaSearch(
        named({key: domain.for_optuna() for key, domain in search.space.items()}),
        metric="compared",
        mode=search.mode,
        points_to_evaluate=[named(values) for values in again] or None,
        seed=fitted(
            search.sweep.seed + len(journal.trials)
        ),  # or it would draw the same points again
    )
    for trial in journal.trials.values():
        if trial.over and trial.last is not None:
            algorithm.add_evaluated_point(named(trial.values), trial.last.compared(search.mode))
    return algorithm
