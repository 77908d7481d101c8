"""Ray Tune's part of a sweep: it starts and stops trials; a callback writes what it reports."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from cluster.progress import Line, duration
from cluster.tracking.place import Place, store_uri
from cluster.tracking.tracker import Tracker
from metatrain import schema, storage
from tuning import schedulers
from tuning import trial as one
from tuning.config import PBT
from tuning.journal import Journal, Report, Trial, best_of
from tuning.resources import trial_resources
from tuning.search import Search
from tuning.space import fitted
from tuning.trial import Shared

log = logging.getLogger(__name__)

# Of a trial, be it an error or a process that dies; with one more the trial has failed.
MOST_FAILURES = 2
KEEP_S = 10.0  # between copies of the journal to a storage


def run_trials(
    search: Search,
    journal: Journal,
    watch: Watch,
    place: Place | None,
    should_stop: Callable[[], bool],
) -> None:
    """Run the trials that the journal does not have as ended."""
    sweep, folder = search.sweep, search.folder
    again = {trial.number: trial.values for trial in journal.trials.values() if not trial.over}
    fresh = [number for number in range(search.trials) if number not in journal.trials]
    numbers = [*again, *fresh]
    if not numbers:
        return
    shared = Shared(
        sweep.name,
        str(folder),
        schema.dump(search.base),
        search.metric,
        search.mode,
        isinstance(sweep.scheduler, PBT),
        place.run_id if place else None,
        store_uri(search.base.tracking),
        sweep.recipe,
    )
    random.seed(fitted(sweep.seed + len(journal.trials)))  # of PBT's perturbations
    np.random.seed(fitted(sweep.seed + len(journal.trials)))
    if sweep.search == "optuna":
        algorithm: Any = schedulers.optuna_search(search, journal, list(again.values()))
        given: dict[str, Any] = {}
    else:
        drawn = search.drawn()
        algorithm, given = (
            None,
            {"values": tune.grid_search([*again.values(), *(drawn[number] for number in fresh)])},
        )
    tune.Tuner(
        tune.with_resources(
            tune.with_parameters(one.run, shared=shared),
            tune.PlacementGroupFactory(trial_resources(search.base)),
        ),
        param_space=given,
        tune_config=tune.TuneConfig(
            search_alg=algorithm,
            scheduler=schedulers.scheduler(search, journal),
            num_samples=len(numbers) if algorithm else 1,
            max_concurrent_trials=sweep.at_once,
            trial_name_creator=_Names(numbers, 1 if algorithm else 0),
            trial_dirname_creator=str,
            reuse_actors=True,  # a process of its own takes a trial seconds to start
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[watch],
            stop=_Stop(lambda: should_stop() or watch.time_is_up()),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # the one for notebooks clears the cell
            failure_config=tune.FailureConfig(max_failures=MOST_FAILURES),
        ),
    ).fit()


class Watch(tune.Callback):  # type: ignore[misc]
    """Passes what Tune says of trials to the journal, the progress line and the parent run."""

    def __init__(
        self,
        search: Search,
        journal: Journal,
        tracker: Tracker,
        line: Line,
        should_stop: Callable[[], bool],
    ):
        self._search, self._journal, self._tracker, self._line = search, journal, tracker, line
        self._should_stop = should_stop
        self._kept_s = 0.0
        self._started, self._first = time.monotonic(), journal.steps()
        self._until = self._started + 60 * (search.sweep.budget.minutes or math.inf)

    def time_is_up(self) -> bool:
        """Say whether the sweep's minutes are over; a sweep without minutes may go on."""
        return time.monotonic() >= self._until

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks; the journal restores what this one needs

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        number = int(str(trial))
        known = self._journal.trials.get(number)
        if known is None or known.state != "running":
            self._journal.write(number, "values", trial.config["values"])
            self._keep(now=True)  # without them, Optuna would draw other values
        self._show()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        number, report = int(str(trial)), Report(**{name: result[name] for name in Report._fields})
        changed = report.values != self._journal.trials[number].values  # by PBT
        known = [
            (other.step, other.value, other.values)
            for other in self._journal.trials[number].reports
        ]
        if (report.step, report.value, report.values) not in known:
            self._journal.write(number, "report", report._asdict())
            best = self._best()
            if best is not None:
                self._tracker.log(self._journal.steps(), {self._search.metric: best[1].value})
        self._keep(now=changed)
        self._show()

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        self._end(self._journal.trials[int(str(trial))])

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        number, text = int(str(trial)), Path(trial.error_file).read_text().strip()
        if number not in self._journal.trials:  # its process never came up
            self._journal.write(number, "values", trial.config["values"])
        known = self._journal.trials[number]
        storage.write(f"{one.folder_of(self._search.folder, number)}/error.txt", text.encode())
        self._end(known, text.rpartition("\n")[2][:300])

    def _end(self, trial: Trial, failure: str = "") -> None:
        last = trial.reports[-1] if trial.reports else None
        if failure:
            state, cause = "failed", failure
        elif last is not None and last.diverged:
            state, cause = "diverged", last.diverged
        elif last is not None and last.step >= self._search.steps:
            state, cause = "completed", ""
        elif self._should_stop() or self.time_is_up():
            return  # all trials were stopped, to be resumed later
        else:
            state, cause = "stopped", ""
        self._journal.write(trial.number, "ended", {"state": state, "cause": cause})
        if failure:
            folder = one.folder_of(self._search.folder, trial.number)
            log.warning("trial %d failed: %s (%s/error.txt)", trial.number, failure, folder)
        self._keep(now=True)
        self._show(now=True)

    def _keep(self, *, now: bool = False) -> None:
        """Sync the journal if the sweep lies in a storage; trials report again what it lost."""
        if now or time.monotonic() - self._kept_s >= KEEP_S:
            self._search.folder.sync()
            self._kept_s = time.monotonic()

    def _best(self) -> tuple[Trial, Report] | None:
        return best_of(self._journal.trials.values(), self._search.mode)

    def _show(self, *, now: bool = False) -> None:
        trials = self._journal.trials.values()
        ended = [trial for trial in trials if trial.state != "running"]
        total, steps = self._search.trials * self._search.steps, self._journal.steps()
        spared = sum(self._search.steps - trial.steps for trial in ended)
        steps_per_s = (steps - self._first) / (time.monotonic() - self._started)
        best = self._best()
        text = (
            f"trials {len(ended)}/{self._search.trials} ended, {len(trials) - len(ended)} under way"
        )
        if best is not None:
            value = self._search.base.family.metric.brief(best[1].value)
            text += (
                f"  best {self._search.metric} on the way {value} (trial {best[0].number}, step "
                f"{best[1].step})"
            )
        if steps_per_s > 0:
            text += f"  ETA at most {duration((total - spared - steps) / steps_per_s)}"
        self._line.show(steps + spared, text, now=now)


class _Names:
    """Names Tune's trials by their numbers, in the order in which Tune makes them."""

    def __init__(self, numbers: list[int], first: int) -> None:
        self._numbers, self._first = numbers, first

    def __call__(self, trial: TuneTrial) -> str:
        return str(self._numbers[int(trial.experiment_tag.partition("_")[0]) - self._first])


class _Stop(tune.Stopper):  # type: ignore[misc]
    """Stops all trials when the user interrupts the sweep, or when its minutes are over."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._should_stop()
