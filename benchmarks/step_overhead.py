"""What an outer step costs besides computing, by the number of parameters and of Ray workers.

    python benchmarks/step_overhead.py [--steps 60]

Sinusoid tasks for networks of several widths, one task a ticket and one ticket a worker, so that
there is little to compute. The cost of a step is its time less that of the ticket that took its
worker longest: transport, the driver's bookkeeping, the learner's step. The ratio is to the time of
the same step in process, where there is no transport.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import measure
import torch

from cluster import loop
from cluster.collector import Requests
from cluster.config import Workers
from cluster.pools import ray_pool
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Contribution, Pool
from cluster.pools.ray_connection import connected
from cluster.workers.layout import Layout
from cluster.workers.plan import choose_plan
from metatrain import schema
from metatrain.learner import Learner
from metatrain.recipe import Recipe
from metatrain.start import prepare

WIDTHS = (40, 330, 1000, 2000, 3450)


class Watched(Requests):
    """Knows how long the slowest ticket of a step took."""

    slowest_s = 0.0

    def collect(self, *arguments: Any) -> list[Contribution]:
        found = super().collect(*arguments)
        self.slowest_s = max(c.spent.wall_s for c in found)
        return found


def recipe_of(width: int, workers: int, steps: int) -> Recipe:
    tree: dict[str, Any] = {
        "name": "overhead",
        "family": {"name": "sinusoid"},
        "model": {"name": "mlp", "hidden": [width, width]},
        "algorithm": {"name": "maml", "inner_lr": 0.001, "first_order": True},
        "outer": {
            "steps": steps,
            "tasks_per_step": workers,
            "tasks_per_ticket": 1,
            "lr": 1e-5,
            "optimizer": "SGD",
        },
    }
    return schema.parse(Recipe, tree, "the benchmark")


def costs(recipe: Recipe, pool: Pool) -> tuple[list[float], list[float]]:
    """Milliseconds of each step, and those besides computing, after the first quarter."""
    requests, steps, besides = Watched(pool), [], []

    def note(step: int, metrics: dict[str, float]) -> None:
        steps.append(1000 * recipe.outer.tasks_per_step / metrics["system/tasks_per_s"])
        besides.append(steps[-1] - 1000 * requests.slowest_s)

    hooks = loop.Hooks(note, lambda: None)
    prepared = prepare(recipe)
    learner = Learner(prepared.meta, recipe.outer)
    loop.train(prepared, learner, pool, requests, hooks, save_every=10**9)
    skipped = recipe.outer.steps // 4
    return steps[skipped:], besides[skipped:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with connected(None):
        for width in WIDTHS:
            for workers in (1, 2):
                recipe = recipe_of(width, workers, arguments.steps)
                plan, _ = choose_plan(prepare(recipe), gpus=0, threads=1)
                size = 4 * Layout(prepare(recipe).meta).size / 1e6
                alone, _ = costs(recipe, LocalPool(prepare(recipe), plan))
                pool = ray_pool.RayPool(
                    prepare(recipe), plan, Workers(min=workers, max=workers, cpus=0.5), local=True
                )
                steps, besides = costs(recipe, pool)
                pool.close()
                row = [
                    f"{size:.2f} MB",
                    str(workers),
                    f"{median(steps):.1f} ms",
                    f"{median(besides):.1f} ms",
                ]
                rows.append(
                    [*row, f"{median(alone):.1f} ms", f"{median(steps) / median(alone):.2f}"]
                )
                print(*rows[-1], sep="  ", flush=True)
    header = [
        "parameters",
        "workers",
        "a step",
        "besides computing",
        "the step in process",
        "ratio",
    ]
    text = (
        f"{measure.machine('ray')}; medians of {arguments.steps} outer "
        f"steps\n\n{measure.table(header, rows)}"
    )
    measure.write("step_overhead", text)


if __name__ == "__main__":
    main()
