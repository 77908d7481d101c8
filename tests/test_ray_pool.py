"""Real Ray actors: the same parameters whoever computes, lost workers replaced, refusals in one
sentence.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, SINUSOID, config
from services import free_port, until

from cluster import loop, policy
from cluster.collector import Requests
from cluster.config import RunConfig
from cluster.jobs.job import JOB_CPUS
from cluster.pools import ray_head
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Contribution, Pool, Snapshot, WorkersLost
from cluster.workers.layout import Layout
from cluster.workers.plan import choose_plan
from metatrain.core import InputError, Ticket
from metatrain.learner import Learner
from metatrain.start import prepare

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def ray_pool(
    settings: RunConfig, should_stop: Callable[[], bool] = lambda: False, **workers: Any
) -> Any:
    from cluster.pools.ray_pool import RayPool

    asked = dataclasses.replace(settings.workers, **workers)
    plan, _ = choose_plan(prepare(settings.recipe()), 0, 1)
    return RayPool(prepare(settings.recipe()), plan, asked, local=False, should_stop=should_stop)


ACTORS: list[Any] = []  # of all `shared` pools: starting one takes as long as these tests


def shared(settings: RunConfig, count: int) -> Any:
    """A pool on actors that are there already and become workers of this recipe."""
    import ray

    from cluster.pools.ray_pool import RayPool
    from cluster.pools.ray_worker import RayWorker

    class Shared(RayPool):
        def _start(self, actor: Any) -> None:
            if len(self._actors) == len(ACTORS):
                started = ray.remote(RayWorker).options(num_cpus=0)
                ACTORS.append(started.remote(*self._arguments))
            actor.handle = ACTORS[len(self._actors)]
            again = actor.handle.__ray_call__
            ray.get(again.remote(lambda worker, *given: worker.__init__(*given), *self._arguments))
            self._actors.append(actor)
            self._await_ready(actor)

        def replace(self, worker: str) -> None:
            """Let it be: other tests need it, however long a busy machine holds it up."""

        def close(self) -> None:
            self._actors.clear()
            self._under_way.clear()

    prepared = prepare(settings.recipe())
    workers = dataclasses.replace(settings.workers, min=count, max=count)
    return Shared(prepared, choose_plan(prepared, 0, 1)[0], workers, local=False)


@pytest.fixture(scope="module", autouse=True)
def _end_of_shared_actors(ray_cluster: None) -> Iterator[None]:
    import ray

    yield
    while ACTORS:
        ray.kill(ACTORS.pop())


def train(
    settings: RunConfig, pool: Pool, each_step: Callable[[int], None] = lambda step: None
) -> torch.Tensor:
    recipe = settings.recipe()
    learner = Learner(prepare(recipe).meta, recipe.outer)
    requests = Requests(pool, wait_s=settings.workers.wait_s)
    try:
        loop.train(
            prepare(recipe),
            learner,
            pool,
            requests,
            loop.Hooks(lambda step, _: each_step(step), lambda: None),
            100,
        )
    finally:
        pool.close()
    each_step(-requests.lost - requests.repeated)  # a death may be reported after its ticket came
    return Layout(learner.meta()).flatten(learner.meta())


def local(settings: RunConfig) -> Pool:
    return LocalPool(prepare(settings.recipe()), choose_plan(prepare(settings.recipe()), 0, 1)[0])


def pid_of(actor: Any) -> int:
    import ray

    found: int = ray.get(actor.handle.__ray_call__.remote(lambda self: os.getpid()))
    return found


@pytest.mark.parametrize("case", CASES)
def test_training_gives_the_same_bits_in_process_and_on_three_actors(case: str) -> None:
    settings = config(CASES[case], outer__steps=4)
    expected = train(settings, local(settings))
    assert torch.equal(train(settings, shared(settings, 3)), expected)


@pytest.mark.parametrize("case", ["sinusoid", "maml-conv4-fused", "reptile-conv4", "rl2", "r2d2"])
def test_training_gives_the_same_bits_on_one_actor(case: str) -> None:
    settings = config(CASES[case])
    expected = train(settings, local(settings))
    assert torch.equal(train(settings, shared(settings, 1)), expected)


def test_a_worker_killed_in_mid_ticket_changes_nothing() -> None:
    settings = config(SINUSOID)
    expected = train(settings, local(settings))
    pool = ray_pool(settings, min=2, max=2)
    pids = {actor.name: pid_of(actor) for actor in pool._actors}
    killed: list[str] = []
    seen: list[int] = []

    request = pool.request

    def request_then_kill(ticket: Ticket) -> None:
        if killed or ticket.step < 7:
            request(ticket)
            return
        for pid in pids.values():
            os.kill(pid, signal.SIGSTOP)  # so that nobody has answered when it is killed
        request(ticket)
        killed.extend(actor.name for actor in pool._actors if ticket in actor.tickets)
        for name, pid in pids.items():
            os.kill(pid, signal.SIGKILL if name in killed else signal.SIGCONT)

    pool.request = request_then_kill
    assert torch.equal(train(settings, pool, seen.append), expected)
    assert len(killed) == 1
    assert seen[-1] < 0, "no ticket was lost"


def test_an_answer_that_is_lost_with_its_node_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray
    from ray.exceptions import ObjectReconstructionFailedError

    settings = config(SINUSOID)
    expected = train(settings, local(settings))
    pool = shared(settings, 2)
    get, seen, lost = ray.get, [], []

    def get_or_lose(ref: Any) -> Any:
        if not lost and len(seen) > 5:
            lost.append(ref)
            raise ObjectReconstructionFailedError(ref.hex(), None, "")
        seen.append(ref)
        return get(ref)

    monkeypatch.setattr("cluster.pools.ray_pool.ray.get", get_or_lose)
    losses: list[int] = []
    assert torch.equal(train(settings, pool, losses.append), expected)
    assert losses[-1] < 0


def test_a_killed_worker_comes_back() -> None:
    settings = config(SINUSOID)
    pool = ray_pool(settings, min=2, max=2)
    try:
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        before = [pid_of(actor) for actor in pool._actors]
        requests = Requests(pool)
        step = 0
        while requests.lost == 0 or pool.status().alive < 2:
            if step == 0:
                os.kill(before[0], signal.SIGSTOP)  # so that it has tickets when it is killed
            tickets = settings.recipe().setting("update").tickets(step)
            requests.ask(tickets)
            if step == 0:
                os.kill(before[0], signal.SIGKILL)
            requests.collect(tickets)
            step += 1
        after = [pid_of(actor) for actor in pool._actors]
        assert after[0] != before[0]
        assert after[1] == before[1]
    finally:
        pool.close()


def test_workers_do_not_write_to_the_parameters_they_share() -> None:
    """The zero-copy trap: torch writes through read-only numpy arrays, which all workers of a node
    read.
    """
    import ray

    settings = config(GLYPHS, model__filters=64)  # more than Ray would send along with the call
    pool = shared(settings, 2)
    try:
        meta = prepare(settings.recipe()).meta
        pool.publish(Snapshot(0, meta))
        sent = pool._parameters
        before = ray.get(sent).copy()
        assert before.nbytes > 100_000
        requests = Requests(pool)
        tickets = settings.recipe().setting("update").tickets(0)
        requests.ask(tickets)
        requests.collect(tickets)

        def scribble(worker: Any) -> None:
            worker._worker._buffer.add_(1)  # the worst a worker could do to its own parameters

        ray.get(pool._actors[0].handle.__ray_call__.remote(scribble))
        assert (ray.get(sent) == before).all()
        seen = ray.get(
            pool._actors[1].handle.__ray_call__.remote(
                lambda worker: worker._worker._buffer.numpy().copy()
            )
        )
        assert (seen == before).all()
    finally:
        pool.close()


def test_a_worker_is_lean() -> None:
    """It has computed updates and scores of images, and imported neither torchvision nor MLflow nor
    matplotlib.
    """
    import ray

    settings = config(GLYPHS)
    pool = shared(settings, 1)
    try:
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        requests = Requests(pool)
        tickets = [Ticket("update", "train", 0, 0), Ticket("score", "test", 0, 0)]
        requests.ask(tickets)
        requests.collect(tickets)

        def imported(worker: Any) -> set[str]:
            import sys

            return {name.partition(".")[0] for name in sys.modules}

        found = ray.get(pool._actors[0].handle.__ray_call__.remote(imported))
        assert "torch" in found
        assert not found & {"torchvision", "mlflow", "matplotlib", "optuna"}
    finally:
        pool.close()


def test_the_next_tasks_are_drawn_while_a_worker_waits() -> None:
    import ray

    settings = config(SINUSOID)
    pool = shared(settings, 2)
    try:
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        requests = Requests(pool)
        tickets = settings.recipe().setting("update").tickets(0)
        requests.ask(tickets)
        requests.collect(tickets)
        drawn = {
            ticket
            for actor in pool._actors
            for ticket in ray.get(
                actor.handle.__ray_call__.remote(lambda worker: list(worker._worker._drawn))
            )
        }
        assert drawn == set(settings.recipe().setting("update").tickets(1))
    finally:
        pool.close()


def test_an_error_in_a_worker_ends_the_run_with_its_cause() -> None:
    settings = config(SINUSOID)
    pool = shared(settings, 1)
    try:
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        requests = Requests(pool)
        impossible = Ticket("update", "train", 0, 99)  # beyond the step's tasks
        requests.ask([impossible])
        with pytest.raises(
            WorkersLost, match=r"worker worker-0 failed on Ticket\(.*part=99.*\): .*negative"
        ):
            requests.collect([impossible])
    finally:
        pool.close()


def test_a_ticket_that_was_asked_twice_is_answered_twice() -> None:
    settings = config(SINUSOID)
    pool = shared(settings, 2)
    try:
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        ticket = Ticket("update", "train", 0, 0)
        for _ in range(2):
            pool.request(ticket)
        answers = []
        while len(answers) < 2:
            got = pool.next(1.0)
            answers += [got] if isinstance(got, Contribution) else []
        assert [answer.ticket for answer in answers] == [ticket, ticket]
        assert pool.status().oldest is None
        here, there = (pool._layout.flatten(answer.result.direction) for answer in answers)
        assert torch.equal(here, there)
    finally:
        pool.close()


def test_a_worker_that_cannot_follow_refuses_with_the_reason() -> None:
    from cluster.config import Workers
    from cluster.pools.ray_pool import RayPool

    recipe = config(SINUSOID).recipe()
    plan = choose_plan(prepare(recipe), 0, 1)[0]._replace(device="cuda")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match=r"workers.gpus asks for a GPU, but torch sees none"):
        RayPool(prepare(recipe), plan, Workers(wait_s=600), local=False)


def test_nobody_waits_for_workers_whom_nobody_will_ask() -> None:
    pool = ray_pool(config(SINUSOID), lambda: True, min=2, max=2, cpus=0.1, wait_s=1e6)
    assert pool.status().alive == 0  # they are only starting
    pool.close()


def test_in_a_placement_group_all_workers_start_on_what_it_has_reserved() -> None:
    import ray
    from ray.util import placement_group, remove_placement_group

    from cluster.config import Workers
    from cluster.pools.ray_pool import RayPool

    settings = config(SINUSOID)
    expected = train(settings, local(settings))
    each = {"CPU": 0.5, "GPU": 0.5}
    group = placement_group([each, each])
    others = placement_group([{"CPU": 3}])
    try:
        ray.get([group.ready(), others.ready()])
        until(lambda: ray.available_resources().get("GPU", 0) == 0)  # nothing else is left
        plan, _ = choose_plan(prepare(settings.recipe()), 0, 1)
        pool = RayPool(
            prepare(settings.recipe()),
            plan,
            Workers(min=1, max=2, cpus=0.5, gpus=0.5, wait_s=600),
            local=False,
            group=group,
        )
        assert pool.status().alive == 2  # its size is not elastic there
        of_each = [
            ray.get(
                a.handle.__ray_call__.remote(
                    lambda _: ray.get_runtime_context().get_placement_group_id()
                )
            )
            for a in pool._actors
        ]
        assert of_each == 2 * [group.id.hex()]
        assert torch.equal(train(settings, pool), expected)
    finally:
        remove_placement_group(group)
        remove_placement_group(others)


@pytest.mark.parametrize(("local_cluster", "wait_s"), [(True, 1e6), (False, 1.0)])
def test_more_than_the_cluster_has_ends_in_one_sentence(local_cluster: bool, wait_s: float) -> None:
    from cluster.config import Workers
    from cluster.pools.ray_pool import RayPool

    recipe = config(SINUSOID).recipe()
    asked = Workers(min=3, max=3, cpus=2, wait_s=wait_s)
    with pytest.raises(
        InputError, match=r"workers.min = 3 .*2 CPUs and 0 GPUs.* 4 CPUs and 1 GPUs"
    ):
        RayPool(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0], asked, local=local_cluster)


def test_fewer_than_max_workers_do() -> None:
    settings = config(SINUSOID, outer__steps=3)
    pool = ray_pool(settings, min=1, max=3, cpus=2.0)  # two of three fit into four CPUs
    assert train(settings, pool).isfinite().all()


def test_scores_travel_like_updates() -> None:
    settings = config(GLYPHS, evaluation__norm=["transductive", "support+1"])
    tickets = [Ticket("score", "test", 0, part) for part in range(3)]
    results = []
    for pool in (local(settings), shared(settings, 2)):
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        requests = Requests(pool)
        requests.ask(tickets)
        results.append(requests.collect(tickets))
        pool.close()
    for here, there in zip(*results, strict=True):
        assert isinstance(there, Contribution)
        assert here.result.steps == there.result.steps
        assert [*here.result.curves] == [*there.result.curves] == ["transductive", "support+1"]
        pairs = [
            (here.result.baselines, there.result.baselines),
            *((here.result.curves[norm], found) for norm, found in there.result.curves.items()),
            *((here.result.pooled[norm], found) for norm, found in there.result.pooled.items()),
        ]
        for mine, other in pairs:
            assert mine.keys() == other.keys()
            assert all(torch.equal(values, other[name]) for name, values in mine.items())


def test_who_waits_for_a_place_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Holder:
        pass

    caplog.set_level("INFO")
    monkeypatch.setenv(JOB_CPUS, "1")
    monkeypatch.setattr("cluster.pools.ray_pool.ROOM_S", 0.5)
    holder = ray.remote(num_cpus=3)(Holder).remote()
    ray.get(holder.__ray_ready__.remote())
    pool = ray_pool(config(SINUSOID), min=1, max=2)
    told = (
        "1 of 2 workers started; 1 waits for a CPU, which the driver has: "
        "--driver-cpus 0 leaves it to workers"
    )
    until(lambda: pool.next(0.2) is None and told in caplog.messages)
    ray.kill(holder)
    until(lambda: pool.next(0.2) is None and "2 of 2 workers started" in caplog.messages)
    assert caplog.messages.count(told) == 1
    try:
        other = ray_pool(config(SINUSOID), min=1, max=2)  # of the same name, at the same time
        named = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
        assert sum(name.startswith("sinusoid worker-") for name in named) == 4
        other.close()
    finally:
        pool.close()
    monkeypatch.delenv(JOB_CPUS)
    gpus: dict[str, Any] = {"min": 2, "max": 3, "cpus": 0.0, "gpus": 1.0}
    told = " of 3 workers started; 2 wait for a GPU each; 0 of the cluster's 1 GPUs are free"
    ray_pool(config(SINUSOID), lambda: told in caplog.text, **gpus).close()
    with pytest.raises(
        InputError, match=r"\d of workers\.min = 2 workers of 0 CPUs and 1 GPUs could start"
    ):
        ray_pool(config(SINUSOID), wait_s=0.1, **gpus)


def answered(settings: RunConfig, requests: Requests, steps: range) -> Counter[str]:
    """How many tickets of these steps each worker answered first."""
    who: Counter[str] = Counter()
    for step in steps:
        tickets = settings.recipe().setting("update").tickets(step)
        requests.ask(tickets)
        who.update(contribution.worker for contribution in requests.collect(tickets))
    return who


def test_all_workers_killed_at_once_with_their_tickets_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # All have the tickets that they have room for: none is asked of one whose death is not known.
    monkeypatch.setattr(policy.may_take, "__defaults__", (policy.Limits(slow=math.inf),))
    settings = config(SINUSOID, outer__tasks_per_step=24, outer__tasks_per_ticket=1)
    expected = train(settings, local(settings))
    pool = ray_pool(settings, min=12, max=12, cpus=0.3)
    pids = [actor.here.process for actor in pool._actors]
    request, seen = pool.request, []

    def request_then_kill(ticket: Ticket) -> None:
        if (ticket.step, ticket.part) == (7, 0):
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)  # so that nobody has answered when it is killed
        request(ticket)
        if (ticket.step, ticket.part) == (7, 23):
            while pids:
                os.kill(pids.pop(), signal.SIGKILL)

    pool.request = request_then_kill
    assert torch.equal(train(settings, pool, seen.append), expected)
    assert not pids
    assert seen[-1] <= -12


def test_a_stopped_worker_is_replaced_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGSTOP: it neither answers nor dies."""
    settings = config(SINUSOID)
    meta, setting = prepare(settings.recipe()).meta, settings.recipe().setting("update")
    pool, here = ray_pool(settings, min=2, max=2), local(settings)
    try:
        for each in (pool, here):
            each.publish(Snapshot(0, meta))
        requests, expected = Requests(pool), Requests(here)
        victim = pool._actors[0]
        process, step = victim.here.process, 0
        before: int | None = None  # tickets that were repeated when the victim was stopped
        while victim.here.process == process:
            tickets = setting.tickets(step)
            requests.ask(tickets)
            expected.ask(tickets)
            if step >= 7 and victim.tickets and not victim.is_first and before is None:
                os.kill(process, signal.SIGSTOP)
                before = requests.repeated
            limits = policy.LIMITS  # by shorter ones a busy machine's other worker hangs, too
            if before is not None and requests.repeated > before and not requests.replaced:
                limits = policy.Limits(hung_s=1.0)  # the other one has answered since
            monkeypatch.setattr(policy.on_delay, "__defaults__", (limits,))
            pairs = zip(requests.collect(tickets), expected.collect(tickets), strict=True)
            for there, mine in pairs:
                one, other = (pool._layout.flatten(c.result.direction) for c in (there, mine))
                assert torch.equal(one, other)
            step += 1
        assert requests.repeated >= 1
        assert requests.replaced == 1
        assert f", process {process}) has computed Ticket(" in caplog.text
    finally:
        pool.close()


def test_a_slow_worker_gets_no_tickets_that_others_answer_sooner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of three is slowed twentyfold, and each says that it takes what it is slowed by."""
    import ray

    settings = config(SINUSOID, outer__tasks_per_step=12, outer__tasks_per_ticket=1)
    pool = ray_pool(settings, min=3, max=3, cpus=1.0)

    def slow_down(worker: Any, by_s: float) -> None:
        compute = type(worker._worker).compute.__get__(worker._worker)

        def slowly(ticket: Ticket, **how: Any) -> Any:
            result, spent = compute(ticket, **how)
            time.sleep(by_s)
            return result, spent._replace(wall_s=by_s)

        worker._worker.compute = slowly

    try:
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        requests = Requests(pool)
        ray.get([a.handle.__ray_call__.remote(slow_down, 0.1) for a in pool._actors])
        who, step = Counter[str](), 0
        while len(who) < 3:
            who += answered(settings, requests, range(step, step + 1))
            step += 1
        ray.get(pool._actors[0].handle.__ray_call__.remote(slow_down, 2.0))
        while not policy.pace(pool._actors[0].recent, 0.0, 0.0) >= policy.LIMITS.slow:
            answered(settings, requests, range(step, step + 1))  # until that is known
            step += 1
        pace = policy.pace  # a busy machine makes each a slow one at its present ticket
        monkeypatch.setattr(policy, "pace", lambda recent, *present: pace(recent, 0.0, 0.0))
        assert answered(settings, requests, range(step, step + 4))["worker-0"] <= 2
        assert requests.repeated
        assert requests.lost == requests.replaced == 0
    finally:
        pool.close()


def test_a_ticket_that_waits_for_a_second_worker_is_forgotten_once_it_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    settings = config(SINUSOID, outer__tasks_per_step=3, outer__tasks_per_ticket=1)
    pool, wait = shared(settings, 1), ray.wait
    # Of two answers that are there, Ray gives any: here the one that was asked first.
    monkeypatch.setattr(ray, "wait", lambda asked, **how: wait(asked[:1], **how))
    try:
        pool.publish(Snapshot(0, prepare(settings.recipe()).meta))
        first, second, _ = tickets = settings.recipe().setting("update").tickets(0)
        for ticket in (*tickets, second, first):  # two are under way, and the rest waits
            pool.request(ticket)
        answers: list[Any] = []
        until(lambda: answers.append(pool.next(0.2)) or len(list(filter(None, answers))) == 3)
        assert [answer.ticket for answer in filter(None, answers)] == list(tickets)
        assert not pool._waiting
        assert not pool._under_way
    finally:
        pool.close()


def test_a_head_that_is_gone_ends_the_run_in_a_sentence_and_one_that_is_back_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray would end this process a minute later, without a word."""
    now = 1000.0
    monkeypatch.setattr(ray_head, "time", SimpleNamespace(monotonic=lambda: now))
    head, port = ray_head.Head(), free_port()
    real = head._address
    assert head.answers(now + ray_head.CHECK_S)
    head._address = ("127.0.0.1", port)
    assert not head.answers(now + 2 * ray_head.CHECK_S)
    assert not head.answers(now + 2 * ray_head.CHECK_S)  # asked just before
    head._address = real
    assert head.answers(now + 3 * ray_head.CHECK_S)
    head._address = ("127.0.0.1", port)
    with pytest.raises(WorkersLost, match=f"head of the Ray cluster at 127.0.0.1:{port} has not"):
        head.answers(now + 4 * ray_head.CHECK_S + ray_head.GONE_S)


def test_a_node_that_is_about_to_end_gets_no_tickets_if_others_do_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ray._private import state

    pool = shared(config(SINUSOID), 2)
    try:
        until(lambda: pool.next(0.2) is None and len(pool._alive()) == 2)
        leaving, staying = pool._actors
        leaving.here = leaving.here._replace(node="ab" * 28)  # as if on a node of its own
        monkeypatch.setattr(state.state, "get_draining_nodes", lambda: {leaving.here.node: 0})
        pool._head.answers(time.monotonic() + 2 * ray_head.DRAIN_S)
        assert "node ababab is about to end: it gets no new tickets" in caplog.text
        assert pool.status().leaving == 1
        assert pool._free() == [staying]
        staying.alive = False
        assert pool._free() == [leaving]  # better than nobody
        staying.alive = True
    finally:
        pool.close()
