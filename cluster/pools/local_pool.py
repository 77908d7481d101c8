"""A pool of one worker in this process."""

from __future__ import annotations

import time
from collections import deque
from contextlib import suppress

from cluster.pools.pool import Contribution, Failure, PoolStatus, Snapshot
from cluster.workers.plan import Plan
from cluster.workers.usage import Spent
from cluster.workers.worker import Worker
from metatrain.core import Ticket
from metatrain.custom import staying
from metatrain.start import Prepared


class LocalPool:
    """Implements cluster.pools.pool.Pool in this process.

    It is for debugging, for machines without Ray, and what other pools must equal.
    """

    def __init__(self, prepared: Prepared, plan: Plan) -> None:
        self._worker = Worker(prepared, plan)
        self._ahead = plan.device == "cuda"  # tasks are drawn while it computes
        self._requested: deque[tuple[Ticket, float]] = deque()
        self._version = -1

    def publish(self, snapshot: Snapshot) -> None:
        self._version = snapshot.version
        self._worker.load(snapshot.key, self._worker.layout.flatten(snapshot.meta))

    def request(self, ticket: Ticket) -> None:
        self._requested.append((ticket, time.monotonic()))

    def next(self, timeout_s: float) -> Contribution | Failure | None:
        """Compute the oldest request; an error in it is raised as it is.

        A GPU may still compute it: see Worker.launch.
        """
        if not self._requested:
            return None
        ticket, _ = self._requested.popleft()
        started, cpu_s = time.perf_counter(), time.process_time()
        with staying(f"ticket {ticket}"):
            result = self._worker.launch(ticket)
        if self._ahead and ticket.work == "update":
            self._draw_after(ticket)
        spent = Spent(time.perf_counter() - started, time.process_time() - cpu_s)
        return Contribution(ticket, self._version, "local", spent, result)

    def _draw_after(self, ticket: Ticket) -> None:
        """Draw the tasks that are probably asked for next: those of the next ticket of training."""
        following = ticket._replace(step=ticket.step + 1, part=0)
        if self._requested:
            following, _ = self._requested[0]
        # `launch` draws them again, and its error is raised.
        with suppress(Exception), staying(f"ticket {following}"):
            self._worker.draw(following)

    def status(self) -> PoolStatus:
        oldest, since = self._requested[0] if self._requested else (None, time.monotonic())
        return PoolStatus(1, 0 if oldest else 1, oldest, time.monotonic() - since)

    def replace(self, worker: str) -> None:
        """Do nothing: this process is the worker."""

    def close(self) -> None:
        self._requested.clear()
