"""Tickets asked of a pool until all have come: what cluster.policy decides is done here."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from cluster import policy
from cluster.pools.pool import Contribution, Failure, Pool, Snapshot, WorkersLost
from cluster.workers.usage import Usage
from metatrain.core import Scores, Sentence, Ticket

log = logging.getLogger(__name__)

POLL_S = 0.5  # how soon an interrupt, and at the latest a late worker, is noticed
SAVE_S = 5.0  # without any answer: what was learned is saved while that is possible
STALL_S = 30.0  # how often a wait without any answer is reported
AT_ONCE_S = 1.0  # deaths within so long may have one cause


class Interrupted(Sentence):
    """Somebody asked the run to stop."""


class Requests:
    """Asks a pool for tickets and hands their contributions over in ticket order.

    Contributions that nobody collects yet are kept, so training and evaluation tickets can be under
    way together. The first answer to a ticket counts; another one would say the same.
    """

    def __init__(
        self,
        pool: Pool,
        should_stop: Callable[[], bool] = lambda: False,
        wait_s: float = 600.0,
        seed: int = 0,
    ) -> None:
        """Ask this pool.

        wait_s: how long the pool may be without a worker that lives.
        seed: of the run, for messages.
        """
        self._pool = pool
        self._should_stop = should_stop
        self._wait_s, self._seed = wait_s, seed
        self._outstanding: set[Ticket] = set()  # asked and not answered
        self._arrived: dict[Ticket, Contribution] = {}
        self._kills: Counter[Ticket] = Counter()  # workers that died of a ticket
        self._killed: dict[Ticket, tuple[str, float]] = {}  # the last of them, and when
        self._repeated: set[Ticket] = set()  # asked of a second worker
        self._answered_s: dict[str, float] = {}  # when each worker's last answer came
        self._alive_s = 0.0  # when a worker was last known to live
        self._checked_s = 0.0  # when delays were last looked for
        self._leaving = 0  # workers whose nodes were about to end then
        self._crew = policy.Crew()
        self.on_danger: Callable[[], None] = lambda: None  # the run may end soon: save
        self.lost = 0  # tickets whose worker died
        self.repeated = 0  # tickets that a second worker got because the first one was late
        self.replaced = 0  # workers that hung
        self.dropped = 0  # contributions that were too old
        self.busy_s = 0.0  # workers' time in contributions
        self.cpu_s = 0.0  # their processors' time
        self.usage: dict[str, Usage] = {}  # the newest of each worker, until somebody takes it away
        self.waited_s = 0.0  # the caller's time in `collect` waiting for the pool

    def publish(self, snapshot: Snapshot) -> None:
        """Have what is asked next computed on these parameters."""
        self._pool.publish(snapshot)

    def ask(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            self._outstanding.add(ticket)
            self._pool.request(ticket)

    def collect_scores(self, tickets: Sequence[Ticket], version: int) -> list[Scores]:
        """What was measured of the parameters of a version."""
        found = self.collect(tickets, version)
        return [c.result for c in found if isinstance(c.result, Scores)]

    def collect(self, tickets: Sequence[Ticket], oldest_version: int = 0) -> list[Contribution]:
        """Wait until all of these tickets have come; ask again for those of an older version.

        Raises Interrupted, or WorkersLost if the pool cannot answer any more.
        """
        silent_since = reported = self._alive_s = time.monotonic()
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
            now = time.monotonic()
            self.waited_s += now - started
            if isinstance(got, Contribution):
                self._take(got)
                silent_since = reported = self._alive_s = now
            elif isinstance(got, Failure):
                self._act_on(got)
            else:
                reported = self._act_on_silence(silent_since, reported)
            if got is None or now - self._checked_s >= POLL_S:
                self._act_on_delay()

    def _take(self, got: Contribution) -> None:
        if got.ticket in self._outstanding:
            self._outstanding.remove(got.ticket)
            self._arrived[got.ticket] = got
            self._kills.pop(got.ticket, None)
            self._killed.pop(got.ticket, None)
            self._repeated.discard(got.ticket)
        self.busy_s += got.spent.wall_s
        self.cpu_s += got.spent.cpu_s
        if got.spent.usage is not None:
            self.usage[got.worker] = got.spent.usage
        self._answered_s[got.worker] = time.monotonic()

    def _act_on(self, failure: Failure) -> None:
        # Others may have answered its tickets.
        left = tuple(ticket for ticket in failure.tickets if ticket in self._outstanding)
        if left and left[0] == failure.tickets[0]:
            self._count_kill(left[0], failure.worker)
        self.lost += len(failure.tickets)
        if failure.kind == "lost":
            failure = failure._replace(tickets=left)
        decision = policy.on_failure(failure, self._kills, self._seed)
        if decision.action == "stop":
            raise WorkersLost(decision.reason)
        log.warning("%s", decision.reason)
        self._repeat(decision)

    def _count_kill(self, ticket: Ticket, worker: str) -> None:
        """Count a death, unless another worker had the ticket and died just before.

        Workers that die at once are reported one after the other, and the ticket of the first may
        have been asked of the next by then.
        """
        last, when = self._killed.get(ticket, (worker, 0.0))
        if last == worker or time.monotonic() - when >= AT_ONCE_S:
            self._kills[ticket] += 1
            self._killed[ticket] = worker, time.monotonic()

    def _act_on_silence(self, since: float, reported: float) -> float:
        status, now = self._pool.status(), time.monotonic()
        if now - since > SAVE_S:
            self.on_danger()
        if status.alive:
            self._alive_s = now
        decision = policy.on_silence(status, now - self._alive_s, self._wait_s)
        if decision is not None:
            raise WorkersLost(decision.reason)
        if now - reported < STALL_S:
            return reported
        at = "; ".join(f"{busy.worker} ({busy.where}) at {busy.tickets[0]}" for busy in status.busy)
        log.warning(
            "nothing came for %.0f s: %d workers alive, %d idle, waiting for %s",
            *(now - since, status.alive, status.idle, at or status.oldest),
        )
        return now

    def _act_on_delay(self) -> None:
        self._checked_s, status = time.monotonic(), self._pool.status()
        silent_s = {name: self._checked_s - at for name, at in self._answered_s.items()}
        if status.leaving > self._leaving:
            self.on_danger()
        self._leaving = status.leaving
        self._crew, said = policy.on_few(self._crew, status.alive, self._checked_s)
        if said:
            log.warning("%s", said)
        for decision in policy.on_delay(status, self._repeated, silent_s):
            (log.warning if decision.action == "replace" else log.info)("%s", decision.reason)
            self._repeat(decision)
            self._repeated.update(decision.tickets)
            self.repeated += len(decision.tickets)
            if decision.action == "replace":
                self._pool.replace(decision.worker)
                self.replaced += 1

    def _repeat(self, decision: policy.Decision) -> None:
        for ticket in decision.tickets:
            self._pool.request(ticket)
