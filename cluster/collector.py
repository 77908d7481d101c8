"""Tickets asked of a pool until all have come: retries, staleness and stalls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from cluster.pools.pool import Contribution, Failure, Pool
from cluster.workers.usage import Usage
from metatrain.core import Scores, Sentence, Ticket, Update

log = logging.getLogger(__name__)

POLL_S = 0.5  # how soon an interrupt is noticed
STALL_S = 30.0  # how often a wait without any answer is reported
MOST_LOSSES = 20  # in a row, without one answer between them


class Interrupted(Sentence):
    """Somebody asked the run to stop."""


class WorkersLost(Sentence, RuntimeError):
    """The pool cannot continue."""


def decide(failure: Failure, losses: int) -> Literal["again", "stop"]:
    """What follows a failure after so many losses in a row; an error would repeat exactly."""
    return "again" if failure.kind == "lost" and losses <= MOST_LOSSES else "stop"


class Requests:
    """Asks a pool for tickets and hands their contributions over in ticket order.

    Contributions that nobody collects yet are kept, so training and evaluation tickets can be under
    way together. The first answer to a ticket counts; another one would say the same.
    """

    def __init__(
        self, pool: Pool, should_stop: Callable[[], bool] = lambda: False, wait_s: float = 60.0
    ) -> None:
        self._pool = pool
        self._should_stop = should_stop
        self._wait_s = wait_s
        self._outstanding: set[Ticket] = set()  # asked and not answered
        self._arrived: dict[Ticket, Contribution] = {}
        self.lost = 0  # tickets whose worker died
        self.dropped = 0  # contributions that were too old
        self.busy_s = 0.0  # workers' time in contributions
        self.cpu_s = 0.0  # their processors' time
        self.usage: dict[str, Usage] = {}  # the newest of each worker, until somebody takes it away
        self.waited_s = 0.0  # the caller's time in `collect` waiting for the pool
        self._losses = 0

    def ask(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            self._outstanding.add(ticket)
            self._pool.request(ticket)

    def collect_updates(
        self, tickets: Sequence[Ticket], oldest_version: int
    ) -> tuple[list[Update], int]:
        """The tickets' updates, and the oldest version of the parameters that one belongs to."""
        found = self.collect(tickets, oldest_version)
        updates = [c.result for c in found if isinstance(c.result, Update)]
        return updates, min(c.version for c in found)

    def collect_scores(self, tickets: Sequence[Ticket], version: int) -> list[Scores]:
        """What was measured of the parameters of a version."""
        found = self.collect(tickets, version)
        return [c.result for c in found if isinstance(c.result, Scores)]

    def collect(self, tickets: Sequence[Ticket], oldest_version: int = 0) -> list[Contribution]:
        """Wait until all of these tickets have come; ask again for those of an older version.

        Raises Interrupted, or WorkersLost if the pool cannot answer any more.
        """
        silent_since = time.monotonic()
        while True:
            for ticket in tickets:
                found = self._arrived.get(ticket)
                if found is not None and found.version < oldest_version:
                    del self._arrived[ticket]
                    self.dropped += 1
                    self.ask([ticket])
            if all(ticket in self._arrived for ticket in tickets):
                return [self._arrived.pop(ticket) for ticket in tickets]
            if self._should_stop():
                raise Interrupted
            started = time.monotonic()
            got = self._pool.next(POLL_S)
            self.waited_s += time.monotonic() - started
            if isinstance(got, Contribution):
                if got.ticket in self._outstanding:
                    self._outstanding.remove(got.ticket)
                    self._arrived[got.ticket] = got
                self.busy_s += got.spent.wall_s
                self.cpu_s += got.spent.cpu_s
                if got.spent.usage is not None:
                    self.usage[got.worker] = got.spent.usage
                self._losses = 0
                silent_since = time.monotonic()
            elif isinstance(got, Failure):
                self._retry(got)
            else:
                silent_since = self._report_silence(silent_since)

    def _retry(self, failure: Failure) -> None:
        self.lost += failure.ticket is not None
        self._losses += 1
        if decide(failure, self._losses) == "stop":
            what = (
                "failed" if failure.kind == "error" else f"was lost, the {self._losses}th in a row"
            )
            raise WorkersLost(
                f"worker {failure.worker} {what} on {failure.ticket}: {failure.cause}"
            )
        if failure.ticket in self._outstanding:
            log.warning(
                "worker %s was lost (%s); %s is asked again",
                failure.worker,
                failure.cause,
                failure.ticket,
            )
            self._pool.request(failure.ticket)
        else:  # it had none, or another worker has answered it
            log.warning("worker %s was lost (%s)", failure.worker, failure.cause)

    def _report_silence(self, since: float) -> float:
        status = self._pool.status()
        silent_s = time.monotonic() - since
        if status.alive == 0 and silent_s > self._wait_s:
            raise WorkersLost(
                f"no worker has been alive for {silent_s:.0f} s; {status.oldest} is still "
                "outstanding"
            )
        if silent_s < STALL_S:
            return since
        log.warning(
            "nothing came for %.0f s: %d workers alive, %d idle, waiting for %s",
            status.waiting_s,
            status.alive,
            status.idle,
            status.oldest,
        )
        return since if status.alive == 0 else time.monotonic()
