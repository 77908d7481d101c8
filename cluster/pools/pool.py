"""The pool: who computes tickets. The loop knows no more of the cluster than this."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from cluster.workers.usage import Spent
from metatrain.core import Meta, Scores, Sentence, Ticket, Update


class Snapshot(NamedTuple):
    """Meta-parameters after `version` outer steps."""

    version: int
    meta: Meta
    averaged: bool = False  # whether they are the moving average of the learner's

    @property
    def key(self) -> int:
        """The number by which workers know whether they have these parameters."""
        return -2 - self.version if self.averaged else self.version


class Contribution(NamedTuple):
    """What a worker computed from a ticket on the snapshot of `version`."""

    ticket: Ticket
    version: int
    worker: str
    spent: Spent
    result: Update | Scores


class Failure(NamedTuple):
    """A worker that died or did not come up, or a computation that raised."""

    tickets: tuple[Ticket, ...]  # that it had; the first is the one that it computed
    worker: str
    kind: Literal["lost", "error"]  # the worker died; the computation raised
    cause: str


class Busy(NamedTuple):
    """A worker that computes."""

    worker: str
    where: str  # its node and its process
    tickets: tuple[Ticket, ...]  # that it has; the first is the one that it computes
    since_s: float  # how long it has computed that one
    median_s: float  # that tickets of that kind take; 0 if none has been answered
    is_first: bool  # whether its process has not answered any ticket


class PoolStatus(NamedTuple):
    alive: int
    idle: int
    oldest: Ticket | None  # asked for longest ago and still outstanding
    waiting_s: float  # since then
    busy: tuple[Busy, ...] = ()
    leaving: int = 0  # workers whose nodes are about to end


class WorkersLost(Sentence, RuntimeError):
    """The pool cannot continue."""


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

    def replace(self, worker: str) -> None:
        """End a worker's process, whatever it does, and start another one in its place."""
        ...

    def close(self) -> None: ...
