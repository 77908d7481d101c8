"""The pool: who computes tickets. The loop knows no more of the cluster than this."""

from __future__ import annotations

import time
from collections import deque
from typing import Literal, NamedTuple, Protocol

from cluster.workers.worker import Plan, Spent, Worker
from metatrain.core import Meta, Scores, Ticket, Update
from metatrain.recipe import Recipe


class Snapshot(NamedTuple):
    """Meta-parameters after `version` outer steps."""

    version: int
    meta: Meta


class Contribution(NamedTuple):
    """What a worker computed from a ticket on the snapshot of `version`."""

    ticket: Ticket
    version: int
    worker: str
    spent: Spent
    result: Update | Scores


class Failure(NamedTuple):
    """A ticket that was not computed, or a worker that did not come up (ticket None)."""

    ticket: Ticket | None
    worker: str
    kind: Literal["lost", "error"]  # the worker died; the computation raised
    cause: str


class PoolStatus(NamedTuple):
    alive: int
    idle: int
    oldest: Ticket | None  # asked for longest ago and still outstanding
    waiting_s: float  # since then


class Pool(Protocol):
    def publish(self, snapshot: Snapshot) -> None:
        """Make these parameters the newest."""
        ...

    def request(self, ticket: Ticket) -> None:
        """Have a ticket computed on the newest parameters."""
        ...

    def next(self, timeout_s: float) -> Contribution | Failure | None:
        """What came in next; None where nothing did in time."""
        ...

    def status(self) -> PoolStatus: ...

    def close(self) -> None: ...


class LocalPool:
    """One worker in this process: for debugging, for machines without Ray, and what other pools
    must equal.
    """

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        self._worker = Worker(recipe, plan)
        self._requested: deque[tuple[Ticket, float]] = deque()

    def publish(self, snapshot: Snapshot) -> None:
        self._worker.load(snapshot.version, self._worker.layout.flatten(snapshot.meta))

    def request(self, ticket: Ticket) -> None:
        self._requested.append((ticket, time.monotonic()))

    def next(self, timeout_s: float) -> Contribution | Failure | None:
        """Computes the oldest request; an error in it is raised as it is."""
        if not self._requested:
            return None
        ticket, _ = self._requested.popleft()
        result, spent = self._worker.compute(ticket)
        return Contribution(ticket, self._worker.version, "local", spent, result)

    def status(self) -> PoolStatus:
        oldest, since = self._requested[0] if self._requested else (None, time.monotonic())
        return PoolStatus(1, 0 if oldest else 1, oldest, time.monotonic() - since)

    def close(self) -> None:
        self._requested.clear()
