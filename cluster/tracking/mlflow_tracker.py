"""Records one run in MLflow: its metrics through a sender's thread, all else directly."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import Tracking
from cluster.tracking import description
from cluster.tracking.mlflow_errors import Health
from cluster.tracking.mlflow_run import log_params, open_run, show_columns
from cluster.tracking.parameters import metric_name
from cluster.tracking.place import Place, store_uri
from cluster.tracking.sender import MEASURED, QUIET_S, Point, Sender
from cluster.tracking.tracker import RunParameters
from metatrain.addresses import without_secrets
from metatrain.files import check_regular

if TYPE_CHECKING:
    from metatrain.core import Setting
    from metatrain.evaluate import Score

log = logging.getLogger(__name__)

# Metrics that are sent at every step at which they come.
ALWAYS = ("val/", "test/", "adaptation/", "system/driver/", "system/worker-")
# Metrics that a sweep's trials send: their pages and their comparison show all of these.
COMPARED = ("val/", "train/", "searched.")
# Metrics of which a zero says something from the beginning.
RESULTS = ("val/", "test/", "train/", "adaptation/")


class MLflowTracker:
    """Records a run; errors are counted and end as a warning.

    Nothing is lost: the run's folder holds the same metrics, and `metatrain metrics sync` sends
    what MLflow lacks.
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
        mend: str = "",
    ) -> None:
        """Start a run or continue one; the arguments are the ones of `start_tracker`."""
        self.uri = store_uri(tracking)
        self._run = open_run(tracking, name, params, run_id, tags, step, about or {})
        self.run_id = self._run.run_id
        self._client = self._run.client
        self._health = Health(self.uri)
        self._whole, self._mend = True, mend  # whether MLflow has all but metrics that wait
        self._every = tracking.every_steps
        self._only = COMPARED if self._run.trial else ("",)
        self._sent = set(self._run.metrics)  # names
        self._measured: dict[str, int] = {}  # the newest step of each of the machine's metrics
        self._model_id: str | None = None  # the model that scores belong to
        self._scored_on: tuple[str, str] | None = None  # name and digest of the scores' data set
        self._last: list[Point] = []  # not due, unless it is the end
        self._sender = Sender(self._client, self.run_id, self._run.metrics, self._health)
        try:
            show_columns(self._run, columns)
        except Exception as error:  # an experiment of others, which this user may not change
            self._health.failed(error, "the table of runs does not show its results")

    def __repr__(self) -> str:
        return f"MLflowTracker(run {self.run_id} at {without_secrets(self.uri)})"

    @property
    def errors(self) -> int:
        """How many requests failed."""
        return self._health.errors

    def params(self, params: RunParameters) -> None:
        try:
            log_params(self._run, params)
        except Exception as error:
            self._failed(error, "parameters were not recorded")

    def inputs(self, settings: Iterable[Setting]) -> None:
        from cluster.tracking import datasets

        if self._health.away:
            return
        try:
            found = datasets.inputs(settings)
            self._client.log_inputs(self.run_id, found)
            for each in found:
                if each.tags[0].value == "evaluation":
                    self._scored_on = each.dataset.name, each.dataset.digest
        except Exception as error:
            self._failed(error, "the data set was not recorded")

    def complete(self, rows: Iterable[Mapping[str, Any]]) -> None:
        now_ms, names = _now_ms(), self._sent
        self._sent = set()  # a counter is sent from the row on at which it is no longer zero
        for row in rows:
            metrics = {
                name: float(value)
                for name, value in row.items()
                if name not in ("step", "at_ms")
                and isinstance(value, int | float)
                and math.isfinite(value)
            }
            self.log(row["step"], metrics, row.get("at_ms", now_ms))
        self._sent |= names

    def log(self, step: int, metrics: Mapping[str, float], at_ms: int | None = None) -> None:
        named = {metric_name(name): value for name, value in metrics.items()}
        points = [
            Point(name, float(value), at_ms or _now_ms(), step, self._belongs(name))
            for name, value in named.items()
            if name.startswith(self._only) and self._says(name, value) and self._first(name, step)
        ]
        whole = step % self._every == 0
        self._sender.put(point for point in points if whole or point.name.startswith(ALWAYS))
        rest = [point for point in points if not point.name.startswith(ALWAYS)]
        if rest:
            self._last = [] if whole else rest

    def flush(self) -> None:
        self._sender.flush()

    def artifact(self, path: Path) -> None:
        if self._health.away:
            self._whole = False
            return
        try:
            check_regular(path)  # MLflow would wait for a pipe
            with _said_if_slow():
                if path.is_dir():
                    self._client.log_artifacts(self.run_id, str(path), path.name)
                else:
                    self._client.log_artifact(self.run_id, str(path))
        except Exception as error:
            self._failed(error, f"{path} was not uploaded")

    def model(self, bundle: Path, step: int) -> str:
        if self._health.away:
            self._whole = False
            return ""
        try:
            from cluster.tracking import logged_model

            self._model_id = logged_model.record(
                self._client, self._run.experiment_id, self.run_id, bundle, step
            )
        except Exception as error:
            self._failed(error, "the bundle is there as files, and not as a model that predicts")
        return f"models:/{self._model_id}" if self._model_id else ""

    def describe(self, text: str) -> None:
        if self._health.away:
            self._whole = False
            return
        try:
            known = self._client.get_run(self.run_id).data.tags.get(description.NOTE, "")
            self._client.set_tag(self.run_id, description.NOTE, description.merged(text, known))
        except Exception as error:
            self._failed(error, "the run's description was not recorded")

    def describe_results(self, scores: Sequence[Score]) -> None:
        """Put the results into the run's description if it has none yet."""
        try:
            known = self._client.get_run(self.run_id).data.tags.get(description.NOTE, "")
            self._client.set_tag(
                self.run_id, description.NOTE, description.with_results(known, scores)
            )
        except Exception as error:
            self._failed(error, "the run's description was not recorded")

    def rename(self, name: str) -> None:
        """Give the run another name."""
        try:
            self._client.update_run(self.run_id, name=name)
        except Exception as error:
            self._failed(error, "the run's name was not recorded")

    def place(self) -> Place:
        return Place(without_secrets(self.uri), self._run.experiment_id, self.run_id)

    def finish(self, status: str, at_ms: int | None = None) -> bool:
        self._sender.put(self._last)
        waiting = self._sender.close()
        if not waiting:
            self._terminate(status, at_ms)
        whole = self._whole and not waiting
        if not whole and self._mend:
            log.warning("MLflow lacks a part of this run; to send it: %s", self._mend)
        elif not whole:
            log.warning("MLflow lacks a part of this run; its folder has all of it")
        elif self.errors:
            log.info("MLflow has all of this run, though %d requests failed", self.errors)
        return whole

    def _terminate(self, status: str, at_ms: int | None) -> None:
        try:
            with _said_if_slow():
                self._client.set_terminated(self.run_id, status, at_ms)
        except Exception as error:
            self._failed(error, f"the run's end ({status}) was not recorded")

    def _failed(self, error: Exception, consequence: str) -> None:
        self._whole = False
        self._health.failed(error, consequence)

    def _belongs(self, name: str) -> tuple[str, ...]:
        """Return what a score belongs to: the model that was scored, and the data set."""
        if self._model_id is None or not name.startswith("test/"):
            return ()
        return (self._model_id, *(self._scored_on or ()))

    def _says(self, name: str, value: float) -> bool:
        """Whether to send a metric: a counter that stays zero would be a chart of nothing."""
        if value or name.startswith(RESULTS):
            self._sent.add(name)
        return name in self._sent

    def _first(self, name: str, step: int) -> bool:
        """Whether a measurement of the machine is the first one of its step."""
        if not name.startswith(MEASURED):
            return True
        before, self._measured[name] = self._measured.get(name), step
        return before != step


@contextmanager
def _said_if_slow() -> Iterator[None]:
    """Say that the command waits for MLflow if the context lasts for seconds."""
    timer = threading.Timer(QUIET_S, log.info, ("waiting for MLflow",))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _now_ms() -> int:
    return int(time.time() * 1000)
