"""Sends a run's metrics to MLflow from a thread of its own, each step of a metric once.

    put(points) --> queue --> without what MLflow has --> pending --> batches --> MLflow
                                                            ^           |
                                                            +-- failed -+

No server can slow or stop training: new points are sent once a second, and of a backlog only a few
more. A batch that fails is sent again as it is, and MLflow's stores keep a point that comes twice
with the same time once.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from cluster.tracking.mlflow_errors import Health
from metatrain.awaiting import awaiting

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

BATCH = 250  # points in a request: more would hold Python's lock for longer than a step takes
DRAIN_S = 1.0  # between rounds
BACKLOG = 500  # points that a round sends besides the new ones
FLUSH_S = 10.0  # that a trial waits for the thread's own request
QUIET_S = 2.0  # that the end of a run waits without a word
SILENT_S = 15.0  # that the end of a run waits for an answer: longer than a request may take
CLOSE_S = 300.0  # that the end of a run waits if MLflow answers
# Measurements of the machine: the first attempt at a step and the second have different ones.
MEASURED = "system/"


class Point(NamedTuple):
    """A metric of an outer step."""

    name: str
    value: float
    at_ms: int
    step: int
    of: tuple[str, ...] = ()  # the id of its model, the name and digest of its data set


class Sender:
    """Sends points to one run in MLflow."""

    def __init__(
        self, client: MlflowClient, run_id: str, known: Iterable[str], health: Health
    ) -> None:
        """known: names of metrics of which MLflow has points from before."""
        self._client, self._run_id, self._health = client, run_id, health
        self._unread = set(known)
        # name -> step -> value: what MLflow has from before, of steps that are still to come
        self._there: dict[str, dict[int, float]] = {}
        self._queue: queue.SimpleQueue[Point] = queue.SimpleQueue()
        self._new: dict[str, list[Point]] = {}  # taken from the queue, not yet compared
        self._pending: list[Point] = []
        self._sending = threading.Lock()
        self._closing = threading.Event()
        self._answered_s = time.monotonic()
        self._thread = threading.Thread(target=self._drain, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, points: Iterable[Point]) -> None:
        """Queue points; those of a metric come in the order of their steps."""
        for point in points:
            self._queue.put(point)

    def flush(self) -> None:
        """Send now all that waits, unless MLflow does not answer."""
        if self._health.away or not self._sending.acquire(timeout=FLUSH_S):
            return
        try:
            self._send(math.inf)
        finally:
            self._sending.release()

    def close(self) -> int:
        """Send all that waits, and end; return how many points MLflow lacks."""
        self._closing.set()
        self._thread.join(QUIET_S)
        if self._thread.is_alive():
            with awaiting("waiting for MLflow") as update:
                started_s = self._answered_s = time.monotonic()
                while self._thread.is_alive() and time.monotonic() < min(
                    started_s + CLOSE_S, self._answered_s + SILENT_S
                ):
                    update(f"waiting for MLflow: {self.waiting} metrics")
                    self._thread.join(0.2)
        if self._thread.is_alive():
            self._health.failed(
                TimeoutError(f"no answer in {SILENT_S:g} s"), f"{self.waiting} metrics wait"
            )
            self._health.away = True
        return self.waiting

    @property
    def waiting(self) -> int:
        """How many points are not sent yet."""
        return self._queue.qsize() + sum(map(len, list(self._new.values()))) + len(self._pending)

    def _drain(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(DRAIN_S)
            with self._sending:
                self._send(math.inf if closing else BACKLOG)

    def _send(self, backlog: float) -> None:
        """Send what is new, and so many points of what waits for longer; keep what fails."""
        try:
            most = self._take() + backlog
            while self._pending and most > 0:
                batch = self._pending[:BATCH]
                self._client.log_batch(self._run_id, metrics=[_entity(point) for point in batch])
                self._answered()
                del self._pending[: len(batch)]
                most -= len(batch)
        except Exception as error:
            self._health.failed(error, f"{self.waiting} metrics wait")

    def _take(self) -> int:
        """Take what is queued without what MLflow has; return how many points are left of it."""
        while not self._queue.empty():
            point = self._queue.get()
            self._new.setdefault(point.name, []).append(point)
        taken = len(self._pending)
        while self._new:
            name = next(iter(self._new))
            if name in self._unread:
                history = self._client.get_metric_history(self._run_id, name)
                self._there[name] = {metric.step: metric.value for metric in history}
                self._unread.remove(name)
                self._answered()
            self._pending += self._lacking(name, self._new[name])
            del self._new[name]
        return len(self._pending) - taken

    def _lacking(self, name: str, points: list[Point]) -> list[Point]:
        """Return those points of a metric that MLflow does not have from before."""
        there = self._there.get(name)
        if not there:
            return points
        # A value that differs is of a run that was resumed with other settings.
        lacking = [
            point
            for point in points
            if point.step not in there
            or not (name.startswith(MEASURED) or there[point.step] == point.value)
        ]
        newest = points[-1].step
        self._there[name] = {step: value for step, value in there.items() if step >= newest}
        return lacking

    def _answered(self) -> None:
        self._health.away = False
        self._answered_s = time.monotonic()


def _entity(point: Point) -> Metric:
    from mlflow.entities import Metric

    return Metric(point.name, point.value, point.at_ms, point.step, *point.of)
