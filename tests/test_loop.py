"""The loop against a pool that reorders, delays, loses and fails by script: no Ray, no sleep."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import SINUSOID, config

from cluster import loop, ready
from cluster.collector import Interrupted, Requests
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Busy, Contribution, Failure, PoolStatus, Snapshot, Spent, WorkersLost
from cluster.workers.layout import Layout
from cluster.workers.plan import choose_plan
from metatrain.core import Meta, Ticket, Update
from metatrain.learner import Diverged, Learner
from metatrain.start import prepare

Event = Contribution | Failure | None


class ScriptedPool:
    """Computes on a LocalPool and hands the answers over as `script` arranges them."""

    def __init__(self, recipe: Any, script: Callable[[list[Event]], list[Event]]) -> None:
        self.inner = LocalPool(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
        self.script = script
        self.answers: list[Event] = []
        self.requested: list[Ticket] = []
        self.most_outstanding = 0

    def publish(self, snapshot: Snapshot) -> None:
        self.inner.publish(snapshot)

    def request(self, ticket: Ticket) -> None:
        self.requested.append(ticket)
        self.inner.request(ticket)
        self.answers.append(self.inner.next(0))
        self.most_outstanding = max(self.most_outstanding, len(self.answers))

    def next(self, timeout_s: float) -> Event:
        self.answers = self.script(self.answers)
        return self.answers.pop(0) if self.answers else None

    def status(self) -> PoolStatus:
        return PoolStatus(1, 0, None, 0.0)

    def replace(self, worker: str) -> None: ...

    def close(self) -> None: ...


def run(
    script: Callable[[list[Event]], list[Event]] = lambda answers: answers, **overrides: Any
) -> tuple[torch.Tensor, Requests, ScriptedPool, list[dict[str, float]]]:
    recipe = config(SINUSOID, **overrides).recipe()
    pool, learner = ScriptedPool(recipe, script), Learner(prepare(recipe).meta, recipe.outer)
    requests, rows = Requests(pool), []
    hooks = loop.Hooks(lambda step, metrics: rows.append({"step": step, **metrics}), lambda: None)
    loop.train(prepare(recipe), learner, pool, requests, hooks, save_every=5)
    return Layout(learner.meta()).flatten(learner.meta()), requests, pool, rows


@pytest.fixture(scope="module")
def straight() -> torch.Tensor:
    return run()[0]


def test_the_order_of_answers_changes_nothing(straight: torch.Tensor) -> None:
    assert torch.equal(run(lambda answers: answers[::-1])[0], straight)
    silent_first: list[Event] = [None]
    assert torch.equal(
        run(lambda answers: [silent_first.pop(), *answers] if silent_first else answers)[0],
        straight,
    )


def test_lost_tickets_are_asked_again_and_change_nothing(straight: torch.Tensor) -> None:
    count = 0

    def lose_every_third(answers: list[Event]) -> list[Event]:
        nonlocal count
        count += 1
        first = answers[0]
        if count % 3 == 0 and isinstance(first, Contribution):
            return [Failure((first.ticket,), first.worker, "lost", "ActorDiedError"), *answers[1:]]
        return answers

    params, requests, pool, rows = run(lose_every_third)
    assert torch.equal(params, straight)
    assert requests.lost == len(pool.requested) - 20 * 4 > 20
    assert rows[-1]["system/lost_tickets"] == requests.lost


def test_staleness_keeps_more_steps_under_way_and_reports_how_old_updates_are() -> None:
    _, requests, pool, rows = run(outer__max_staleness=2)
    assert pool.most_outstanding == 3 * 4
    assert max(row["system/staleness"] for row in rows) == 2
    assert requests.dropped == 0


def test_updates_that_are_too_old_are_dropped_and_asked_again(straight: torch.Tensor) -> None:
    """A pool that answers a step's first ticket from the version before it."""
    tampered = set()

    def age(answers: list[Event]) -> list[Event]:
        first = answers[0]
        if (
            isinstance(first, Contribution)
            and first.ticket.part == 0
            and first.ticket.step not in tampered | {0}
        ):
            tampered.add(first.ticket.step)
            return [first._replace(version=first.version - 1), *answers[1:]]
        return answers

    params, requests, _, _ = run(age)
    assert requests.dropped == 19
    assert torch.equal(params, straight)


def test_a_ticket_that_is_answered_twice_counts_once(straight: torch.Tensor) -> None:
    """As by a worker that was taken for lost; of the late answers nothing is kept."""
    count = 0

    def answer_twice(answers: list[Event]) -> list[Event]:
        nonlocal count
        count += 1
        return [answers[0], *answers[1:], answers[0]] if count % 2 and answers else answers

    params, requests, _, rows = run(answer_twice, validation={"every_steps": 1, "tasks": 6})
    assert torch.equal(params, straight)
    assert not requests._arrived
    assert not requests._outstanding
    once = run(validation={"every_steps": 1, "tasks": 6})[3]
    assert [row["val/mse_after"] for row in rows] == [row["val/mse_after"] for row in once]


def test_a_ticket_that_is_lost_once_it_was_answered_is_not_asked_again(
    straight: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    def lose_the_second(answers: list[Event]) -> list[Event]:
        first = answers[0]
        if isinstance(first, Contribution) and len(answers) < 5:
            return [*answers, Failure((first.ticket,), first.worker, "lost", "ActorDiedError")]
        return answers

    params, requests, pool, _ = run(lose_the_second)
    assert torch.equal(params, straight)
    assert "worker local was lost (ActorDiedError)" in caplog.text
    assert requests.lost
    assert len(pool.requested) == 20 * 4


def test_validation_is_reported_at_its_steps_and_at_the_ends() -> None:
    _, _, _, rows = run(validation={"every_steps": 8, "tasks": 6})
    assert [row["step"] for row in rows if "val/mse_after" in row] == [0, 8, 16, 20]
    validated = rows[-1]
    assert {"val/mse_before", "val/mse_after", "val/mse_after_ci95"} <= validated.keys()


def test_validation_does_not_change_what_is_learnt(straight: torch.Tensor) -> None:
    assert torch.equal(run(validation={"every_steps": 3, "tasks": 6})[0], straight)


def test_every_step_reports_what_the_tracking_promises() -> None:
    _, requests, _, rows = run()
    assert len(rows) == 20
    expected = {f"train/{name}_{when}" for name in ("loss", "mse") for when in ("before", "after")}
    expected |= {"learner.gradient_norm", "learner.lr", "step"}
    names = (
        "staleness",
        "tasks_per_s",
        "worker_utilisation",
        "driver_share",
        "lost_tickets",
        "dropped_updates",
    )
    names += ("worker_cpu_ms_per_task", "workers", "repeated_tickets", "replaced_workers")
    names += ("left_out_updates",)
    assert rows[0].keys() == expected | {f"system/{name}" for name in names}
    assert 0 <= rows[5]["system/driver_share"] <= 1
    spent_ms = sum(10 * row["system/worker_cpu_ms_per_task"] for row in rows)  # 10 tasks a step
    assert spent_ms == pytest.approx(1000 * requests.cpu_s)


def test_what_is_collected_says_what_it_cost() -> None:
    tickets = [Ticket("update", "train", 0, part) for part in (0, 1)]
    nothing = Update(Meta({}, {}, {}), 1, {})
    answers = [
        Contribution(ticket, version, "w", Spent(2.0, 1.5), nothing)
        for ticket, version in zip(tickets, (5, 3), strict=True)
    ]
    pool: Any = SimpleNamespace(
        request=lambda _: None,
        next=lambda _: answers.pop(),
        status=lambda: PoolStatus(1, 0, None, 0.0),
    )
    requests = Requests(pool)
    requests.ask(tickets)
    assert [(c.ticket, c.version) for c in requests.collect(tickets)] == [
        (tickets[0], 5),
        (tickets[1], 3),
    ]
    assert (requests.busy_s, requests.cpu_s) == (4.0, 3.0)


def nan_at(
    steps: range | set[int], part: int | None = None
) -> Callable[[list[Event]], list[Event]]:
    """A pool whose updates of these steps are nan, of all tickets or of one."""

    def script(answers: list[Event]) -> list[Event]:
        first = answers[0] if answers else None
        if (
            isinstance(first, Contribution)
            and first.ticket.step in steps
            and part in (None, first.ticket.part)
        ):
            bad = {name: p * float("nan") for name, p in first.result.direction.model.items()}
            update = first.result._replace(direction=first.result.direction._replace(model=bad))
            return [first._replace(result=update), *answers[1:]]
        return answers

    return script


@pytest.mark.parametrize("kind", ["interrupt", "diverge", "lose", "break"])
def test_whatever_ends_a_run_early_leaves_the_last_whole_step_saved(kind: str) -> None:
    recipe = config(SINUSOID).recipe()
    saved, steps = [], []

    def script(answers: list[Event]) -> list[Event]:
        first = answers[0] if answers else None
        if len(steps) == 7 and isinstance(first, Contribution):
            if kind == "lose":
                return [Failure((first.ticket,), "w", "error", "gone")]
            if kind == "break":
                raise OSError("no space left on the device")
        return nan_at(range(7, 20))(answers) if kind == "diverge" else answers

    pool, learner = ScriptedPool(recipe, script), Learner(prepare(recipe).meta, recipe.outer)
    requests = Requests(pool, lambda: kind == "interrupt" and len(steps) == 7)
    hooks = loop.Hooks(
        lambda step, metrics: steps.append(step), lambda: saved.append(learner.version)
    )
    errors = {"interrupt": Interrupted, "diverge": Diverged, "lose": WorkersLost, "break": OSError}
    with pytest.raises(errors[kind]):
        loop.train(prepare(recipe), learner, pool, requests, hooks, save_every=5)
    assert saved == ([5, 10] if kind == "diverge" else [5, 7])


def test_an_update_that_is_not_finite_is_left_out_and_counted(
    straight: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    params, _, _, rows = run(nan_at({3, 4, 9}, part=1))
    assert params.isfinite().all()
    assert not torch.equal(params, straight)
    assert torch.equal(params, run(lambda answers: nan_at({3, 4, 9}, part=1)(answers))[0])
    left = {row["step"]: row["system/left_out_updates"] for row in rows}
    assert {step for step, count in left.items() if count} == {4, 5, 10}
    assert "left out: Ticket(work='update', split='train', step=9, part=1" in caplog.text
    assert "by local" in caplog.text


def test_a_step_without_any_finite_update_changes_nothing_and_three_in_a_row_end_the_run() -> None:
    _, _, _, rows = run(nan_at({6, 7}))
    assert len(rows) == 20
    assert rows[6]["system/left_out_updates"] == rows[7]["system/left_out_updates"] == 4
    with pytest.raises(
        Diverged, match=r"3 outer steps in a row .* step=8, part=3.* by local: lower"
    ):
        run(nan_at({6, 7, 8}))
    with pytest.raises(Diverged, match="last outer step has only updates that are not finite"):
        run(nan_at({19}))
    with pytest.raises(Diverged, match="outer step 0 is not finite"):  # nothing was learned
        run(nan_at({0}))


def test_a_ticket_that_kills_three_workers_ends_the_run_and_is_named() -> None:
    def script(answers: list[Event]) -> list[Event]:
        first = answers[0]
        deadly = isinstance(first, Contribution) and (first.ticket.step, first.ticket.part) == (
            4,
            2,
        )
        return [Failure((first.ticket,), "w", "lost", "gone"), *answers[1:]] if deadly else answers

    with pytest.raises(
        WorkersLost, match=r"^3 workers died .* of Ticket\(.*step=4, part=2.* of seed 0"
    ):
        run(script)


def test_workers_that_die_at_once_one_of_them_after_the_other_with_a_ticket_did_not_die_of_it(
    straight: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ticket of a worker that died is asked of another, whose death is not reported yet."""
    monkeypatch.setattr("cluster.collector.time", SimpleNamespace(monotonic=lambda: 100.0))
    deaths = 0

    def script(answers: list[Event]) -> list[Event]:
        nonlocal deaths
        first = answers[0] if answers else None
        if deaths < 5 and isinstance(first, Contribution) and first.ticket.step == 4:
            deaths += 1
            return [Failure((first.ticket,), f"w{deaths}", "lost", "gone"), *answers[1:]]
        return answers

    assert torch.equal(run(script)[0], straight)
    assert deaths == 5


def test_many_workers_that_die_at_once_are_as_many_losses_and_no_reason_to_stop(
    straight: torch.Tensor,
) -> None:
    deaths = 0

    def script(answers: list[Event]) -> list[Event]:
        """Thirty deaths in a row, without one answer between them."""
        nonlocal deaths
        if deaths == 30 or len(answers) < 4 or not isinstance(answers[0], Contribution):
            return answers
        if answers[0].ticket.step == 2:
            deaths += 1
            return [Failure((), f"w{deaths}", "lost", "gone"), *answers]
        return answers

    assert torch.equal(run(script)[0], straight)
    assert deaths == 30


def test_a_late_ticket_is_asked_again_and_a_hung_worker_replaced(straight: torch.Tensor) -> None:
    """Of a pool that never answers the first request of one ticket."""
    hung: list[Ticket] = []
    replaced: list[str] = []

    class Hanging(ScriptedPool):
        def request(self, ticket: Ticket) -> None:
            if not hung and (ticket.step, ticket.part) == (5, 1):
                hung.append(ticket)
            else:
                super().request(ticket)

        def status(self) -> PoolStatus:
            late = Busy("w", "node 1, process 2", tuple(hung), 60.0, 1.0, False)
            return PoolStatus(2, 1, None, 0.0, (late,) if hung and not replaced else ())

        def replace(self, worker: str) -> None:
            replaced.append(worker)

    recipe = config(SINUSOID).recipe()
    pool, learner = Hanging(recipe, lambda a: a), Learner(prepare(recipe).meta, recipe.outer)
    requests = Requests(pool)
    loop.train(
        prepare(recipe), learner, pool, requests, loop.Hooks(lambda *_: None, lambda: None), 50
    )
    assert torch.equal(Layout(learner.meta()).flatten(learner.meta()), straight)
    assert pool.requested.count(hung[0]) == 1
    assert replaced == ["w"]
    assert (requests.repeated, requests.replaced, requests.lost) == (1, 1, 0)


def test_a_notice_that_a_node_is_about_to_end_saves_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while other nodes answer."""
    monkeypatch.setattr("cluster.collector.POLL_S", 0.0)
    recipe, saved, steps = config(SINUSOID).recipe(), [], []

    class Leaving(ScriptedPool):
        def status(self) -> PoolStatus:
            return PoolStatus(2, 1, None, 0.0, leaving=int(len(steps) >= 7))

    pool, learner = Leaving(recipe, lambda a: a), Learner(prepare(recipe).meta, recipe.outer)
    hooks = loop.Hooks(lambda step, _: steps.append(step), lambda: saved.append(learner.version))
    loop.train(prepare(recipe), learner, pool, Requests(pool), hooks, save_every=50)
    assert saved == [7, 20]


def test_a_run_on_half_its_workers_says_so_and_when_they_are_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cluster.collector.POLL_S", 0.0)
    monkeypatch.setattr("cluster.policy.FEW_S", 0.0)
    recipe, steps = config(SINUSOID).recipe(), []

    class Shrinking(ScriptedPool):
        def status(self) -> PoolStatus:
            return PoolStatus(2 if 7 <= len(steps) < 12 else 4, 1, None, 0.0)

    pool, learner = Shrinking(recipe, lambda a: a), Learner(prepare(recipe).meta, recipe.outer)
    rows: list[dict[str, float]] = []
    hooks = loop.Hooks(
        lambda step, metrics: (steps.append(step), rows.append(metrics)), lambda: None
    )
    loop.train(prepare(recipe), learner, pool, Requests(pool), hooks, save_every=50)
    gone, back = [text for text in caplog.messages if "workers" in text]
    assert gone.startswith("2 of 4 workers have been gone for 0 s")
    assert back == "4 of 4 workers are alive again"
    assert [row["system/workers"] for row in rows] == [4.0] * 7 + [2.0] * 5 + [4.0] * 8


@pytest.mark.parametrize(
    ("workers", "staleness", "told"), [(2, 1, True), (2, 0, False), (0, 1, False)]
)
def test_a_run_that_timing_decides_says_so_at_its_start(
    caplog: pytest.LogCaptureFixture, workers: int, staleness: int, told: bool
) -> None:
    ready.prepare(config(SINUSOID, workers__max=workers, outer__max_staleness=staleness))
    assert ("cannot be reproduced bit for bit" in caplog.text) is told


def test_what_was_learned_is_saved_when_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.collector.SAVE_S", 0.0)
    recipe, saved = config(SINUSOID).recipe(), []
    silent = [False]

    def script(answers: list[Event]) -> list[Event]:
        first = answers[0] if answers else None
        if isinstance(first, Contribution) and first.ticket.step == 7 and not silent[0]:
            silent[0] = True
            return [None, *answers]
        return answers

    pool, learner = ScriptedPool(recipe, script), Learner(prepare(recipe).meta, recipe.outer)
    hooks = loop.Hooks(lambda step, metrics: None, lambda: saved.append(learner.version))
    loop.train(prepare(recipe), learner, pool, Requests(pool), hooks, save_every=50)
    assert saved == [7, 20]


def test_a_pool_without_workers_ends_in_a_sentence() -> None:
    class Empty(ScriptedPool):
        def status(self) -> PoolStatus:
            return PoolStatus(0, 0, Ticket("update", "train", 0, 0), 99.0)

    recipe = config(SINUSOID).recipe()
    requests = Requests(Empty(recipe, lambda answers: []), wait_s=0.0)
    with pytest.raises(WorkersLost, match="no worker has been alive"):
        requests.collect([Ticket("update", "train", 0, 0)])


def test_a_pool_whose_only_worker_is_replaced_has_time_to_start_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long that worker had hung."""
    recipe, ticket, now = config(SINUSOID).recipe(), Ticket("update", "train", 0, 0), [0.0]
    monkeypatch.setattr("cluster.collector.time", SimpleNamespace(monotonic=lambda: now[0]))

    class Restarting(ScriptedPool):
        def next(self, timeout_s: float) -> Event:
            now[0] += 10.0
            return None

        def status(self) -> PoolStatus:
            return PoolStatus(int(now[0] <= 200.0), 0, ticket, 99.0)

    requests = Requests(Restarting(recipe, lambda answers: []), wait_s=60.0)
    with pytest.raises(WorkersLost, match="no worker has been alive for 70 s"):
        requests.collect([ticket])


def test_a_checkpoint_is_written_at_each_interval_and_at_the_end() -> None:
    recipe, saved = config(SINUSOID, outer__steps=5).recipe(), []
    prepared = prepare(recipe)
    learner = Learner(prepared.meta, recipe.outer)
    pool = LocalPool(prepared, choose_plan(prepared, 0, 1)[0])
    hooks = loop.Hooks(lambda step, metrics: None, lambda: saved.append(learner.version))
    loop.train(prepared, learner, pool, Requests(pool), hooks, save_every=2)
    assert saved == [2, 4, 5]
