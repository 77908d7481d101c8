"""Records one run in MLflow from a thread of its own: no server can slow or stop training."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cluster.config import Tracking
from cluster.tracking import description
from cluster.tracking.mlflow_errors import short_error, unanswered
from cluster.tracking.mlflow_run import PARENT, log_params, open_run, show_columns
from cluster.tracking.place import Place, store_uri
from cluster.tracking.tracker import RunParameters
from metatrain.addresses import without_secrets

if TYPE_CHECKING:
    from mlflow.entities import Metric

    from metatrain.core import Setting

log = logging.getLogger(__name__)

BATCH = 1000  # metrics in one request
DRAIN_S = 1.0  # between requests
CLOSE_S = 60.0  # that a finished run waits for the metrics that are still queued
# Metrics that are sent at every step at which they come.
ALWAYS = ("val/", "test/", "adaptation/", "system/driver/", "system/worker-")
# Metrics that a sweep's trials send: their pages and their comparison show all of these.
COMPARED = ("val/", "train/", "searched.")
# Metrics of which a zero says something from the beginning.
RESULTS = ("val/", "test/", "train/", "adaptation/")


class _Row(NamedTuple):
    """Metrics of one step."""

    at_ms: int
    step: int
    metrics: Mapping[str, float]


class MLflowTracker:
    """Queues metrics, and logs them in batches from a thread of its own.

    A batch that fails is sent again with the next one; errors are counted and end as a warning.
    Nothing is lost: the run's folder holds the same metrics.
    """

    def __init__(
        self,
        tracking: Tracking,
        name: str,
        params: RunParameters,
        run_id: str | None,
        tags: Mapping[str, str],
        step: int = 0,
        about: Mapping[str, str] | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        """Start a run or continue one; the arguments are the ones of `start_tracker`."""
        self.uri = store_uri(tracking)
        self._run = open_run(tracking, name, params, run_id, tags, step, about or {})
        self.run_id = self._run.run_id
        self._client = self._run.client
        self.errors = 0
        # Whether the last request had no answer: each further one may then take half a minute.
        self._away = False
        self._every = tracking.every_steps
        self._only = COMPARED if PARENT in tags else ("",)
        self._sent = self._run.metrics  # names
        self._model_id: str | None = None  # the model that scores belong to
        self._scored_on: tuple[str, str] | None = None  # name and digest of the scores' data set
        self._queue: queue.SimpleQueue[_Row] = queue.SimpleQueue()
        self._last: _Row | None = None  # not due, unless it is the end
        self._pending: list[Metric] = []
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()
        try:
            show_columns(self._run, columns)
        except Exception as error:  # an experiment of others, which this user may not change
            self._count(error, "the table of runs does not show its results")

    def __repr__(self) -> str:
        return f"MLflowTracker(run {self.run_id} at {without_secrets(self.uri)})"

    def params(self, params: RunParameters) -> None:
        try:
            log_params(self._run, params)
        except Exception as error:
            self._count(error, "parameters were not recorded")

    def inputs(self, settings: Iterable[Setting]) -> None:
        from cluster.tracking import datasets

        if self._away:
            return
        try:
            found = datasets.inputs(settings)
            self._client.log_inputs(self.run_id, found)
            (scored,) = (each.dataset for each in found if each.tags[0].value == "evaluation")
            self._scored_on = scored.name, scored.digest
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
            self._queue.put(_Row(now_ms, step, metrics if whole else scores))
        rest = {name: value for name, value in metrics.items() if name not in scores}
        if rest:
            self._last = None if whole else _Row(now_ms, step, rest)

    def flush(self) -> None:
        if not self.errors:
            self._send()

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
                self._client, self._run.experiment_id, self.run_id, bundle, step
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
        return Place(without_secrets(self.uri), self._run.experiment_id, self.run_id)

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

    def _says(self, name: str, value: float) -> bool:
        """Whether to send a metric: a counter that stays zero would be a chart of nothing."""
        if value or name.startswith(RESULTS):
            self._sent.add(name)
        return name in self._sent

    def _drain(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(DRAIN_S)
            self._send()

    def _send(self) -> None:
        """Send what is queued, in batches; keep what fails for the next time."""
        from mlflow.entities import Metric

        with self._sending:
            while not self._queue.empty():
                row = self._queue.get()
                of = (self._model_id, *(self._scored_on or ())) if self._model_id else ()
                self._pending += [
                    Metric(
                        *(name, float(value), row.at_ms, row.step),
                        *(of if name.startswith("test/") else ()),
                    )
                    for name, value in row.metrics.items()
                ]
            while self._pending:
                try:
                    self._client.log_batch(self.run_id, metrics=self._pending[:BATCH])
                except Exception as error:
                    self._count(error, f"{len(self._pending)} metrics wait")
                    return
                self._away = False
                del self._pending[:BATCH]

    def _count(self, error: Exception, consequence: str) -> None:
        self.errors += 1
        self._away = unanswered(error, self.uri)
        if self.errors == 1:
            log.warning("MLflow failed (%s): %s", short_error(error, self.uri), consequence)
