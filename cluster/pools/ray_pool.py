"""A pool of Ray actors, one Worker each.

    driver -- compute(ticket, version, flat parameters) -> actor   a call a ticket, at most DEPTH
           -- draw(the same ticket of the next step) ---->         done while the actor would wait
           <- wire.Answer --------------------------------

Parameters go out as one float32 numpy array, put into the object store once a version; the actor
copies what it receives, because all actors of a node read the same memory. An actor that dies is
restarted by Ray, its tickets are reported as failures, and it gets work again once it answers.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from cluster import policy
from cluster.config import Workers
from cluster.jobs.job import JOB
from cluster.pools import ray_errors, ray_head, shortage, wire
from cluster.pools.pool import Contribution, Failure, PoolStatus, Snapshot, WorkersLost
from cluster.pools.ray_actor import Actor, Times
from cluster.pools.ray_worker import RayWorker, end
from cluster.workers.layout import Layout
from cluster.workers.plan import Plan
from metatrain import schema
from metatrain.awaiting import awaiting
from metatrain.core import InputError, Ticket
from metatrain.start import Prepared

log = logging.getLogger(__name__)

DEPTH = 2  # tickets under way at one actor: the next is there when one is done
ROOM_S = 5.0  # for a worker to find its place, before the cluster is asked why it has not
AWAY_S = 1.0  # that the driver did something else: what came meanwhile is not late
INLINE_BYTES = 100_000  # Ray sends arguments up to this size along with the call


class RayPool:
    """Implements cluster.pools.pool.Pool."""

    def __init__(
        self,
        prepared: Prepared,
        plan: Plan,
        workers: Workers,
        *,
        local: bool,
        group: PlacementGroup | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the actors and wait for the first `workers.min`.

        local: the cluster is this machine alone, which gets no more room.
        group: a placement group with room for all: it waits for `workers.max`.
        should_stop: whether to wait for no more of them, as nobody will ask them anything.

        Raises InputError if they do not start.
        """
        if local:
            shortage.check_capacity(workers)
        self._layout = Layout(prepared.meta, plan.path)
        placed = {}
        if group is not None:
            workers = dataclasses.replace(workers, min=workers.max)
            placed["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
        self._options = {"num_cpus": workers.cpus, "num_gpus": workers.gpus, **placed}
        shared = JOB in os.environ or sum(node["Alive"] for node in ray.nodes()) > 1
        self._arguments = (schema.dump(prepared.recipe), plan, shared)
        self._name, self._workers, self._placed = prepared.recipe.name, workers, group is not None
        self._shortage = ""  # the newest sentence on who waits for a place
        self._ask_s = 0.0  # when to ask for it again
        self._actors: list[Actor] = []
        # by the reference to its answer: the actor, its ticket, the version of the parameters
        self._under_way: dict[Any, tuple[Actor, Ticket | None, int]] = {}
        self._waiting: deque[Ticket] = deque()
        self._since: dict[Ticket, float] = {}
        self._times = Times()
        self._polled = time.monotonic()
        self._head = ray_head.Head()
        self._version = self._key = -1
        self._parameters: Any = None  # the array or a reference to it
        for i in range(workers.max):
            self._start(Actor(f"worker-{i}", None))
        try:
            with awaiting(f"starting up to {workers.max} workers of {shortage.wanted(workers)}"):
                self._wait_for(workers, should_stop)
        except BaseException:
            self.close()
            raise

    def publish(self, snapshot: Snapshot) -> None:
        flat = self._layout.flatten(snapshot.meta).cpu().numpy()
        self._version, self._key = snapshot.version, snapshot.key
        try:
            self._parameters = flat if flat.nbytes <= INLINE_BYTES else ray.put(flat)
        except RayError as error:
            reason = ray_errors.last_line(error)
            raise WorkersLost(f"Ray does not take the parameters: {reason}") from error

    def request(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        self._since[ticket] = time.monotonic()
        self._dispatch()

    def next(self, timeout_s: float) -> Contribution | Failure | None:
        now = time.monotonic()
        if self._head.answers(now) and now >= self._ask_s:
            self._say_who_waits()
        if now - self._polled > AWAY_S:
            for actor in self._actors:
                actor.since = now
        try:
            if not self._under_way:
                return None
            done, _ = ray.wait(list(self._under_way), num_returns=1, timeout=timeout_s)
        finally:
            self._polled = time.monotonic()
        if done:
            return self._arrived(done[0])
        self._dispatch()  # a worker may be taken for slow now, and its tickets go to another
        return None

    def _arrived(self, reference: Any) -> Contribution | Failure | None:
        actor, ticket, version = self._under_way.pop(reference)
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, RayError):  # such as a full object store
                return self._lost(actor, ticket, error.cause)
            tickets = () if ticket is None else (ticket,)
            return Failure(tickets, actor.name, "error", ray_errors.where(error))
        except RayError as error:
            return self._lost(actor, ticket, error)
        if ticket is None:
            if answer.refusal is not None:
                return Failure((), actor.name, "error", answer.refusal)
            actor.alive, actor.here = True, answer
            self._dispatch()
            return None
        self._since.pop(ticket, None)  # a ticket that was asked twice may be answered twice
        if ticket in self._waiting:  # and nobody needs the second answer
            self._waiting.remove(ticket)
        actor.note(ticket, answer.spent.wall_s, self._times)
        self._dispatch()
        result = wire.unpacked(answer.result, self._layout)
        return Contribution(ticket, version, actor.name, answer.spent, result)

    def status(self) -> PoolStatus:
        oldest = min(self._since, key=self._since.__getitem__, default=None)
        waiting_s = time.monotonic() - self._since[oldest] if oldest else 0.0
        alive, now = self._alive(), time.monotonic()
        busy = tuple(actor.busy(now, self._times) for actor in alive if actor.tickets)
        idle = len(alive) - len(busy)
        return PoolStatus(len(alive), idle, oldest, waiting_s, busy, self._head.leaving(alive))

    def replace(self, worker: str) -> None:
        actor = next(actor for actor in self._actors if actor.name == worker)
        if actor.here is None or actor.replaced is not None:
            return
        on_its_node = NodeAffinitySchedulingStrategy(actor.here.node, soft=False)
        ending = ray.remote(end).options(num_cpus=0, scheduling_strategy=on_its_node)
        # Kept: Ray may drop a task whose result nobody has. The death is reported as any other.
        actor.replaced = ending.remote(actor.here.process)

    def close(self) -> None:
        for actor in self._actors:
            ray.kill(actor.handle)
        self._actors.clear()
        self._under_way.clear()

    def _wait_for(self, workers: Workers, should_stop: Callable[[], bool]) -> None:
        """Wait until enough actors are ready: a cluster may be growing."""
        deadline = time.monotonic() + workers.wait_s
        while self.status().alive < workers.min and not should_stop():
            failure = self.next(timeout_s=1.0)
            if isinstance(failure, Failure):
                if failure.kind == "error":
                    raise InputError(failure.cause)
                log.warning("worker %s could not start: %s", failure.worker, failure.cause)
            if time.monotonic() > deadline:
                there = shortage.resources(ray.cluster_resources())
                raise InputError(
                    f"{self.status().alive} of workers.min = {workers.min} workers of "
                    f"{shortage.wanted(workers)} could start in workers.wait_s = "
                    f"{workers.wait_s:g} s; the cluster has {there}",
                    remedy="ask for less or add nodes",
                )

    def _say_who_waits(self) -> None:
        """Which workers have no place on the cluster, once for each time that this changes."""
        alive = self.status().alive
        if alive == len(self._actors):
            if self._shortage:
                log.info("%d of %d workers started", alive, alive)
            self._shortage, self._ask_s = "", math.inf
            return
        self._ask_s = time.monotonic() + ROOM_S
        try:
            found = "" if self._placed else shortage.waiting(self._workers, alive)
        except Exception as error:  # a cluster that does not say so can be computed on all the same
            log.debug("the cluster does not say who waits: %s", error)
            return
        if found and found != self._shortage:
            log.warning("%s", found)
            self._shortage = found

    def _start(self, actor: Actor) -> None:
        # one that has just ended still has its name
        name = f"{self._name} {actor.name} {uuid.uuid4().hex[:6]}"
        named = ray.remote(RayWorker).options(
            name=name, max_restarts=-1, max_task_retries=0, **self._options
        )
        actor.handle = named.remote(*self._arguments)
        if actor not in self._actors:
            self._actors.append(actor)
        self._await_ready(actor)

    def _await_ready(self, actor: Actor) -> None:
        actor.begin_again()
        self._ask_s = time.monotonic() + ROOM_S
        answers = actor.handle.ready.options(
            max_task_retries=-1
        ).remote()  # waits until a restart is over
        self._under_way[answers] = (actor, None, -1)

    def _lost(self, actor: Actor, ticket: Ticket | None, error: RayError) -> Failure:
        """Report a death once, with all tickets that the actor had."""
        tickets = tuple(actor.tickets)
        actor.tickets.clear()
        for reference, (other, its, _) in list(self._under_way.items()):
            if other is actor and its is not None:
                del self._under_way[reference]
        if ticket is None:
            self._start(actor)  # Ray does not restart this one any more
        elif actor.alive:
            self._await_ready(actor)
        return Failure(tickets, actor.name, "lost", ray_errors.cause(error))

    def _alive(self) -> list[Actor]:
        return [actor for actor in self._actors if actor.alive and actor.replaced is None]

    def _free(self) -> list[Actor]:
        """The actors that may take one of the tickets that wait."""
        now, waiting = time.monotonic(), len(self._waiting)
        alive = self._alive()
        alive = [actor for actor in alive if not self._head.ends(actor.here)] or alive
        paces = [actor.pace(now, self._times) for actor in alive]
        return [
            actor
            for i, actor in enumerate(alive)
            if policy.may_take(paces, i, len(actor.tickets), waiting, DEPTH)
        ]

    def _dispatch(self) -> None:
        while self._waiting:
            free = self._free()
            if not free:
                return
            ticket = self._waiting.popleft()
            kind = (ticket.work, ticket.split, ticket.part)
            # Another one than has it already; the least busy; the one that has drawn these tasks.
            actor = min(
                free, key=lambda a: (ticket in a.tickets, len(a.tickets), kind not in a.drawn)
            )
            ref = actor.handle.compute.remote(ticket, self._key, self._parameters)
            self._under_way[ref] = (actor, ticket, self._version)
            if not actor.tickets:
                actor.since = time.monotonic()
            actor.tickets.append(ticket)
            if ticket.work == "update":
                actor.handle.draw.remote(ticket._replace(step=ticket.step + 1))
                for other in self._actors:
                    other.drawn.discard(kind)
                actor.drawn.add(kind)
