"""One run in MLflow, off the training thread, so that no server can slow or stop training."""

from __future__ import annotations

import logging
import os
import queue
import re
import shlex
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.config import Tracking
from cluster.jobs.job import JOB
from cluster.tracking import description
from cluster.tracking.mlflow_store import (
    be_brief,
    database,
    opening,
    reason,
    shown,
    trouble,
    unanswered,
)
from cluster.tracking.tracker import Params, Place, store
from metatrain.core import InputError

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

    from metatrain.recipe import Recipe

log = logging.getLogger(__name__)

BATCH = 1000  # metrics in one MLflow call
DRAIN_S = 1.0  # between calls
ALWAYS = (
    "val/",
    "test/",
    "adaptation/",
    "system/driver/",
    "system/worker-",
)  # are sent at whatever step they come
COMPARED = (
    "val/",
    "train/",
    "searched.",
)  # what a sweep's trials send: their pages and their comparison show it all
RESULTS = (
    "val/",
    "test/",
    "train/",
    "adaptation/",
)  # of which a zero says something from the beginning
CLOSE_S = 60.0  # how long a finished run waits for what is still queued
NOT_IN_NAMES = re.compile(
    r"[^\w\-. :/]", re.ASCII
)  # MLflow's rule: an outer group's pattern loses its *
CHANGED = re.compile(
    r"(.+) from step (\d+)(?: attempt (\d+))?"
)  # the parameter of a value that a resumed run changed
NOT_SET = "not set"  # the value of a key that a resumed run leaves out
EXPERIMENT = "metatrain"  # of a run that names none
PARENT = "mlflow.parentRunId"  # the tag that puts a run under another one


class MLflowTracker:
    """Queues metrics and logs them in batches from a thread of its own.

    A batch that fails is tried again with the next one; errors are counted and end as a warning.
    Nothing is lost: the run's folder holds the same metrics.
    """

    def __init__(
        self,
        tracking: Tracking,
        name: str,
        params: Params,
        run_id: str | None,
        tags: Mapping[str, str],
        step: int = 0,
        about: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        be_brief()
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # which to import it has set
        self.uri = store(tracking)
        try:
            with opening(self.uri):
                self._client = MlflowClient(self.uri)
                known = self._known(run_id) if run_id else None
                lost = run_id if known is None else None
                self._experiment_id = self._chosen(
                    known or self._parent(tags), tracking.experiment or EXPERIMENT
                )
            found = known or self._find(tags)
            described = {**(about or {}), **tags}
            run = found or self._client.create_run(
                self._experiment_id, run_name=name, tags=described
            )
            self.run_id: str = run.info.run_id
            if found is None:
                self._log_params(params)
            else:
                self._log_params(changes(found.data.params, _named(params), step).items())
                if JOB in os.environ:  # it may be another one that goes on
                    self._client.set_tag(self.run_id, description.JOB_TAG, os.environ[JOB])
            self._client.update_run(self.run_id, status="RUNNING")
        except InputError:
            raise
        except Exception as error:  # MLflow raises what its stores and requests raise
            raise InputError(
                trouble(error, self.uri)
            ) from None  # which names the address with its password
        if lost:
            log.warning(
                "MLflow's run %s is deleted or unknown at %s: what follows step %d is in a new "
                "one, %s",
                *(lost, shown(self.uri), step, self.run_id),
            )
        self.errors = 0
        self._away = (
            False  # whether the last request had no answer: each further one may take half a minute
        )
        self._every = tracking.every_steps
        self._only = COMPARED if PARENT in tags else ("",)
        self._sent: set[str] = set(found.data.metrics) if found else set()  # names
        self._model_id: str | None = None  # that scores belong to
        self._scored_on: tuple[str, str] | None = (
            None  # the name and digest of the data set that they are of
        )
        self._queue: queue.SimpleQueue[tuple[int, int, Mapping[str, float]]] = queue.SimpleQueue()
        self._last: tuple[int, int, Mapping[str, float]] | None = (
            None  # not due, unless it is the end
        )
        self._pending: list[Metric] = []
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()
        self._show(columns)

    def __repr__(self) -> str:
        return f"MLflowTracker(run {self.run_id} at {shown(self.uri)})"

    def params(self, params: Params) -> None:
        try:
            self._log_params(params)
        except Exception as error:
            self._count(error, "parameters were not recorded")

    def inputs(self, recipe: Recipe) -> None:
        from cluster.tracking import datasets

        if self._away:
            return
        try:
            found = datasets.inputs(recipe)
            self._client.log_inputs(self.run_id, found)
            self._scored_on = found[-1].dataset.name, found[-1].dataset.digest
        except Exception as error:
            self._count(error, "the data set was not recorded")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        metrics = {
            name: value
            for name, value in metrics.items()
            if name.startswith(self._only) and self._says(name, value)
        }
        whole = step % self._every == 0
        scores = {name: value for name, value in metrics.items() if name.startswith(ALWAYS)}
        if whole or scores:
            self._queue.put((now_ms, step, metrics if whole else scores))
        rest = {name: value for name, value in metrics.items() if name not in scores}
        if rest:
            self._last = None if whole else (now_ms, step, rest)

    def _says(self, name: str, value: float) -> bool:
        """Whether a metric is to be sent: one that counts what never happens would be a chart of
        nothing.
        """
        if value or name.startswith(RESULTS):
            self._sent.add(name)
        return name in self._sent

    def flush(self) -> None:
        if not self.errors:
            self._send()

    def _send(self) -> None:
        from mlflow.entities import Metric

        with self._sending:
            while not self._queue.empty():
                at_ms, step, metrics = self._queue.get()
                of = (self._model_id, *(self._scored_on or ())) if self._model_id else ()
                self._pending += [
                    Metric(
                        name, float(value), at_ms, step, *(of if name.startswith("test/") else ())
                    )
                    for name, value in metrics.items()
                ]
            while self._pending:
                try:
                    self._client.log_batch(self.run_id, metrics=self._pending[:BATCH])
                except Exception as error:
                    self._count(error, f"{len(self._pending)} metrics wait")
                    return
                self._away = False
                del self._pending[:BATCH]

    def artifact(self, path: Path) -> None:
        try:
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), path.name)
            else:
                self._client.log_artifact(self.run_id, str(path))
        except Exception as error:
            self._count(error, f"{path} was not uploaded")

    def model(self, bundle: Path, step: int) -> str:
        if self._away:
            return ""
        try:
            from cluster.tracking import logged_model

            self._model_id = logged_model.record(
                self._client, self._experiment_id, self.run_id, bundle, step
            )
        except Exception as error:
            self._count(error, "the bundle is there as files, and not as a model that predicts")
        return f"models:/{self._model_id}" if self._model_id else ""

    def describe(self, text: str) -> None:
        if self._away:
            return
        try:
            known = self._client.get_run(self.run_id).data.tags.get(description.NOTE, "")
            self._client.set_tag(self.run_id, description.NOTE, description.merged(text, known))
        except Exception as error:
            self._count(error, "the run's description was not recorded")

    def place(self) -> Place | None:
        return Place(shown(self.uri), self._experiment_id, self.run_id)

    def finish(self, status: str) -> None:
        if self._last is not None:
            self._queue.put(self._last)
        self._closing.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._count(
                TimeoutError(f"still busy after {CLOSE_S:g} s"),
                "the last metrics are in metrics.jsonl only",
            )
        try:
            self._client.set_terminated(self.run_id, status)
        except Exception as error:
            self._count(error, f"the run's end ({status}) was not recorded")
        if self.errors:
            log.warning(
                "MLflow failed %d times in this run; metrics.jsonl is complete", self.errors
            )

    def _log_params(self, params: Params) -> None:
        from mlflow.entities import Param

        named = [Param(name, value) for name, value in _named(params).items()]
        if named:
            self._client.log_batch(self.run_id, params=named)

    def _known(self, run_id: str) -> Run | None:
        """The run, if this store has it and nobody deleted it."""
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def _parent(self, tags: Mapping[str, str]) -> Run | None:
        """The run that this one belongs under."""
        return self._known(tags[PARENT]) if PARENT in tags else None

    def _chosen(self, beside: Run | None, name: str) -> str:
        """The experiment of another run, or else that of this name, which is made if there is
        none.
        """
        return beside.info.experiment_id if beside else self._experiment(name)

    def _show(self, columns: Sequence[str]) -> None:
        """Have the table of the experiment's runs show these metrics."""
        if not columns:
            return
        try:
            known = self._client.get_experiment(self._experiment_id).tags
            state = description.view(known.get(description.VIEW_TAG, ""), columns)
            for name, value in {
                description.VIEW_TAG: state,
                description.PRIMARY_TAG: columns[0],
            }.items():
                if known.get(name) != value:
                    self._client.set_experiment_tag(self._experiment_id, name, value)
        except Exception as error:  # an experiment of others, which this user may not change
            self._count(error, "the table of runs does not show its results")

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            local = Path("mlartifacts").absolute().as_uri() if database(self.uri) else None
            try:
                return self._client.create_experiment(name, artifact_location=local)
            except MlflowException:
                experiment = self._client.get_experiment_by_name(name)
                if experiment is None:  # else another run was faster
                    raise
        if experiment.lifecycle_stage == "deleted":
            restore = (
                f"MLFLOW_TRACKING_URI={shlex.quote(shown(self.uri))} mlflow experiments restore"
            )
            raise InputError(
                f"MLflow's experiment {name!r} at {shown(self.uri)} was deleted",
                remedy=(
                    "restore it by "
                    f"`{restore} --experiment-id {experiment.experiment_id}`, or set "
                    "tracking.experiment to another name"
                ),
            )
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
        self._away = unanswered(error, self.uri)
        if self.errors == 1:
            log.warning("MLflow failed (%s): %s", reason(error, self.uri), consequence)


def _named(params: Params) -> dict[str, str]:
    """Parameters as MLflow takes them."""
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    return {NOT_IN_NAMES.sub("_", key): str(value)[:MAX_PARAM_VAL_LENGTH] for key, value in params}


def changes(recorded: Mapping[str, str], now: Mapping[str, str], step: int) -> dict[str, str]:
    """The parameters that say which values a run has from `step` on, if not those that MLflow has
    recorded.

    MLflow keeps a parameter as it is. A new value of outer.lr is beside it, as "outer.lr from step
    400", and as "outer.lr from step 300 attempt 2" if the run resumes before a step from which
    another value held: the last attempt counts.
    """
    past: dict[str, list[tuple[int, int, str]]] = {}
    for name, value in recorded.items():
        found = CHANGED.fullmatch(name)
        if found:
            past.setdefault(found[1], []).append((int(found[3] or 1), int(found[2]), value))
    groups = {key.partition(".")[0] for key in now}
    known = [key for key in recorded.keys() | past.keys() if not CHANGED.fullmatch(key)]
    gone = {key: NOT_SET for key in sorted(known) if key.partition(".")[0] in groups}
    added = {}
    for key, value in {**gone, **now}.items():
        course = [
            (-1, recorded.get(key, NOT_SET))
        ]  # the values that held, each with the step from which on it did
        attempts = sorted(past.get(key, []))
        for _, start, changed in attempts:
            course = [point for point in course if point[0] < start] + [(start, changed)]
        held = [changed for start, changed in course if start <= step][-1]
        undone = [changed for start, changed in course[1:] if start >= step]
        if {held, *undone} != {value}:
            attempt = (attempts[-1][0] if attempts else 1) + bool(undone)
            added[f"{key} from step {step}" + (f" attempt {attempt}" if attempt > 1 else "")] = (
                value
            )
    return added


def end(tracking: Tracking, run_id: str, name: str, status: str, at_s: float) -> bool:
    """Record how and when a run ended whose process could not, and its name; false if that
    failed.
    """
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(store(tracking))
        client.set_terminated(run_id, status, int(1000 * at_s))
        client.update_run(run_id, name=name)
        return True
    except Exception as error:
        log.warning(
            "MLflow did not take that run %s is %s: %s",
            run_id,
            status,
            reason(error, store(tracking)),
        )
        return False
