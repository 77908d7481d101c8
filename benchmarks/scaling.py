"""What workers add: bare processes, no Ray, and Ray workers with their driver, in turns.

    python benchmarks/scaling.py [--steps 6] [--rounds 7]

MAML in second order on Conv4 (5-way 1-shot, 15 queries, 5 steps): 8 tasks an outer step, in 4
tickets. A bare process is a worker that computes its share of the tickets, and nothing else; one
and two are compared before Ray's own processes are there, which cost every process beside them some
percent. The rest is the training loop as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import measure
import torch

from cluster import loop
from cluster.collector import Requests
from cluster.config import Workers
from cluster.pools import ray_pool
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Pool
from cluster.pools.ray_connection import connected
from cluster.workers.plan import Plan, choose_plan
from cluster.workers.worker import Worker
from metatrain import schema
from metatrain.learner import Learner
from metatrain.recipe import Recipe
from metatrain.start import prepare

RECIPE: dict[str, Any] = {
    "name": "scaling",
    "family": {"name": "fewshot", "queries": 15},
    "model": {"name": "conv4"},
    "algorithm": {"name": "maml", "inner_lr": 0.1, "inner_steps": 5},
    "outer": {"steps": 1, "tasks_per_step": 8, "tasks_per_ticket": 2, "lr": 0.001},
}


def bare(recipe: Recipe, plan: Plan, orders: Connection) -> None:
    """A process that computes the tickets it is told, until there are none."""
    worker = Worker(prepare(recipe), plan)
    worker.load(0, worker.layout.flatten(prepare(recipe).meta))
    while tickets := orders.recv():
        for ticket in tickets:
            worker.compute(ticket)
        orders.send(len(tickets))


class Bare:
    """Two processes, of which one, each in turn, or both work.

    One of them may be faster for good, by where its memory lies.
    """

    def __init__(self, recipe: Recipe, plan: Plan, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._tickets = [
            ticket for step in range(steps) for ticket in recipe.setting("update").tickets(step)
        ]
        self._ends = []
        for _ in range(2):
            mine, theirs = context.Pipe()
            context.Process(target=bare, args=(recipe, plan, theirs), daemon=True).start()
            self._ends.append(mine)

    def close(self) -> None:
        for end in self._ends:
            end.send([])

    def __call__(self, processes: int) -> None:
        self._ends.reverse()
        ends = self._ends[:processes]
        for i, end in enumerate(ends):
            end.send(self._tickets[i::processes])
        for end in ends:
            end.recv()


class Training:
    """The training loop, some steps further with each call."""

    def __init__(self, recipe: Recipe, pool: Pool, steps: int) -> None:
        self._recipe, self._pool, self._steps = recipe, pool, steps
        self._learner = Learner(prepare(recipe).meta, recipe.outer)

    def __call__(self) -> None:
        steps = self._learner.version + self._steps
        recipe = dataclasses.replace(
            self._recipe, outer=dataclasses.replace(self._recipe.outer, steps=steps)
        )
        hooks = loop.Hooks(lambda step, metrics: None, lambda: None)
        requests = Requests(self._pool)
        loop.train(prepare(recipe), self._learner, self._pool, requests, hooks, save_every=10**9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6, help="outer steps a round")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recipe = schema.parse(Recipe, RECIPE, "the benchmark")
    plan, _ = choose_plan(prepare(recipe), gpus=0, threads=1)
    processes = Bare(recipe, plan, arguments.steps)
    one, two = partial(processes, 1), partial(processes, 2)
    bare_times = measure.in_turns(
        {"one bare process": one, "two bare processes": two}, arguments.rounds
    )
    with connected(None):
        pools = {
            n: ray_pool.RayPool(prepare(recipe), plan, Workers(min=n, max=n, cpus=0.5), local=True)
            for n in (1, 2)
        }
        candidates = {
            "one bare process": one,
            "no Ray": Training(recipe, LocalPool(prepare(recipe), plan), arguments.steps),
            "one Ray worker": Training(recipe, pools[1], arguments.steps),
            "two Ray workers": Training(recipe, pools[2], arguments.steps),
        }
        times = measure.in_turns(candidates, arguments.rounds)
        for started in (*pools.values(), processes):
            started.close()
    tasks = arguments.steps * recipe.outer.tasks_per_step
    goals = [
        (bare_times, "two bare processes", "one bare process", 1.9),
        (times, "two Ray workers", "one bare process", 1.75),
        (times, "one Ray worker", "no Ray", 0.95),
    ]
    rows = [
        [
            f"{ours}, over {base}",
            f"{measure.ratio(found[ours].wall_s, found[base].wall_s):.2f}",
            f"{goal}",
        ]
        for found, ours, base, goal in goals
    ]
    shown = {f"{who}, before Ray starts": t for who, t in bare_times.items()} | times
    speeds = [
        [who, f"{tasks / sorted(t.wall_s)[arguments.rounds // 2]:.1f}"] for who, t in shown.items()
    ]
    text = (
        f"{measure.machine('ray')}; {plan.path} path; medians of {arguments.rounds} "
        f"rounds of {tasks} tasks\n\n"
    )
    text += (
        measure.table(["", "ratio", "goal"], rows) + "\n\n" + measure.table(["", "tasks/s"], speeds)
    )
    measure.write("scaling", text)


if __name__ == "__main__":
    main()
