"""One trial: a run in its placement group, whose validations go to Tune.

    Tune -- values --> trial: prepare -> learn (cluster.loop.train) -- each validation --> Tune,
                                         |   ^                         which continues or stops it
                                 tickets v   | updates
                                        its RayPool

A validation is reported after its checkpoint, so that a trial can resume from each report. Tune
ends a trial inside its report, also inside the last one, and does not wait for what follows:
whatever has to be kept is kept before the report.
"""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ray import tune
from ray.util import get_current_placement_group

from cluster import loop
from cluster.collector import Requests
from cluster.config import RunConfig
from cluster.jobs.places import absent
from cluster.lines import whole_lines
from cluster.pools.opening import open_pool
from cluster.pools.ray_connection import this_node
from cluster.ready import prepare
from cluster.run import learn
from cluster.tracking.mlflow_run import PARENT
from cluster.tracking.recording import recorded
from metatrain import bundle, files, schema, storage
from metatrain.core import InputError
from metatrain.isolation import isolated
from metatrain.learner import Diverged
from metatrain.metrics import Better
from tuning.journal import Report
from tuning.space import Values

TRIAL = "metatrain.trial"  # the tag of MLflow runs that holds a trial's number


def name_of(sweep: str, number: int) -> str:
    """Return the name of a trial's run."""
    return f"{sweep}-{number:02d}"


def folder_of(sweep: object, number: int) -> str:
    """Return the folder of a trial, which is a run's, in the folder of its sweep."""
    return f"{sweep}/trials/{number:02d}"


class Shared(NamedTuple):
    """What all trials of a sweep have in common; plain data, because it travels."""

    name: str
    folder: str
    base: schema.Tree
    metric: str
    mode: Better
    exploits: bool  # whether trials continue from each other's checkpoints
    parent: str | None  # the sweep's run in MLflow
    store: str  # where MLflow is
    recipe: str  # the file of what they share

    def config(self, values: Mapping[str, Any], number: int) -> RunConfig:
        """Return the run that a trial is; `metatrain train` repeats it."""
        tree = copy.deepcopy(self.base)
        own = {"name": name_of(self.name, number), "output": folder_of(self.folder, number)}
        for key, value in {**values, **own}.items():
            schema.put(tree, key, value)
        return schema.parse(RunConfig, tree, f"trial {number}")


def run(given: dict[str, Any], shared: Shared) -> None:
    """Run a trial, which Tune calls by its number; given["values"] has the searched keys."""
    if not storage.is_remote(shared.folder) and not Path(shared.folder).is_dir():
        raise InputError(
            f"this node does not see {shared.folder}",
            remedy="give the sweep an output that all nodes see",
        )
    number, values = int(tune.get_context().get_trial_name()), given["values"]
    if shared.parent is not None:
        os.environ["MLFLOW_TRACKING_URI"] = shared.store
    taken = tune.get_checkpoint()  # of itself, or of a better trial
    scheme, remote, _ = shared.folder.rpartition("://")
    try:
        ready = prepare(
            shared.config(values, number),
            f"{scheme}{remote}{taken.path}" if taken else "auto",
            trial=True,
        )
    except InputError as error:
        raise InputError(absent(error, this_node()) or str(error)) from error
    if shared.exploits:
        _continue_schedule(ready.notes, ready.learner.version, number, values)
    newest = Report(-1, math.nan, math.nan, values)

    def report(validation: Report) -> None:
        step, saved = validation.step, None
        if shared.exploits and step:
            folder = f"{ready.folder}/checkpoints/step-{step:08d}"
            if bundle.is_complete(folder):  # else a newer one followed: the trial resumes from it
                system, path = storage.filesystem(folder)
                saved = tune.Checkpoint(path, system)
        done = step == ready.config.outer.steps or bool(validation.diverged)
        compared = validation.compared(shared.mode)
        tune.report(validation._asdict() | {"compared": compared, "done": done}, checkpoint=saved)

    if not taken and ready.learner.version:  # Tune does not know it, or not any more
        past = _past(ready.folder / "metrics.jsonl", ready.learner.version, shared.metric, values)
        for validation in past[-1:] if shared.exploits else past:
            report(validation)

    tags = {PARENT: shared.parent, TRIAL: str(number)} if shared.parent is not None else {}
    try:
        with (
            isolated(ready.config.workers.threads),
            open_pool(
                ready.config.workers,
                ready.prepared,
                ready.plan,
                group=get_current_placement_group(),
            ) as pool,
            recorded(ready, tags, shared.recipe) as tracker,
        ):

            def on_step(step: int, metrics: Mapping[str, float]) -> None:
                nonlocal newest
                if shared.metric in metrics:
                    newest = _report(step, metrics, shared.metric, values)
                    if shared.exploits:
                        tracker.log(step, {f"searched.{key}": v for key, v in values.items()})
                    if step == 0:
                        report(newest)

            def save() -> None:
                if newest.step == ready.learner.version:
                    tracker.flush()
                    report(newest)

            requests = Requests(pool, wait_s=ready.config.workers.wait_s, seed=ready.config.seed)
            learn(ready, pool, requests, tracker, [loop.Hooks(on_step, save)])
    except Diverged as error:
        report(Report(ready.learner.version, math.nan, math.nan, values, str(error)))


def _report(step: int, metrics: Mapping[str, float], metric: str, values: Values) -> Report:
    value, width = (
        math.nan if metrics.get(name) is None else metrics[name]
        for name in (metric, f"{metric}_ci95")
    )
    return Report(
        step, value, width, values, diverged_tasks=int(metrics.get("val/diverged_tasks") or 0)
    )


def _past(path: Path, version: int, metric: str, values: Values) -> list[Report]:
    """Return what a trial reported up to a checkpoint, from its own metrics file."""
    lines = whole_lines(files.record(path))
    rows = [(step, json.loads(line)) for step, line in lines if step <= version]
    return [_report(step, row, metric, values) for step, row in rows if metric in row]


def schedule_of(notes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the schedule in a checkpoint's notes; InputError if they hold something else."""
    kinds = {"step": int, "trial": int, "values": dict}
    try:
        found: list[dict[str, Any]] = json.loads(notes.get("schedule", "[]"))
        right = all(isinstance(turn[key], kind) for turn in found for key, kind in kinds.items())
    except (ValueError, LookupError, TypeError, RecursionError):
        right = False
    if not right:
        raise InputError(
            "a trial's checkpoint holds no schedule of values", remedy="start the sweep again"
        )
    return found


def _continue_schedule(notes: dict[str, str], version: int, number: int, values: Values) -> None:
    """Add to a checkpoint's schedule: since which step which trial trained with which values."""
    schedule = schedule_of(notes)
    if not schedule or (schedule[-1]["trial"], schedule[-1]["values"]) != (number, values):
        schedule.append({"step": version, "trial": number, "values": values})
        notes["schedule"] = json.dumps(schedule)
