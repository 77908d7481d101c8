"""What stored memories and the burn-in are to R2D2, on a T-maze that is longer than sequences.

    python benchmarks/r2d2_ablations.py --seeds 0,1

It prints the return of each variant as a row. The maze has 3 steps, and a sequence 2 that are
learned after 1 of burn-in: the cue is in no sequence that has the decision.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from cluster import run
from cluster.config import RunConfig
from metatrain import schema

VARIANTS = {
    "R2D2": {},
    "without burn-in": {"burn_in": 0},
    "zero memory, burn-in": {"starts": "zero"},
    "zero memory, without burn-in": {"starts": "zero", "burn_in": 0},
}
RECIPE = {
    "name": "t_maze_ablation",
    "family": {"name": "t_maze", "shortest": 3, "longest": 3, "slack": 1, "episodes": 32},
    "model": {
        "name": "mlp",
        "hidden": [],
        "head": {"name": "memory", "cell": "lstm", "hidden": 48},
    },
    "outer": {"tasks_per_step": 1, "tasks_per_ticket": 1, "lr": 0.005},
    "evaluation": {"tasks": 10, "tasks_per_ticket": 10},
    "workers": {"max": 0},
    "tracking": {"uri": "none"},
    "checkpoint": {"every_steps": 10_000},
}
R2D2 = {
    "name": "r2d2",
    "length": 2,
    "burn_in": 1,
    "ahead": 1,
    "batch": 64,
    "capacity": 500,
    "target_steps": 10,
}


def score(variant: str, steps: int, seed: int, folder: Path) -> tuple[float, float]:
    """The return of greedy actions after training, and the processor's seconds."""
    tree = RECIPE | {
        "algorithm": R2D2 | VARIANTS[variant],
        "outer": RECIPE["outer"] | {"steps": steps},
        "seed": seed,
        "output": str(folder / f"{variant}-{seed}"),
    }
    started = time.process_time()
    _, scores = run.train(schema.parse(RunConfig, tree, "the ablation"))
    return scores[0].mean, time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0", help="training seeds, such as 0,1,2")
    parser.add_argument("--steps", type=int, default=300, help="outer steps")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for variant in VARIANTS:
            for seed in map(int, given.seeds.split(",")):
                mean, seconds = score(variant, given.steps, seed, Path(folder))
                row = f"| {variant} | {seed} | {mean:.2f} | {seconds:.0f} |"
                sys.stdout.write(row + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
