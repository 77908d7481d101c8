"""The pool: who computes tickets. The loop knows no more of the cluster than this."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from cluster.workers.usage import Spent
from metatrain.core import Meta, Scores, Ticket, Update


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
        """What came in next; None if nothing did in time."""
        ...

    def status(self) -> PoolStatus: ...

    def close(self) -> None: ...
