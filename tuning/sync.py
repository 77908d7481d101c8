"""Sends MLflow what it lacks of a sweep that nobody works on: its own run, and those of its trials.

A trial's process ends inside its last report: if MLflow does not answer then, what waits is lost
with the process. The trial's folder has it, and the journal has how the trial ended.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from typing import Any, NamedTuple

from cluster.api.files import read_result, read_yaml
from cluster.claim import claimed
from cluster.config import RunConfig, Tracking
from cluster.tracking import provenance
from cluster.tracking import sync as runs
from cluster.tracking.mlflow_run import PARENT, ended
from cluster.tracking.mlflow_tracker import MLflowTracker
from cluster.tracking.place import Place, place_of
from cluster.tracking.recording import columns_of, parameters_of
from metatrain import schema, storage
from metatrain.core import InputError
from metatrain.storage import Folder
from tuning import config
from tuning.config import PBT, Sweep
from tuning.journal import Journal, Trial, course
from tuning.result import KEPT, STATUS, name_in_mlflow, won_by
from tuning.trial import TRIAL, folder_of

log = logging.getLogger(__name__)


class Synced(NamedTuple):
    """What MLflow has of a sweep after all."""

    trials: int
    of: int  # trials that made a step or have a folder
    status: str  # as MLflow calls it

    def sentence(self, folder: str) -> str:
        """Return what the command prints."""
        if self.trials == self.of:
            return f"MLflow has all of {folder}: {self.trials} trials, {self.status}"
        return (
            f"MLflow has what is left of {folder}: {self.trials} of {self.of} trials, {self.status}"
        )


def sync(folder: str) -> Synced:
    """Send MLflow what it lacks of the sweep in a folder and of its trials, and how they ended.

    Raises InputError if there is no such sweep, if a process works on it, or if MLflow does not
    take it all.
    """
    folder = folder.rstrip("/")
    place = place_of(folder)
    with claimed(folder, "sweep"):
        here = Folder(folder)
        sweep, base = config.read(here / "sweep.yaml")
        tracking = dataclasses.replace(base.tracking, uri=runs.store_of(place))
        done = storage.is_file(f"{folder}/result.json")
        status = "FINISHED" if done else ended(tracking, place.run_id) or "KILLED"
        journal = Journal(here / "journal.jsonl")
        there = _numbers(folder)
        if there and not journal.trials:
            raise InputError(
                f"{folder}/journal.jsonl says nothing of the trials in {folder}/trials",
                remedy="put the journal back, or resume the sweep",
            )
        winner = _winner(folder) if done else None
        sent = {
            trial.number
            for trial in journal.trials.values()
            if _send_trial(folder, trial, sweep, tracking, place, is_winner=trial.number == winner)
        }
        of = sent | there | {trial.number for trial in journal.trials.values() if trial.steps}
        for number in sorted(of - sent):
            lacking = "journal.jsonl" if number in there else "trials"
            log.warning("%s/%s lacks trial %d", folder, lacking, number)
        _send_own(here, base, journal, tracking, place, status)
    return Synced(len(sent), len(of), status)


def _winner(folder: str) -> int:
    result = read_result(folder)
    number, values = result.get("winner"), result.get("values")
    if type(number) is not int or not isinstance(values, dict):
        raise InputError(f"{folder}/result.json is not a sweep's", remedy="resume the sweep")
    return number


def _numbers(folder: str) -> set[int]:
    """Return the numbers of the trials that have a folder with a run in it."""
    names = {info.base_name for info in storage.listing(f"{folder}/trials")}
    numbers = {int(name) for name in names if re.fullmatch(r"[0-9]{2,9}", name)}
    return {n for n in numbers if storage.is_file(f"{folder_of(folder, n)}/config.yaml")}


def _send_own(
    folder: Folder,
    base: RunConfig,
    journal: Journal,
    tracking: Tracking,
    place: Place,
    status: str,
) -> None:
    """Send the sweep's own run: its best value on the way, and the winner's result."""
    metric = base.family.metric
    tracker = MLflowTracker(tracking, "", [], place.run_id, {})
    for steps, best in sorted(course(folder / "journal.jsonl", metric.better).items()):
        tracker.log(steps, {f"val/{metric.name}_after": best.value}, best.at_ms)
    at_ms = max((int(1000 * trial.at_s) for trial in journal.trials.values()), default=0) or None
    if storage.is_file(f"{folder}/result.json"):
        runs.send_results(tracker, str(folder), KEPT, at_ms, journal.steps())
        if all(trial.over for trial in journal.trials.values()):
            tracker.params(won_by(read_result(str(folder))))
    runs.finish(tracker, str(folder), status, at_ms)


def _send_trial(
    sweep_folder: str,
    trial: Trial,
    sweep: Sweep,
    tracking: Tracking,
    parent: Place,
    *,
    is_winner: bool,
) -> bool:
    """Send a trial's run, which is created if MLflow did not answer when the trial started.

    Returns whether there is such a run: a trial whose process never came up has none.
    """
    folder = folder_of(sweep_folder, trial.number)
    if not storage.is_file(f"{folder}/config.yaml"):
        return False
    its = schema.parse(RunConfig, read_yaml(f"{folder}/config.yaml"), f"{folder}/config.yaml")
    known = place_of(folder) if storage.is_file(f"{folder}/mlflow.json") else None
    tracker = MLflowTracker(
        tracking,
        its.name,
        [] if known else parameters_of(its),
        known.run_id if known else None,
        {PARENT: parent.run_id, TRIAL: str(trial.number)},
        about=provenance.tags(folder, its.name, sweep.recipe),
        columns=[] if known else columns_of(its),
    )
    place = tracker.place()
    if place != known:
        storage.write(f"{folder}/mlflow.json", json.dumps(place._asdict()).encode())
    tracker.complete(runs.lines_of(folder, its.checkpoint.uri)[0])
    if isinstance(sweep.scheduler, PBT):
        tracker.complete(_searched(trial))
    runs.send_files(tracker, folder, runs.AT_FIRST)
    tracker.rename(name_in_mlflow(sweep.name, trial.number, is_winner=is_winner))
    runs.finish(tracker, folder, STATUS.get(trial.state, "KILLED"), int(1000 * trial.at_s))
    return True


def _searched(trial: Trial) -> list[dict[str, Any]]:
    """Return the searched values of each report of a trial, which PBT changes on the way."""
    return [
        {"step": report.step, **{f"searched.{key}": value for key, value in report.values.items()}}
        for report in trial.reports
    ]
