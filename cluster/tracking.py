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
from collections.abc import Iterable, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, urlsplit

from cluster.config import JOB, Tracking
from metatrain import storage
from metatrain.core import InputError

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

BATCH = 1000  # metrics in one MLflow call
DRAIN_S = 1.0  # between calls
CLOSE_S = 60.0  # how long a finished run waits for what is still queued
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)  # MLflow's rule: an outer group's pattern loses its *
PACKAGES = ("ray-metatrain", "torch", "ray", "mlflow")
JOB_TAG = "metatrain.job"
PARENT = "mlflow.parentRunId"  # the tag that puts a run under another one

Params = Iterable[tuple[str, Any]]  # (dotted key, value)


class Tracker(Protocol):
    def params(self, params: Params) -> None:
        """Keep what does not change any more."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None:
        """Send all that waits, now, if nothing has failed so far."""
        ...

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
    def params(self, params: Params) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def place(self) -> Place | None:
        return None

    def finish(self, status: str) -> None: ...


def start(
    tracking: Tracking, name: str, params: Params, run_id: str | None = None, tags: Mapping[str, str] | None = None
) -> Tracker:
    """Start a run in MLflow, or continue `run_id` or the run that has all these tags.

    Raises InputError where its server does not answer.
    """
    if tracking.uri == "none":
        return NoTracker()
    if JOB in os.environ and not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        log.warning("no MLflow server is named: metrics go to metrics.jsonl only; set MLFLOW_TRACKING_URI")
        return NoTracker()  # a database here would end with the job's folder
    if util.find_spec("mlflow") is None:
        if tracking.uri is not None:
            raise InputError(f"tracking.uri is {tracking.uri} but mlflow is not installed: pip install mlflow")
        log.warning("mlflow is not installed: metrics go to metrics.jsonl only")
        return NoTracker()
    return MLflowTracker(tracking, name, params, run_id, tags or {})


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
            runs, experiments = (quote(json.dumps(ids)) for ids in (self.compared, [self.experiment_id]))
            return f"/#/compare-runs?runs={runs}&experiments={experiments}"
        return f"/#/experiments/{self.experiment_id}/runs/{self.run_id}" if self.run_id else "/"


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
        raise InputError(f"{folder} is no run that was logged to MLflow: give the folder that `train` named") from None
    except (ValueError, TypeError, AttributeError) as error:
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


def end(tracking: Tracking, run_id: str, status: str, at_s: float) -> bool:
    """Record how and when a run ended whose process could not; false where that failed."""
    from mlflow.tracking import MlflowClient

    try:
        MlflowClient(store(tracking)).set_terminated(run_id, status, int(1000 * at_s))
        return True
    except Exception as error:
        log.warning("MLflow did not take that run %s is %s: %s", run_id, status, reason(error, store(tracking)))
        return False


def be_brief() -> None:
    """MLflow's defaults retry for four minutes, and tell of each. These are read at each request."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # we say it where it is of use
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


class MLflowTracker:
    """Queues metrics and logs them in batches from a thread of its own.

    A batch that fails is tried again with the next one; errors are counted and end as a warning. Nothing is lost:
    the run's folder holds the same metrics.
    """

    def __init__(
        self, tracking: Tracking, name: str, params: Params, run_id: str | None, tags: Mapping[str, str]
    ) -> None:
        be_brief()
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        self.uri = store(tracking)
        try:
            self._client = MlflowClient(self.uri)
            self._experiment_id = self._experiment(tracking.experiment)
            found = self._client.get_run(run_id) if run_id else self._find(tags)
            run = found or self._client.create_run(self._experiment_id, run_name=name, tags={**_tags(), **tags})
            self.run_id: str = run.info.run_id
            self._experiment_id = run.info.experiment_id
            if found is None:
                self._log_params(params)
            elif JOB in os.environ:  # it may be another one that goes on
                self._client.set_tag(self.run_id, JOB_TAG, os.environ[JOB])
            self._client.update_run(self.run_id, status="RUNNING")
        except Exception as error:  # MLflow raises what its stores and requests raise
            why = reason(error, self.uri)
            raise InputError(
                f"MLflow does not answer at {shown(self.uri)} ({why}): start it, or set tracking.uri"
            ) from None  # which names the address with its password
        self.errors = 0
        self._every = tracking.every_steps
        self._queue: queue.SimpleQueue[tuple[int, int, Mapping[str, float]]] = queue.SimpleQueue()
        self._last: tuple[int, int, Mapping[str, float]] | None = None  # not due, unless it is the end
        self._pending: list[Metric] = []
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()

    def params(self, params: Params) -> None:
        try:
            self._log_params(params)
        except Exception as error:
            self._count(error, "parameters were not recorded")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        whole = step % self._every == 0
        scores = {name: value for name, value in metrics.items() if name.startswith(("val/", "test/"))}
        if whole or scores:
            self._queue.put((now_ms, step, metrics if whole else scores))
        rest = {name: value for name, value in metrics.items() if name not in scores}
        if whole:
            self._last = None
        elif rest:
            self._last = (now_ms, step, rest)

    def flush(self) -> None:
        if not self.errors:
            self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        with self._sending:
            while not self._queue.empty():
                at_ms, step, metrics = self._queue.get()
                self._pending += [Metric(name, float(value), at_ms, step) for name, value in metrics.items()]
            while self._pending:
                try:
                    self._client.log_batch(self.run_id, metrics=self._pending[:BATCH])
                except Exception as error:
                    self._count(error, f"{len(self._pending)} metrics wait")
                    return
                del self._pending[:BATCH]

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
        if self._last is not None:
            self._queue.put(self._last)
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

    def _log_params(self, params: Params) -> None:
        from mlflow.entities import Param

        named = [Param(NOT_IN_NAMES.sub("_", key), str(value)) for key, value in params]
        self._client.log_batch(self.run_id, params=named)

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            local = str(Path("mlartifacts").absolute()) if self.uri.startswith("sqlite:") else None
            return self._client.create_experiment(name, artifact_location=local)
        return experiment.experiment_id

    def _find(self, tags: Mapping[str, str]) -> Run | None:
        """The run that has all these tags; there are tags for what can be found."""
        if not tags:
            return None
        wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
        return next(iter(self._client.search_runs([self._experiment_id], wanted)), None)

    def _drain(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(DRAIN_S)
            self._send()

    def _count(self, error: Exception, consequence: str) -> None:
        self.errors += 1
        if self.errors == 1:
            log.warning("MLflow failed (%s): %s", reason(error, self.uri), consequence)


def reason(error: Exception, uri: str) -> str:
    """An error of MLflow's in a line, without the address's password."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    refused = re.search(r"\[Errno -?\d+\] ([^'\")]+)", first)  # at the end of what its requests say
    first = refused.group(1) if refused else first
    password = urlsplit(uri).password
    return (first.replace(password, "***") if password else first)[:200]


def _tags() -> dict[str, str]:
    tags = {JOB_TAG: os.environ[JOB]} if JOB in os.environ else {}
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
