"""Where a run's numbers go, and where they can be looked at: MLflow, if it is there."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from cluster.config import Tracking
from cluster.jobs.job import JOB
from cluster.tracking.mlflow_store import database, sqlite_uri
from metatrain import storage
from metatrain.core import InputError

if TYPE_CHECKING:
    from metatrain.recipe import Recipe

log = logging.getLogger(__name__)

# the side of MLflow's UI that shows runs: the other one shows traces
TRAINING = "workflowType=machine_learning"

Params = Iterable[tuple[str, Any]]  # (dotted key, value)


class Tracker(Protocol):
    def params(self, params: Params) -> None:
        """Keep what does not change any more."""
        ...

    def inputs(self, recipe: Recipe) -> None:
        """Keep what it learns from and is measured on."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None:
        """Send all that waits, now, if nothing has failed so far."""
        ...

    def artifact(self, path: Path) -> None:
        """Keep a file or folder with the run."""
        ...

    def model(self, bundle: Path, step: int) -> str:
        """Keep a bundle as a model that predicts, which the scores that are logged from now on
        belong to.

        The address that MLflow loads it by; "" if it can be none.
        """
        ...

    def describe(self, text: str) -> None:
        """Say in Markdown what the run is, in place of what was said so far."""
        ...

    def place(self) -> Place | None:
        """Where the run can be looked at, and continued after a crash."""
        ...

    def finish(self, status: str) -> None:
        """FINISHED, KILLED or FAILED; waits for what is still under way."""
        ...


class NoTracker:
    def params(self, params: Params) -> None: ...

    def inputs(self, recipe: Recipe) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def model(self, bundle: Path, step: int) -> str:
        return ""

    def describe(self, text: str) -> None: ...

    def place(self) -> Place | None:
        return None

    def finish(self, status: str) -> None: ...


def start(
    tracking: Tracking,
    name: str,
    params: Params,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    step: int = 0,
    about: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
) -> Tracker:
    """Start a run in MLflow, or continue `run_id` or the run that has all these tags, after `step`
    steps.

    A new run gets the tags `about` besides, and `columns` are the metrics that the table of runs
    shows. Raises InputError if its server does not answer or its store cannot be used.
    """
    if tracking.uri == "none":
        return NoTracker()
    if JOB in os.environ and not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        log.warning(
            "no MLflow server is named: metrics go to metrics.jsonl only; set MLFLOW_TRACKING_URI"
        )
        return NoTracker()  # a database here would end with the job's folder
    if util.find_spec("mlflow") is None:
        if tracking.uri is not None:
            raise InputError(
                f"tracking.uri is {tracking.uri} but mlflow is not installed",
                remedy="pip install mlflow",
            )
        log.warning("mlflow is not installed: metrics go to metrics.jsonl only")
        return NoTracker()
    from cluster.tracking.mlflow_tracker import MLflowTracker

    return MLflowTracker(tracking, name, params, run_id, tags or {}, step, about or {}, columns)


class Place(NamedTuple):
    """Where a run's numbers are: in mlflow.json of its folder."""

    uri: str  # without its password
    experiment_id: str = ""
    run_id: str = ""
    compared: tuple[str, ...] = ()  # ids of the runs to show side by side: a sweep's best trials

    def address(self) -> str:
        """Of the server, where it is one; without a user's name."""
        parts = urlsplit(self.uri)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"

    def page(self) -> str:
        """The path of its page in MLflow's UI."""
        if self.compared:
            runs, experiments = (
                quote(json.dumps(ids)) for ids in (self.compared, [self.experiment_id])
            )
            return f"/#/compare-runs?runs={runs}&experiments={experiments}&{TRAINING}"
        if self.run_id:
            return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}?{TRAINING}"
        return f"/#/experiments?{TRAINING}"


def place_of(folder: Path | str | None) -> Place:
    """The store that the run in `folder` logged to, or the one that a run started here would."""
    if folder is None:
        return Place(store(Tracking()))
    try:
        found = json.loads(storage.read(f"{folder}/mlflow.json"))
        place = Place(**found | {"compared": tuple(found.get("compared", ()))})
        if not all(isinstance(value, str) for value in place[:3] + place.compared):
            raise TypeError("its values are not text")
        return place
    except FileNotFoundError:
        raise InputError(
            f"{folder} is no run that was logged to MLflow",
            remedy="give the folder that `train` named",
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}/mlflow.json is damaged ({error})",
            remedy="leave the folder out to open the store",
        ) from error


def store(tracking: Tracking) -> str:
    """The tracking URI that a run uses; a local database by its whole path, which holds in other
    folders, too.
    """
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path, (_, mark, options) = database(uri), uri.partition("?")
    return uri if path is None else f"{sqlite_uri(path.absolute())}{mark}{options}"
