"""A run as MLflow records it, from its start to its end."""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cluster import results
from cluster.collector import Interrupted
from cluster.config import RunConfig, Tracking
from cluster.ready import Run
from cluster.tracking import description, provenance
from cluster.tracking.place import place_of
from cluster.tracking.tracker import NoTracker, Tracker, start_tracker
from metatrain import protocol, schema, storage
from metatrain.console import program
from metatrain.core import InputError, Purpose
from metatrain.storage import Folder

log = logging.getLogger(__name__)


@contextmanager
def recorded(
    run: Run, tags: Mapping[str, str] | None = None, source: str | None = None
) -> Iterator[Tracker]:
    """Record a run in MLflow: continue the one that its checkpoint names, or start a new one.

    A run that MLflow knows already continues without it if it does not answer.

    tags: the run to continue is the one that has all of these. It is part of a sweep or of
        several seeds, and so continues without MLflow in any case.
    source: the recipe's file.
    """
    config = run.config
    run_id = None if tags else run.notes.get("mlflow_run_id") or _begun(run.folder)
    tracker: Tracker = NoTracker()
    try:
        tracker = start_tracker(
            experiment_of(config),
            config.name if tags else provenance.dated(config.name),
            parameters_of(config),
            run_id,
            tags,
            run.learner.version,
            provenance.tags(str(run.folder), config.name, source),
            columns_of(config),
            to_sync(str(run.folder)),
        )
    except InputError as error:
        if not (tags or run_id):
            raise
        later = f", until `{to_sync(str(run.folder))}` sends them" if run_id else ""
        log.warning("%s; its metrics are in %s/metrics.jsonl only%s", error, run.folder, later)
    place = tracker.place()
    if place is not None:
        run.notes["mlflow_run_id"] = place.run_id
        storage.write(str(run.folder / "mlflow.json"), json.dumps(place._asdict()).encode())
        run.folder.sync()
    status = "FAILED"
    try:
        pretrained = config.pretraining is not None
        tracker.inputs([run.prepared.setting("update")] if pretrained else run.prepared.used())
        if pretrained:
            trained = protocol.of_start(run.prepared.recipe, config.norm)
            tracker.describe(description.of_pretraining(trained, _to_start(run.folder)))
        elif not tags:
            measured = protocol.of_score(run.prepared, Purpose("score"), config.outer.steps)
            load = results.how_to_load(run.prepared, run.folder)
            tracker.describe(description.note(measured, load))
        yield tracker
        status = "FINISHED"
    except (Interrupted, SystemExit):  # Tune ends a trial by the latter
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def to_sync(folder: str) -> str:
    """Return the command that sends MLflow what it lacks of the run in a folder."""
    return f"{program()} metrics sync {shlex.quote(folder)}"


def _to_start(folder: Folder) -> str:
    """Return the commands that start from a pre-training."""
    place = shlex.quote(provenance.absolute(str(folder)))
    return (
        f"bash\nmetatrain train RECIPE --init {place}\n"
        f"metatrain evaluate RUN --baselines --pretrained {place}"
    )


def _begun(folder: Folder) -> str | None:
    """Return the run in MLflow of a start that ended before its first checkpoint, if there is one.

    Only a run that resumes finds lines of metrics in its folder.
    """
    metrics, place = folder / "metrics.jsonl", folder / "mlflow.json"
    if not (place.exists() and metrics.exists() and metrics.stat().st_size):
        return None
    try:
        return place_of(str(folder)).run_id or None
    except InputError:
        return None


def parameters_of(config: RunConfig) -> list[tuple[str, Any]]:
    """Return what MLflow shows as a run's parameters."""
    values = schema.flatten(schema.dump(config))
    return [(key, value) for key, value in values if key not in ("name", "output")]


def experiment_of(config: RunConfig) -> Tracking:
    """Where a run is recorded, with the experiment that it gets if it names none."""
    name = config.tracking.experiment or provenance.experiment(config.family)
    return dataclasses.replace(config.tracking, experiment=name)


def columns_of(config: RunConfig) -> list[str]:
    """The metrics that tell runs apart, the result first."""
    metric = config.family.metric.name
    return [f"test/{metric}", f"test/{metric}_ci95", f"val/{metric}_after"]
