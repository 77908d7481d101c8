"""What a slow and a stopped worker cost, on this machine's Ray.

    python benchmarks/slow_worker.py

Tickets take 0.1 s each, by sleeping, so that a machine with few cores measures the policy and not
its load. One of four workers is then slowed tenfold: throughput with cluster/policy.py's rules and
without them, as a share of the undisturbed one. At last one of two workers is stopped for ever.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from itertools import count
from statistics import median
from typing import TYPE_CHECKING, Any

import ray

from cluster import policy
from cluster.collector import Requests
from cluster.config import RunConfig
from cluster.pools.opening import open_pool
from cluster.pools.pool import Snapshot
from cluster.workers.plan import choose_plan
from metatrain import schema
from metatrain.start import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator

TICKETS, TICKET_S, STEPS = 16, 0.1, 15
RECIPE: dict[str, Any] = {
    "name": "slow",
    "family": {"name": "sinusoid"},
    "model": {"name": "mlp"},
    "algorithm": {"name": "maml", "inner_lr": 0.01},
    "outer": {"steps": 1000, "tasks_per_step": TICKETS, "tasks_per_ticket": 1, "lr": 0.001},
    "tracking": {"uri": "none"},
}


def slow_down(worker: Any, by_s: float) -> None:
    """Let an actor's worker sleep after each ticket, as part of its time."""
    compute = type(worker._worker).compute.__get__(worker._worker)

    def slowly(ticket: Any, **how: Any) -> Any:
        result, spent = compute(ticket, **how)
        time.sleep(by_s)
        return result, spent._replace(wall_s=spent.wall_s + by_s)

    worker._worker.compute = slowly


@contextmanager
def workers(number: int) -> Iterator[tuple[Any, Any]]:
    """A pool of so many workers on a Ray of its own, and a function that computes a step."""
    tree = RECIPE | {"workers": {"min": number, "max": number, "cpus": 0.25}}
    config = schema.parse(RunConfig, tree, "slow")
    prepared = prepare(config.recipe())
    setting, steps = prepared.recipe.setting("update"), count()
    with open_pool(config.workers, prepared, choose_plan(prepared, 0, 1)[0]) as pool:
        pool.publish(Snapshot(0, prepared.meta))
        requests = Requests(pool)

        def step() -> float:
            tickets, began = setting.tickets(next(steps)), time.monotonic()
            requests.ask(tickets)
            requests.collect(tickets)
            return time.monotonic() - began

        for _ in range(3):
            step()
        ray.get([a.handle.__ray_call__.remote(slow_down, TICKET_S) for a in pool._actors])
        yield pool, step


def slowed(rules: bool) -> tuple[float, float]:
    """Seconds of a step before and after one of four workers is slowed."""
    late, slow = policy.on_delay, policy.may_take
    if not rules:
        policy.on_delay = lambda *_, **__: []
        policy.may_take = lambda paces, worker, held, waiting, depth: held < depth
    try:
        with workers(4) as (pool, step):
            before = [step() for _ in range(STEPS)]
            ray.get(pool._actors[0].handle.__ray_call__.remote(slow_down, 10 * TICKET_S))
            after = [step() for _ in range(STEPS)]
    finally:
        policy.on_delay, policy.may_take = late, slow
    return sum(before) / STEPS, sum(after) / STEPS


def stopped() -> tuple[float, float, float]:
    """Median seconds of a step, the longest after one of two is stopped, until it is replaced."""
    with workers(2) as (pool, step):
        before = median(step() for _ in range(STEPS))
        victim = pool._actors[0]
        process, began, longest = victim.here.process, time.monotonic(), 0.0
        os.kill(process, signal.SIGSTOP)
        while victim.here.process == process:
            longest = max(longest, step())
        return before, longest, time.monotonic() - began


def main() -> None:
    """Print the three figures."""
    for rules in (True, False):
        before, after = slowed(rules)
        print(
            f"one of 4 slowed tenfold, {'with' if rules else 'without'} the rules: "
            f"{before:.2f} s a step, then {after:.2f}: {before / after:.2f} of the throughput",
            flush=True,
        )
    before, longest, replaced = stopped()
    print(
        f"one of 2 stopped for ever: {before:.2f} s a step, the longest then {longest:.2f} "
        f"({(longest - before) / TICKET_S:.1f} medians of a ticket more); replaced after "
        f"{replaced:.1f} s"
    )


if __name__ == "__main__":
    main()
