"""What running trials together costs: processor time per task of one trial, and of four.

    python benchmarks/sweep_overhead.py [STEPS]

Trials of the demo's recipe that differ in their seed only, one worker each, on a local Ray; one and
four at once take turns, the median over outer steps counts, and the first quarter of a trial's
steps does not. Processor time, unlike seconds, does not grow when processes take turns on a core;
it grows by what they do to each other's caches, and on a virtual machine by what its neighbours do:
compare the measurements of one trial with each other first.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

import yaml

from tuning import search as searches
from tuning import sweep

RECIPE = Path(__file__).parent.parent / "recipes" / "demo.yaml"
AT_ONCE = 3 * (1, 4)


def per_task_ms(folder: Path, trials: int, steps: int) -> float:
    """Milliseconds of processor time per task, the median over trials and outer steps."""
    described = {
        "name": f"{trials}-at-once",
        "recipe": str(RECIPE),
        "set": {
            "workers": {"max": 1, "cpus": 0.25},
            "validation": {"every_steps": steps, "tasks": 2},
            "evaluation.tasks": 2,
            "tracking.uri": "none",
        },
        "space": {"seed": {"grid": list(range(trials))}},
        "search": "grid",
        "budget": {"steps": steps},
        "output": str(folder / "sweep"),
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(described))
    search = searches.load(folder / "sweep.yaml")
    sweep.start(search)
    found = []
    for path in sorted(search.folder.glob("trials/*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found += [row["system/worker_cpu_ms_per_task"] for row in rows if row["step"] > steps // 4]
    return median(found)


def main(steps: int) -> None:
    """Print each measurement, and the ratio of the means."""
    measured: dict[int, list[float]] = {trials: [] for trials in AT_ONCE}
    for trials in AT_ONCE:
        with tempfile.TemporaryDirectory() as folder:
            measured[trials].append(per_task_ms(Path(folder), trials, steps))
        print(
            f"{trials} at once: {measured[trials][-1]:.2f} ms of processor time per task",
            flush=True,
        )
    print(f"ratio: {mean(measured[4]) / mean(measured[1]):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
