"""Memory and processor time of the driver and the workers, for MLflow's system metrics.

    worker's ticket -> Spent.usage -> Requests.usage --+
                                                       +--> system/worker-0/memory_mb, ...
    driver, each step -------------> Meter.read() -----+    at most each 10 seconds

None of it is repeatable, so no part of it goes to metrics.jsonl or into training. Without psutil
there is none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import util
from typing import Any, NamedTuple

DRIVER_S = 10.0  # between measurements
WORKER_S = 2.0  # a worker's newest one goes along with its tickets


class Usage(NamedTuple):
    """Of one process."""

    memory_mb: float  # that it occupies: its resident set, in millions of bytes
    cpu_percent: float  # of a core, since the measurement before
    gpu_memory_mb: float | None = None  # that torch holds; None if it does not use a GPU


class Spent(NamedTuple):
    """What a ticket cost its worker.

    If several workers share a core, more seconds pass than the processor works.
    """

    wall_s: float
    cpu_s: float
    usage: Usage | None = None  # of the process that is the worker alone, now and then


class Meter:
    """Measures this process, at most each so many seconds."""

    def __init__(self, every_s: float, *, at_once: bool = False) -> None:
        """The first measurement is due `every_s` from now, or `at_once`."""
        self._every_s = every_s
        self._due = time.monotonic() + (0.0 if at_once else every_s)
        self._process: Any = None
        if util.find_spec("psutil") is not None:
            import psutil

            self._process = psutil.Process()
            with suppress(psutil.Error):  # this system does not let it look
                self._process.cpu_percent()  # from now on

    def read(self, *, now: bool = False) -> Usage | None:
        """A measurement if one is due or it has to be `now`; else, or if there is none, None."""
        at = time.monotonic()
        if self._process is None or (at < self._due and not now):
            return None
        from psutil import Error

        self._due = at + self._every_s
        try:
            return Usage(
                self._process.memory_info().rss / 1e6, self._process.cpu_percent(), _gpu_memory_mb()
            )
        except Error:  # this system does not let it look
            return None


def metrics(measured: Mapping[str, Usage]) -> dict[str, float]:
    """Measurements by process under MLflow's names, such as system/worker-0/memory_mb."""
    return {
        f"system/{process}/{name}": value
        for process, usage in measured.items()
        for name, value in usage._asdict().items()
        if value is not None
    }


def _gpu_memory_mb() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return float(torch.cuda.memory_reserved()) / 1e6
