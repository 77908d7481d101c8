"""Where a run's numbers go: MLflow, off the training thread, so that no server can slow or stop training."""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import urlsplit

from cluster.config import RunConfig, Tracking
from metatrain import recipe as recipes
from metatrain.core import InputError

if TYPE_CHECKING:
    from mlflow.entities import Run

log = logging.getLogger(__name__)

BATCH = 1000  # metrics in one MLflow call
DRAIN_S = 1.0  # between calls
CLOSE_S = 60.0  # how long a finished run waits for what is still queued
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)  # MLflow's rule: an outer group's pattern loses its *
PACKAGES = ("ray-metatrain", "torch", "ray", "mlflow")


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def artifact(self, path: Path) -> None:
        """Keep a file or folder with the run."""
        ...

    def place(self) -> Place | None:
        """Where the run can be looked at, and continued after a crash."""
        ...

    def finish(self, status: str) -> None:
        """FINISHED, KILLED or FAILED; waits for what is still under way."""
        ...


class NoTracker:
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def place(self) -> Place | None:
        return None

    def finish(self, status: str) -> None: ...


def start(config: RunConfig, run_id: str | None) -> Tracker:
    """Start or continue a run in MLflow; InputError where its server does not answer."""
    if config.tracking.uri == "none":
        return NoTracker()
    if util.find_spec("mlflow") is None:
        if config.tracking.uri is not None:
            raise InputError(f"tracking.uri is {config.tracking.uri} but mlflow is not installed: pip install mlflow")
        log.warning("mlflow is not installed: metrics go to metrics.jsonl only")
        return NoTracker()
    return MLflowTracker(config, run_id)


class Place(NamedTuple):
    """Where a run's numbers are: in mlflow.json of its folder."""

    uri: str  # without its password
    experiment_id: str = ""
    run_id: str = ""


def place_of(folder: Path | None) -> Place:
    """The store that the run in `folder` logged to, or the one that a run started here would."""
    if folder is None:
        return Place(store(Tracking()))
    try:
        place = Place(**json.loads((folder / "mlflow.json").read_text()))
        if not all(isinstance(value, str) for value in place):
            raise TypeError("its values are not text")
        return place
    except FileNotFoundError:
        raise InputError(f"{folder} is no run that was logged to MLflow: give the folder that `train` named") from None
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{folder}/mlflow.json is damaged ({error}): leave the folder out to open the store"
        ) from error


def store(tracking: Tracking) -> str:
    """The tracking URI that a run uses; a local database by its whole path, which holds in other folders, too."""
    uri = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    scheme, separator, path = uri.partition(":///")
    return f"{scheme}{separator}{Path(path).absolute()}" if scheme == "sqlite" and path else uri


def shown(uri: str) -> str:
    """The URI without its password, for messages."""
    password = urlsplit(uri).password
    return uri.replace(f":{password}@", ":***@") if password else uri


class MLflowTracker:
    """Queues metrics and logs them in batches from a thread of its own.

    A batch that fails is tried again with the next one; errors are counted and end as a warning. Nothing is lost:
    the run's folder holds the same metrics.
    """

    def __init__(self, config: RunConfig, run_id: str | None) -> None:
        # MLflow's defaults retry for four minutes. These are read at each request.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        self.uri = store(config.tracking)
        try:
            self._client = MlflowClient(self.uri)
            run = self._client.get_run(run_id) if run_id else self._create(config)
            self.run_id: str = run.info.run_id
            self._experiment_id: str = run.info.experiment_id
            self._client.update_run(self.run_id, status="RUNNING")
        except Exception as error:  # MLflow raises what its stores and requests raise
            raise InputError(
                f"MLflow does not answer at {shown(self.uri)} ({self._reason(error)}): start it, or set tracking.uri"
            ) from error
        self.errors = 0
        self._every, self._last = config.tracking.every_steps, config.outer.steps
        self._queue: queue.SimpleQueue[tuple[int, int, Mapping[str, float]]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        scores = {name: value for name, value in metrics.items() if name.startswith(("val/", "test/"))}
        due = metrics if step % self._every == 0 or step == self._last else scores
        if due:
            self._queue.put((int(time.time() * 1000), step, due))

    def artifact(self, path: Path) -> None:
        try:
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), path.name)
            else:
                self._client.log_artifact(self.run_id, str(path))
        except Exception as error:
            self._count(error, f"{path} was not uploaded")

    def place(self) -> Place | None:
        return Place(shown(self.uri), self._experiment_id, self.run_id)

    def finish(self, status: str) -> None:
        self._closing.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._count(TimeoutError(f"still busy after {CLOSE_S:g} s"), "the last metrics are in metrics.jsonl only")
        try:
            self._client.set_terminated(self.run_id, status)
        except Exception as error:
            self._count(error, f"the run's end ({status}) was not recorded")
        if self.errors:
            log.warning("MLflow failed %d times in this run; metrics.jsonl is complete", self.errors)

    def _create(self, config: RunConfig) -> Run:
        experiment = self._client.get_experiment_by_name(config.tracking.experiment)
        if experiment is None:
            local = str(Path("mlartifacts").absolute()) if self.uri.startswith("sqlite:") else None
            experiment_id = self._client.create_experiment(config.tracking.experiment, artifact_location=local)
        else:
            experiment_id = experiment.experiment_id
        run = self._client.create_run(experiment_id, run_name=config.name, tags=_tags())
        from mlflow.entities import Param

        values = recipes.flatten(recipes.dump(config))
        params = [Param(NOT_IN_NAMES.sub("_", key), str(value)) for key, value in values]
        self._client.log_batch(run.info.run_id, params=params)
        return run

    def _drain(self) -> None:
        from mlflow.entities import Metric

        pending: list[Metric] = []
        while True:
            closing = self._closing.wait(DRAIN_S)
            while not self._queue.empty():
                at_ms, step, metrics = self._queue.get()
                pending += [Metric(name, float(value), at_ms, step) for name, value in metrics.items()]
            while pending:
                try:
                    self._client.log_batch(self.run_id, metrics=pending[:BATCH])
                except Exception as error:
                    self._count(error, f"{len(pending)} metrics wait")
                    break
                del pending[:BATCH]
            if closing:
                return

    def _count(self, error: Exception, consequence: str) -> None:
        self.errors += 1
        if self.errors == 1:
            log.warning("MLflow failed (%s): %s", self._reason(error), consequence)

    def _reason(self, error: Exception) -> str:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return first.replace(self.uri, shown(self.uri))[:200]


def _tags() -> dict[str, str]:
    tags = {}
    for package in PACKAGES:
        try:
            tags[f"version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    here = Path(__file__).parent
    try:
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10)
        tags["mlflow.source.git.commit"] = found.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        log.debug("not a git checkout: the run has no commit")
    return tags
