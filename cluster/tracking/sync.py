"""Sends MLflow what it lacks of a run that nobody works on: metrics, results, how it ended."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from cluster import checkpoint
from cluster.api.files import metric_of, read, read_result, read_yaml, rows, scores
from cluster.claim import claimed
from cluster.config import Tracking
from cluster.lines import made
from cluster.tracking import description
from cluster.tracking.mlflow_run import ended
from cluster.tracking.mlflow_store import database
from cluster.tracking.mlflow_tracker import MLflowTracker
from cluster.tracking.place import Place, place_of
from metatrain import schema, storage
from metatrain.addresses import HIDDEN, without_secrets
from metatrain.core import InputError
from metatrain.evaluate import Score
from metatrain.recipe import is_pretraining

log = logging.getLogger(__name__)

AT_FIRST = ("config.yaml", "code")  # what a run leaves at its beginning, and MLflow has too
AT_LAST = ("figures", "bundle", "result.json")  # what it leaves at its end


class Synced(NamedTuple):
    """What MLflow has of a run after all."""

    steps: int
    of: int  # outer steps that the run made
    status: str  # as MLflow calls it
    unit: str = "outer steps"

    def sentence(self, folder: str) -> str:
        """Return what the command prints."""
        if self.steps == self.of:
            return f"MLflow has all of {folder}: {self.steps} {self.unit}, {self.status}"
        return (
            f"MLflow has what is left of {folder}: {self.steps} of {self.of} {self.unit}, "
            f"{self.status}"
        )


def sync(folder: str) -> Synced:
    """Send MLflow what it lacks of the run in a folder, and how the run ended.

    Raises InputError if there is no such run, if a process works on it, or if MLflow does not take
    it all.
    """
    folder = folder.rstrip("/")
    place = place_of(folder)
    several = any(storage.is_file(f"{folder}/{name}") for name in ("sweep.yaml", "seeds.json"))
    if not place.run_id or several:
        raise InputError(f"{folder} is not the folder of one run", remedy="give that of a run")
    with ExitStack() as claims:
        for uri, what in _worked_on(folder):
            claims.enter_context(claimed(uri, what))
        return _sync(folder, place)


def _worked_on(folder: str) -> list[tuple[str, str]]:
    """Return the folders that a process claims which works on this run."""
    top = folder.rpartition("/")[0].rpartition("/")[0]  # of SWEEP/trials/NUMBER
    swept = top and storage.is_file(f"{top}/sweep.yaml")
    return [(folder, "run"), *([(top, "sweep")] if swept else [])]


def _sync(folder: str, place: Place) -> Synced:
    config = f"{folder}/config.yaml"
    tree = read_yaml(config)
    recorded = schema.parse(Tracking, tree.get("tracking", {}), config)
    tracking = dataclasses.replace(recorded, uri=store_of(place))
    kept = tree.get("checkpoint")
    lines, of = lines_of(folder, kept.get("uri") if isinstance(kept, dict) else None)
    pretrained = is_pretraining(tree)
    done = is_pretrained(folder, of) if pretrained else storage.is_file(f"{folder}/result.json")
    status = "FINISHED" if done else ended(tracking, place.run_id) or "KILLED"
    at_ms = max((line.get("at_ms") or 0 for line in lines), default=0) or None
    tracker = MLflowTracker(tracking, "", [], place.run_id, {})
    tracker.complete(lines)
    send_files(tracker, folder, AT_FIRST)
    if done and pretrained:
        send_files(tracker, folder, AT_LAST)
    elif done:
        send_results(tracker, folder, AT_LAST, at_ms)
    finish(tracker, folder, status, at_ms)
    unit = "steps" if pretrained else "outer steps"
    return Synced(made(line["step"] for line in lines), of, status, unit)


def is_pretrained(folder: str, steps: int) -> bool:
    """Whether a pre-training ended: its bundle is of as many steps as it made."""
    bundle = f"{folder}/bundle/recipe.yaml"
    if not storage.is_file(bundle):
        return False
    keys = read_yaml(bundle).get("pretraining")
    return isinstance(keys, dict) and keys.get("steps") == steps


def store_of(place: Place) -> str | None:
    """Return the store's address; None if it is in the environment, which has its password."""
    if HIDDEN not in place.uri or database(place.uri) is not None:
        return place.uri
    if without_secrets(os.environ.get("MLFLOW_TRACKING_URI", "")) == place.uri:
        return None
    raise InputError(
        "the store's password is not recorded",
        remedy=f"set MLFLOW_TRACKING_URI to the address of {place.uri}",
    )


def lines_of(folder: str, checkpoints: str | None) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines of a run's metrics.jsonl, and how many outer steps the run made.

    A file that lacks some of them is warned of.

    checkpoints: where the run saved them; None: in its folder.
    """
    path = f"{folder}/metrics.jsonl"
    lines = rows(read(path) or b"")
    steps = [line["step"] for line in lines]
    of = max([*steps, checkpoint.steps_made(checkpoints or f"{folder}/checkpoints")])
    if lacking := of - made(steps):
        log.warning("%s lacks %d of the %d outer steps", path, lacking, of)
    return lines, of


def send_files(tracker: MLflowTracker, folder: str, names: Iterable[str]) -> None:
    """Send those of these files and folders that a run or a sweep has."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            path = _local(f"{folder}/{name}", Path(scratch))
            if path is not None:
                tracker.artifact(path)


def send_results(
    tracker: MLflowTracker,
    folder: str,
    names: Iterable[str],
    at_ms: int | None,
    version: int | None = None,
) -> None:
    """Send the scores in result.json, the model, and the files of these names.

    version: the outer step that the scores are of; None: the one that the bundle records.
    """
    try:
        found = [_score(each) for each in scores(read_result(folder))]
        if version is None:
            version = int(read_yaml(f"{folder}/bundle/recipe.yaml")["outer"]["steps"])
    except (TypeError, ValueError, LookupError) as error:
        raise InputError(
            f"the results in {folder} are damaged ({error})", remedy="resume the run"
        ) from error
    send_files(tracker, folder, names)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = _local(f"{folder}/bundle", Path(scratch))
        if bundle is not None:
            tracker.model(bundle, version)
    tracker.log(version, description.as_metrics(found), at_ms)
    for step, metrics in description.adaptation(found).items():
        tracker.log(step, metrics, at_ms)
    tracker.describe_results(found)


def finish(tracker: MLflowTracker, folder: str, status: str, at_ms: int | None) -> None:
    """Wait until all is sent; raise InputError if MLflow did not take it."""
    if not tracker.finish(status, at_ms):
        what = f"MLflow did not take all of {folder}"
        raise InputError(what, remedy="look at it, and sync again")


def _score(recorded: dict[str, Any]) -> Score:
    """Return a score from its record in result.json."""
    names = {field.name for field in dataclasses.fields(Score)} - {"metric"}
    known = {name: value for name, value in recorded.items() if name in names}
    return Score(metric=metric_of(recorded), **known)  # earlier versions did not record all


def _local(uri: str, scratch: Path) -> Path | None:
    """Return a file or a folder as a local path, copied from a storage; None if it is missing."""
    if not storage.is_remote(uri):
        return Path(uri) if Path(uri).exists() else None
    here = scratch / uri.rpartition("/")[2]
    if here.exists():
        return here
    if storage.is_file(uri):
        here.write_bytes(storage.read(uri))
        return here
    for info in storage.listing(uri):
        here.mkdir(exist_ok=True)
        if info.type == fs.FileType.File:
            (here / info.base_name).write_bytes(storage.read(f"{uri}/{info.base_name}"))
    return here if here.exists() else None
