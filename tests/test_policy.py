"""What is decided of lost, silent, slow and hung workers: tables, without a pool."""

from __future__ import annotations

import math

import pytest

from cluster import policy
from cluster.pools.pool import Busy, Failure, PoolStatus
from metatrain.core import Ticket

ONE, TWO, THREE = (Ticket("update", "train", 7, part) for part in range(3))
LATE, HUNG, ALONE = policy.LIMITS.late, policy.LIMITS.hung, policy.LIMITS.alone_s


def status(*busy: Busy, idle: int = 0) -> PoolStatus:
    return PoolStatus(len(busy) + idle, idle, ONE, 0.0, busy)


def busy(since_s: float, *tickets: Ticket, median_s: float = 2.0, is_first: bool = False) -> Busy:
    return Busy("w", "node 1, process 2", tickets or (ONE,), since_s, median_s, is_first)


@pytest.mark.parametrize(
    ("failure", "kills", "action", "says"),
    [
        (Failure((ONE, TWO), "w", "lost", "killed"), {ONE: 1}, "again", "w was lost (killed); its"),
        (Failure((), "w", "lost", "killed"), {}, "again", "w was lost (killed)"),
        (Failure((ONE, TWO), "w", "lost", "killed"), {TWO: 3}, "again", ""),
        (Failure((ONE,), "w", "lost", "killed"), {ONE: 2}, "again", ""),
        (Failure((ONE,), "w", "lost", "killed"), {ONE: 3}, "stop", f"of {ONE} of seed 5"),
        (Failure((ONE,), "w", "error", "no such file"), {}, "stop", f"w failed on {ONE}: no such"),
        (Failure((), "w", "error", "no GPU"), {}, "stop", "w could not start: no GPU"),
    ],
)
def test_a_lost_workers_tickets_are_asked_again_unless_one_kills(
    failure: Failure, kills: dict[Ticket, int], action: str, says: str
) -> None:
    decision = policy.on_failure(failure, kills, seed=5)
    assert decision.action == action
    assert decision.tickets == (failure.tickets if action == "again" else ())
    assert says in decision.reason


def test_only_a_pool_without_a_living_worker_is_given_up() -> None:
    nobody = PoolStatus(0, 0, ONE, 99.0)
    assert policy.on_silence(nobody, 60.0, wait_s=60.0) is None
    stop = policy.on_silence(nobody, 61.0, wait_s=60.0)
    assert stop is not None
    assert "no worker has been alive for 61 s" in stop.reason
    assert policy.on_silence(status(busy(999.0)), 999.0, wait_s=60.0) is None


@pytest.mark.parametrize(
    ("busy_", "idle", "repeated", "other_s", "expected"),
    [
        (busy(2 * LATE - 0.1), 1, (), 0.0, []),
        (busy(2 * LATE), 0, (), 0.0, []),  # nobody is idle
        (busy(2 * LATE), 1, (), 0.0, [("again", (ONE,))]),
        (busy(2 * LATE), 1, (ONE,), 0.0, []),
        (busy(2 * LATE, ONE, TWO), 1, (), 0.0, [("again", (ONE, TWO))]),  # it waits behind it
        (busy(2 * LATE, ONE, TWO), 1, (ONE,), 0.0, [("again", (TWO,))]),
        (busy(2 * HUNG), 0, (), 0.0, [("replace", ())]),
        (busy(2 * HUNG), 0, (), 2 * HUNG, []),  # nobody else has answered either
        (busy(2 * HUNG), 0, (), None, []),  # there is nobody else
        (busy(2 * HUNG + ALONE - 0.1), 0, (), 999.0, []),
        (busy(2 * HUNG + ALONE), 0, (), 999.0, [("replace", ())]),
        (busy(2 * HUNG + ALONE), 0, (), None, [("replace", ())]),
        (busy(policy.LIMITS.first_s + 9, is_first=True), 0, (), None, []),
        (busy(policy.LIMITS.first_s + ALONE, is_first=True), 0, (), None, [("replace", ())]),
        (busy(2 * HUNG, is_first=True), 0, (), 0.0, []),  # it compiles
        (busy(policy.LIMITS.first_s, is_first=True), 0, (), 0.0, [("replace", ())]),
        (busy(2 * HUNG), 1, (), 0.0, [("again", (ONE,)), ("replace", ())]),
        (busy(99.0, median_s=0.0), 1, (), 0.0, []),  # nothing is known of such tickets
        (busy(0.2, median_s=0.001), 1, (), 0.0, []),  # short ones are late by chance
        (busy(0.3, median_s=0.001), 1, (), 0.0, [("again", (ONE,))]),
    ],
)
def test_late_tickets_go_to_idle_workers_too_and_hung_workers_are_replaced(
    busy_: Busy,
    idle: int,
    repeated: tuple[Ticket, ...],
    other_s: float | None,
    expected: list[tuple[str, tuple[Ticket, ...]]],
) -> None:
    # Its own last answer, just before its present ticket, says nothing of that one.
    silent_s = {"w": 0.0} | ({} if other_s is None else {"other": other_s})
    decisions = policy.on_delay(status(busy_, idle=idle), repeated, silent_s)
    assert [(decision.action, decision.tickets) for decision in decisions] == expected
    for decision in decisions:
        assert "worker w (node 1, process 2) has computed Ticket(" in decision.reason
        assert decision.worker == ("w" if decision.action == "replace" else "")


def test_an_idle_worker_gets_the_tickets_of_one_late_worker() -> None:
    both = status(busy(2 * LATE, ONE), busy(2 * LATE, TWO), idle=1)
    assert [decision.tickets for decision in policy.on_delay(both, (), {})] == [(ONE,)]


@pytest.mark.parametrize(
    ("paces", "held", "waiting", "may"),
    [
        ([1.0, 1.0], 0, 1, True),
        ([1.0, 1.0], 1, 1, True),  # the next is there when one is done
        ([1.0, 1.0], 2, 1, False),
        ([math.nan, 1.0], 1, 1, True),  # not known yet
        ([10.0, 1.0, 1.0, 1.0], 0, 29, False),  # the others are done with all before
        ([10.0, 1.0, 1.0, 1.0], 0, 30, True),
        ([10.0, 1.0, 1.0, 1.0], 1, 99, False),  # never a second one
        ([10.0, 10.0], 0, 1, True),  # there is no faster one
        ([10.0, math.nan], 0, 5, False),
    ],
)
def test_a_slow_worker_gets_what_it_answers_as_soon_as_the_others(
    paces: list[float], held: int, waiting: int, may: bool
) -> None:
    assert policy.may_take(paces, 0, held, waiting, depth=2) is may


def test_a_pace_is_of_the_last_tickets_and_of_the_present_one() -> None:
    assert math.isnan(policy.pace([], 0.0, 0.0))
    assert policy.pace([1.0, 9.0, 1.0], 0.0, 0.0) == 1.0  # once is chance
    assert policy.pace([1.0], 8.0, 2.0) == 4.0
    assert policy.pace([5.0], 8.0, 2.0) == 5.0
    assert policy.pace([], 8.0, 2.0) == 4.0
    assert math.isnan(policy.pace([], 0.1, 0.001))  # too short to tell


@pytest.mark.parametrize(
    ("alive", "said"),
    [
        ([4] * 9, {}),
        ([2] * 9, {}),  # it never had more
        ([4, 3, 3, 3, 3, 3, 3, 3, 3], {}),
        ([4, 2, 4, 2, 4, 2, 4, 2, 4], {}),  # each is soon back
        ([4, 2, 2, 2, 2, 2, 2, 2, 2], {4: "2 of 4 workers have been gone for 60 s"}),
        ([4, 1, 2, 1, 1, 2, 2, 2, 2], {4: "3 of 4"}),
        ([4, 0, 0, 0, 0, 0, 1, 1, 1], {6: "3 of 4 workers have been gone for 100 s"}),
        ([1, 4, 2, 2, 2, 2, 3, 4, 4], {5: "2 of 4", 6: "3 of 4 workers are alive again"}),
        ([4, 2, 2, 2, 2, 3, 2, 2, 2], {4: "2 of 4", 5: "3 of 4 workers are alive again"}),
    ],
)
def test_half_of_the_workers_gone_for_a_minute_is_said_once_for_each_fall(
    alive: list[int], said: dict[int, str]
) -> None:
    crew, found = policy.Crew(), {}
    for i, count in enumerate(alive):  # each 20 seconds
        crew, sentence = policy.on_few(crew, count, 20.0 * i)
        if sentence:
            found[i] = sentence
    assert found.keys() == said.keys()
    assert all(part in found[i] for i, part in said.items())
