"""What follows from lost, silent, slow and hung workers: plain functions, which act on nothing.

    what a pool says, what happened before --> decision and its reason --> collector and pool act

A ticket determines its tasks. It can therefore be asked again of any worker, at any time, and the
first answer counts: another one would be the same.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from cluster.pools.pool import Busy, Failure, PoolStatus
from metatrain.core import Ticket


class Limits(NamedTuple):
    """When a worker is taken for late, hung or slow, in medians of the tickets of a kind."""

    # An idle worker costs nothing. Few tickets take three medians by chance.
    late: float = 3.0
    late_s: float = 0.25  # at least; short tickets take many medians by chance
    # A new process is dearer than an idle one: it is imported and compiled for.
    hung: float = 10.0
    hung_s: float = 10.0  # at least; a disk or a garbage collection takes seconds
    first_s: float = 60.0  # at least, for the first ticket of a process, which compiles
    # More, if no other worker answers: what they share, such as a disk, may hold all of them up.
    alone_s: float = 60.0
    slow: float = 2.0  # faster ones get tickets whenever they have room
    kills: int = 3  # a ticket that was under way when so many workers died is their cause


LIMITS = Limits()
FORGET_S = 30.0  # a slow worker is tried again; whatever slowed it may be over
FEW_S = 60.0  # that half of the workers are gone before that is said; a restart takes less


class Decision(NamedTuple):
    """What to do about a ticket or a worker."""

    action: Literal["again", "replace", "stop"]
    reason: str  # for the log, or of the run's end
    tickets: tuple[Ticket, ...] = ()  # to ask again
    worker: str = ""  # to replace


def on_failure(
    failure: Failure, kills: Mapping[Ticket, int], seed: int, limits: Limits = LIMITS
) -> Decision:
    """Decide about a worker that died, or a computation that raised, which would raise again.

    kills: how many workers died of a ticket, this one included.
    seed: of the run; with it a ticket's tasks can be drawn again.
    """
    first = failure.tickets[0] if failure.tickets else None
    if failure.kind == "error":
        what = f"failed on {first}" if first else "could not start"
        reason = f"worker {failure.worker} {what}: {failure.cause}"
        return Decision("stop", reason)
    if first is not None and kills.get(first, 0) >= limits.kills:
        reason = (
            f"{kills[first]} workers died one after the other of {first} of seed {seed}; the last "
            f"is {failure.worker}: {failure.cause}"
        )
        return Decision("stop", reason)
    asked = "; its tickets are asked again" if failure.tickets else ""
    reason = f"worker {failure.worker} was lost ({failure.cause}){asked}"
    return Decision("again", reason, failure.tickets)


def on_silence(status: PoolStatus, dead_s: float, wait_s: float) -> Decision | None:
    """Decide about a pool that does not answer; None if it may still do so.

    dead_s: how long it has been without a worker that lives.
    wait_s: how long it may be.
    """
    if status.alive or dead_s <= wait_s:
        return None
    waits = f"; {status.oldest} is still outstanding" if status.oldest else ""
    return Decision("stop", f"no worker has been alive for {dead_s:.0f} s{waits}")


class Crew(NamedTuple):
    """How many workers a run has had at most, and since when half of them or more are gone."""

    most: int = 0
    few_since_s: float | None = None
    is_told: bool = False


def on_few(before: Crew, alive: int, now_s: float) -> tuple[Crew, str]:
    """Decide whether to say that half of the workers are gone, or are back: once for each fall.

    alive: workers that live; without any, the run waits or ends, which is said elsewhere.

    Returns what to remember, and the sentence or "".
    """
    crew = before._replace(most=max(before.most, alive))
    if 2 * alive > crew.most:
        back = f"{alive} of {crew.most} workers are alive again" if before.is_told else ""
        return Crew(crew.most), back
    since_s = now_s if before.few_since_s is None else before.few_since_s
    crew = crew._replace(few_since_s=since_s)
    if before.is_told or not alive or now_s - since_s < FEW_S:
        return crew, ""
    gone = f"{crew.most - alive} of {crew.most} workers have been gone for {now_s - since_s:.0f} s"
    return crew._replace(is_told=True), f"{gone}: the others go on, and a step takes longer"


def on_delay(
    status: PoolStatus,
    repeated: Collection[Ticket],
    silent_s: Mapping[str, float],
    limits: Limits = LIMITS,
) -> list[Decision]:
    """Decide about workers that take much longer than others for a ticket of the same kind.

    repeated: tickets that a second worker has got already.
    silent_s: seconds since the last answer of each worker that has answered.
    """
    decisions, idle = [], status.idle
    for busy in status.busy:
        if not busy.median_s:
            continue  # nobody has answered a ticket of this kind
        late_s = max(limits.late * busy.median_s, limits.late_s)
        # Those that wait behind the late one are late, too, and an idle worker has no other work.
        tickets = tuple(ticket for ticket in busy.tickets if ticket not in repeated)
        if busy.since_s >= late_s and tickets and idle > 0:
            reason = f"{_late(busy)}; an idle worker gets its tickets, too"
            decisions.append(Decision("again", reason, tickets))
            idle -= len(tickets)
        hung_s = max(
            limits.hung * busy.median_s, limits.first_s if busy.is_first else limits.hung_s
        )
        others = (silent for worker, silent in silent_s.items() if worker != busy.worker)
        if min(others, default=math.inf) >= busy.since_s:  # nobody else has answered since
            hung_s += limits.alone_s
        if busy.since_s >= hung_s:
            decisions.append(
                Decision("replace", f"{_late(busy)}; its process is replaced", worker=busy.worker)
            )
    return decisions


def may_take(
    paces: Sequence[float],
    worker: int,
    held: int,
    waiting: int,
    depth: int,
    limits: Limits = LIMITS,
) -> bool:
    """Decide whether a worker may take one of the tickets that wait.

    paces: of all workers that live, the time that they take for a ticket, in medians; nan if it is
        not known.
    held: tickets that the worker has.
    depth: tickets that a worker of usual pace has at most.

    A slow one gets a ticket if the others would take as long for all that wait; never a second one.
    """
    pace = paces[worker]
    others = sum(not other >= limits.slow for other in paces)
    if not pace >= limits.slow or not others:
        return held < depth
    return held == 0 and waiting >= pace * others


def pace(recent: Sequence[float], since_s: float, median_s: float) -> float:
    """Return a worker's time for a ticket in medians; nan if it is not known.

    recent: of its last tickets, in medians.
    since_s: how long it has computed its present one.
    median_s: of tickets of that kind; 0 if nobody has answered one.
    """
    known = [sorted(recent)[len(recent) // 2]] if recent else []
    if median_s and since_s >= LIMITS.late_s:
        known.append(since_s / median_s)
    return max(known, default=math.nan)


def _late(busy: Busy) -> str:
    return (
        f"worker {busy.worker} ({busy.where}) has computed {busy.tickets[0]} for "
        f"{busy.since_s:.1f} s, and others take {busy.median_s:.2g} s"
    )
