"""What the driver knows of an actor: its tickets, and how long it takes for them."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cluster import policy
from cluster.pools.pool import Busy
from cluster.pools.ray_worker import Here
from metatrain.core import Ticket


class Times:
    """How long tickets of each kind took, whoever computed them."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str], deque[float]] = {}

    def note(self, ticket: Ticket, took_s: float) -> float:
        """Note the time of a ticket; returns it in medians."""
        times = self._times.setdefault((ticket.work, ticket.split), deque(maxlen=32))
        times.append(took_s)
        return took_s / self.median_s(ticket)

    def median_s(self, ticket: Ticket) -> float:
        """The median of tickets of that kind; 0 if none has been answered."""
        times = self._times.get((ticket.work, ticket.split))
        return sorted(times)[len(times) // 2] if times else 0.0


@dataclass
class Actor:
    """A worker, and the process that it is at present."""

    name: str
    handle: Any
    alive: bool = False
    here: Here | None = None  # since it was ready for the first time
    tickets: deque[Ticket] = field(default_factory=deque)  # under way; the first is computed
    since: float = 0.0  # when it began with that one
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=3))  # times, in medians
    is_first: bool = True  # its process has not answered any ticket
    replaced: Any = None  # its process is about to be ended, by this task
    drawn: set[tuple[str, str, int]] = field(default_factory=set)

    def begin_again(self) -> None:
        """Forget the process that it was: another one starts."""
        self.alive, self.is_first, self.replaced = False, True, None
        self.recent.clear()
        self.drawn.clear()

    def note(self, ticket: Ticket, took_s: float, times: Times) -> None:
        """Take a ticket off, and note how long it took."""
        self.tickets.remove(ticket)
        self.since = time.monotonic()
        if self.is_first:  # it has compiled, too
            self.is_first = False
            return
        self.recent.append(times.note(ticket, took_s))

    def pace(self, now: float, times: Times) -> float:
        """Return its time for a ticket in medians; nan if it is not known."""
        if not self.tickets:
            if now - self.since > policy.FORGET_S:
                self.recent.clear()
            return policy.pace(self.recent, 0.0, 0.0)
        return policy.pace(self.recent, now - self.since, times.median_s(self.tickets[0]))

    def busy(self, now: float, times: Times) -> Busy:
        """What it computes at present."""
        where = f"{self.here.place}, process {self.here.process}" if self.here else ""
        median_s = times.median_s(self.tickets[0])
        tickets = tuple(self.tickets)
        return Busy(self.name, where, tickets, now - self.since, median_s, self.is_first)
