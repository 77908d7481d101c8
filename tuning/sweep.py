"""A sweep: Ray Tune runs trials, a journal and MLflow keep what came of them, the winner is tested
once.

    journal.jsonl --> trials so far --> Tune: those that did not end, then new ones --> trial.run
          ^                                                                               |
          +--------------- started, reported, ended <--- callback in this process <-------+-->
          progress, parent run

`--resume` reads the journal and the trials' own folders: Tune's records are pickles, and lack what
its schedulers know.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import math
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from cluster import checkpoint, run
from cluster.collector import Interrupted
from cluster.evaluation import protocol
from cluster.pools.ray_connection import connected
from cluster.progress import Line, duration
from cluster.tracking import description, mlflow_tracker
from cluster.tracking import tracker as tracking
from cluster.tracking.tracker import Place, Tracker
from metatrain import bundle, figures, schema, storage
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.evaluate import Score
from metatrain.plain import to_json
from metatrain.recipe import own_code
from tuning import figures as pictures
from tuning import schedulers
from tuning import search as searches
from tuning import trial as one
from tuning.config import PBT, as_files
from tuning.journal import Journal, Report, Trial, ranked
from tuning.resources import check_resources, trial_resources
from tuning.search import Search
from tuning.space import fitted
from tuning.trial import Shared

log = logging.getLogger(__name__)

MOST_FAILURES = (
    2  # of a trial, be it an error or a process that dies; with the next one it has failed
)
KEEP_S = 10.0  # between copies of the journal to a storage
WON = " (winner)"  # in a run's name
MOST_COMPARED = 10  # trials that are opened side by side
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal and MLflow have it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `interruptible` has one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a recipe's own classes are found from here
    "RAY_AIR_NEW_OUTPUT": "0",
}


class Outcome(NamedTuple):
    """What a sweep came to."""

    trials: list[Trial]  # best first
    winner: Trial
    scores: list[Score]  # the winner's, on the evaluation tasks
    protocol: str  # of the validation that it was chosen by
    place: Place | None  # where MLflow opens the best trials side by side


class Watch(tune.Callback):  # type: ignore[misc]
    """What Tune tells of trials goes to the journal, the progress line and the parent run."""

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

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, to restore what is restored from the journal here

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        number = int(str(trial))
        known = self._journal.trials.get(number)
        if known is None or known.state != "running":
            self._journal.write(number, "values", trial.config["values"])
            self._keep(now=True)  # Optuna would draw others
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
        number, told = int(str(trial)), Path(trial.error_file).read_text().strip()
        if number not in self._journal.trials:  # its process never came up
            self._journal.write(number, "values", trial.config["values"])
        known = self._journal.trials[number]
        storage.write(f"{trial_folder(self._search, known)}/error.txt", told.encode())
        self._end(known, told.rpartition("\n")[2][:300])

    def _end(self, trial: Trial, failure: str = "") -> None:
        last = trial.reports[-1] if trial.reports else None
        if failure:
            state, cause = "failed", failure
        elif last is not None and last.diverged:
            state, cause = "diverged", last.diverged
        elif last is not None and last.step >= self._search.steps:
            state, cause = "completed", ""
        elif self._should_stop() or time.monotonic() >= self._until:
            return  # all were stopped, to go on later
        else:
            state, cause = "stopped", ""
        self._journal.write(trial.number, "ended", {"state": state, "cause": cause})
        if failure:
            log.warning(
                "trial %d failed: %s (%s/error.txt)",
                trial.number,
                failure,
                trial_folder(self._search, trial),
            )
        self._keep(now=True)
        self._show(now=True)

    def _keep(self, *, now: bool = False) -> None:
        """The journal, where the sweep is not kept on this machine: what is lost of it, trials tell
        again.
        """
        if now or time.monotonic() - self._kept_s >= KEEP_S:
            self._search.folder.sync()
            self._kept_s = time.monotonic()

    def _best(self) -> tuple[Trial, Report] | None:
        """The best validation so far."""
        choose = max if self._search.mode == "max" else min
        told = [
            (trial, report) for trial in self._journal.trials.values() for report in trial.finite()
        ]
        whole = [found for found in told if not found[1].diverged_tasks]
        return choose(whole or told, key=lambda found: found[1].value, default=None)

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


def start(search: Search, address: str | None = None, *, resume: str | None = None) -> Outcome:
    """Run a sweep, or continue the one in its folder.

    With `resume` "auto" it starts afresh if the folder holds none; with another value it does not.
    The folder holds sweep.yaml, recipe.yaml, journal.jsonl, trials/, figures/ and, of the winner,
    bundle/ and result.json. Raises InputError for what the user can correct, and Interrupted when
    asked to stop.
    """
    folder = search.folder
    _check_folder(search, resume)
    warnings.filterwarnings(
        "ignore", "Consider boosting PBT", UserWarning
    )  # by what the function API has not
    code = own_code(search.base)
    with run.interruptible() as should_stop, connected(address, code), _alone(search):
        os.environ.update(QUIET)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is said here
        with awaiting("starting the sweep"):
            check_resources(search)
            known = folder / "mlflow.json"
            run_id = tracking.place_of(str(folder)).run_id if known.exists() else None
            steps = Journal(folder / "journal.jsonl").steps()
            tracker = tracking.start(
                run.experiment_of(search.base),
                description.dated(search.sweep.name),
                _described(search),
                run_id,
                step=steps,
                about=description.tags(str(folder), search.base.name, search.sweep.recipe),
                columns=run.columns_of(search.base),
            )
            journal = _open(search)
            place = tracker.place()
            if place is not None:
                known.write_text(json.dumps(place._asdict()))
            folder.sync()
        status, winner = "FAILED", None
        try:
            recipe = search.base.recipe()
            tracker.inputs(recipe)
            measured = protocol(recipe, "score", search.steps)
            tracker.describe(description.note(measured, run.how_to_load(recipe, folder)))
            with Line(search.trials * search.steps, journal.steps()) as line:
                watch = Watch(search, journal, tracker, line, should_stop)
                _tune(search, journal, watch, place, should_stop)
                if should_stop():
                    raise Interrupted
                for trial in journal.trials.values():
                    if trial.state == "running":  # the journal does not say so: it may go on later
                        trial.state = "timed out"
            with awaiting("testing the winner"):
                outcome = _conclude(search, journal, tracker, place)
            status, winner = "FINISHED", outcome.winner
        except Interrupted:
            status = "KILLED"
            ended = sum(trial.state != "running" for trial in journal.trials.values())
            raise Interrupted(f"stopped after {ended} of {search.trials} trials") from None
        finally:
            tracker.finish(status)
            _end_children(search, journal, place, winner)
            folder.sync()
            storage.remove(f"{folder}/tune")
    return outcome


def trial_folder(search: Search, trial: Trial) -> str:
    """A trial's folder, which is a run's."""
    return f"{search.folder}/trials/{trial.number:02d}"


def _check_folder(search: Search, resume: str | None) -> None:
    """Refuse a folder that holds something else, or that has nothing left to do."""
    folder = search.folder
    if (folder / "sweep.yaml").exists():
        if not resume:
            raise InputError(
                f"{folder} already holds a sweep",
                remedy=("pass --resume auto to continue it, or another output"),
            )
        other = searches.changed(searches.load(folder / "sweep.yaml"), search)
        if other is not None:
            raise InputError(
                f"{folder} holds another sweep",
                remedy=(f"{other} is not that of this one; give another output"),
            )
        trials = Journal(folder / "journal.jsonl").trials.values()
        if (folder / "result.json").exists() and all(trial.over for trial in trials):
            raise InputError(f"the sweep in {folder} is finished", remedy="give another output")
    elif resume not in (None, "auto"):
        raise InputError(
            f"{folder} holds no sweep to continue", remedy="give a sweep's folder, or --resume auto"
        )
    elif storage.is_file(str(folder)):
        raise InputError(f"{folder} is a file", remedy="give the sweep a folder as output")
    elif storage.listing(str(folder)):
        raise InputError(f"{folder} is not empty and holds no sweep", remedy="give another output")
    elif resume:
        log.info("there is nothing to resume in %s: starting afresh", folder)


@contextmanager
def _alone(search: Search) -> Iterator[None]:
    """Refuse a folder in which another process works."""
    uri = str(search.folder)
    if storage.is_remote(uri):  # no storage has locks: this is for two on one machine
        path = (
            Path(tempfile.gettempdir())
            / f"metatrain-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
        )
    else:
        path = Path(uri).with_name(f".{Path(uri).name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another process works on the sweep in {uri}", remedy="wait for it, or stop it"
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open(search: Search) -> Journal:
    """The folder with what it starts from, and its journal."""
    folder = search.folder
    folder.create()
    storage.remove(f"{folder}/tune")
    for name, text in as_files(search.sweep, search.base).items():
        (folder / name).write_text(text)
    return Journal(folder / "journal.jsonl")


def _described(search: Search) -> list[tuple[str, Any]]:
    """The sweep as MLflow's parameters of the parent run."""
    sweep = schema.dump(
        dataclasses.replace(search.sweep, space={}, set={}, recipe=search.base.name)
    )
    kept = [(key, value) for key, value in schema.flatten(sweep) if value not in (None, {})]
    space = [(f"space.{key}", domain) for key, domain in search.space.items()]
    return [
        *kept,
        ("trials", search.trials),
        ("steps", search.steps),
        ("compared by", f"{search.mode} {search.metric}"),
        *space,
    ]


class _Named:
    """Names Tune's trials by their numbers, in the order in which it makes them."""

    def __init__(self, numbers: list[int], first: int) -> None:
        self._numbers, self._first = numbers, first

    def __call__(self, trial: TuneTrial) -> str:
        return str(self._numbers[int(trial.experiment_tag.partition("_")[0]) - self._first])


class _Stop(tune.Stopper):  # type: ignore[misc]
    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._should_stop()


def _tune(
    search: Search,
    journal: Journal,
    watch: Watch,
    place: Place | None,
    should_stop: Callable[[], bool],
) -> None:
    """Run what the journal says is left."""
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
        tracking.store(search.base.tracking),
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
            time_budget_s=60 * sweep.budget.minutes if sweep.budget.minutes else None,
            trial_name_creator=_Named(numbers, 1 if algorithm else 0),
            trial_dirname_creator=str,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            callbacks=[watch],
            stop=_Stop(should_stop),
            verbose=0,
            progress_reporter=tune.CLIReporter(),  # that of notebooks clears the cell
            failure_config=tune.FailureConfig(max_failures=MOST_FAILURES),
        ),
    ).fit()


def _conclude(search: Search, journal: Journal, tracker: Tracker, place: Place | None) -> Outcome:
    """Test the winner, draw the pictures, and leave it all with the parent run."""
    folder = search.folder
    order = ranked(search, journal.trials.values())
    winner = order[0]
    if winner.last is None:
        causes = {trial.cause for trial in order if trial.cause} or {"nothing was reported"}
        raise InputError("no trial came to a validation", remedy=f"{sorted(causes)[0]}")
    root = f"{trial_folder(search, winner)}/checkpoints"
    reported = f"{root}/step-{winner.last.step:08d}"
    newest = reported if bundle.is_complete(reported) else checkpoint.latest(root)
    if newest is None:
        raise InputError(
            f"trial {winner.number} has no checkpoint yet",
            remedy=("give the sweep more time (budget.minutes)"),
        )
    config, meta, version = run.load_trained(newest, [])
    trained = dataclasses.replace(
        config.recipe(), outer=dataclasses.replace(config.outer, steps=version)
    )
    bundle.save(str(folder / "bundle"), trained, meta)
    scores = run.evaluate(newest, [])
    schedule = json.loads(checkpoint.load(newest).notes.get("schedule", "[]"))
    if schedule:
        (folder / "schedule.json").write_text(json.dumps(schedule, indent=1))
    for name, figure in pictures.draw(search, order, schedule).items():
        figures.save(figure, folder / "figures" / f"{name}.png")
    if place is not None:
        found = [trial_folder(search, trial) for trial in order[:MOST_COMPARED]]
        recorded = [uri for uri in found if storage.is_file(f"{uri}/mlflow.json")]
        place = place._replace(compared=tuple(tracking.place_of(uri).run_id for uri in recorded))
        (folder / "mlflow.json").write_text(json.dumps(place._asdict()))
    rows = [
        {
            "trial": t.number,
            "state": t.state,
            "step": t.steps,
            "value": t.last.value if t.last else None,
            "diverged_tasks": t.last.diverged_tasks if t.last else None,
            **t.values,
        }
        for t in order
    ]
    chosen_by = protocol(config.recipe(), "validate", winner.last.step)
    result = {
        "winner": winner.number,
        "chosen_by": chosen_by,
        "values": winner.values,
        "trials": rows,
        "scores": [dataclasses.asdict(s) for s in scores],
    }
    (folder / "result.json").write_text(to_json(result, indent=1))
    kept = [
        "sweep.yaml",
        "recipe.yaml",
        "journal.jsonl",
        "schedule.json",
        "result.json",
        "figures",
        "bundle",
    ]
    for path in (folder / name for name in kept):
        if path.exists():
            tracker.artifact(path)
    model = tracker.model(folder / "bundle", journal.steps())
    tracker.log(journal.steps(), description.as_metrics(scores))
    for step, metrics in description.adaptation(scores).items():
        tracker.log(step, metrics)
    load = run.how_to_load(config.recipe(), folder, model)
    tracker.describe(description.note(scores[0].protocol, load, scores))
    if all(
        trial.over for trial in order
    ):  # MLflow keeps a parameter as it is: not before all is said
        best = {f"best.{key}": value for key, value in winner.values.items()}
        tracker.params([("best.trial", winner.number), *best.items()])
    if winner.last.diverged_tasks:
        log.warning(
            "%d validation tasks of the winner diverged, and no trial that made as many steps had "
            "fewer: "
            "search lower inner rates",
            winner.last.diverged_tasks,
        )
    return Outcome(order, winner, scores, chosen_by, place)


def _end_children(
    search: Search, journal: Journal, place: Place | None, winner: Trial | None
) -> None:
    """A trial's process ends before it could say so in MLflow. The winner's name there says that it
    won.
    """
    if place is None:
        return
    status = {"completed": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
    for trial in journal.trials.values():
        recorded = trial_folder(search, trial)
        if storage.is_file(f"{recorded}/mlflow.json"):
            run_id = tracking.place_of(recorded).run_id
            name = f"{one.name_of(search.sweep.name, trial.number)}{WON if trial is winner else ''}"
            ended = status.get(trial.state, "KILLED")
            if not mlflow_tracker.end(search.base.tracking, run_id, name, ended, trial.at_s):
                return
