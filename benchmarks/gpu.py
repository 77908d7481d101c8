"""A GPU against the per-task loop on the same device, and the MAML paper's Omniglot run.

    python benchmarks/gpu.py --output FOLDER [--minutes 9] [--data omniglot]

Both with LocalPool: one process, learner and worker on the device, no Ray. First each workload in
three ways, in turns: as a worker computes it (a ticket's tasks in one batch, its update replayed as
a CUDA graph), in one batch without the graph, and task after task, as a plain loop does. Then
recipes/omniglot_maml_5w1s.yaml with a step's 32 tasks in one ticket, until it ends or the minutes
are over: the same command goes on with it. FOLDER/accuracy.png shows its validation against time.
`--device cpu` tries the script out where there is no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from workloads import TICKET, WORKLOADS, Workload

from cluster import run
from cluster.collector import Interrupted
from cluster.config import RunConfig
from cluster.workers.plan import Plan
from cluster.workers.worker import Worker
from metatrain import schema
from metatrain.core import Context, generator_for, to_device
from metatrain.start import prepare

NAMES = ("W1", "W1s", "W2", "W6", "O1")
RECIPE = Path(__file__).parent.parent / "recipes" / "omniglot_maml_5w1s.yaml"


def candidates(workload: Workload, device: torch.device) -> dict[str, Any]:
    recipe = workload.recipe()
    worker = Worker(prepare(recipe), Plan("batched", device.type, 1))
    meta = to_device(prepare(recipe).meta, device)
    worker.load(0, worker.layout.flatten(meta))
    tasks = to_device(
        workload.family.sample(generator_for(0, TICKET, "tasks"), workload.tasks, "train"), device
    )
    context = Context(TICKET, generator_for(0, TICKET, "adaptation"))

    def update(path: Any) -> Any:
        problem = workload.family.bind(workload.model, ("transductive",), path)
        return partial(workload.algorithm.update, problem, meta, tasks, context)

    def waited(compute: Any) -> None:
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize()

    ways = {
        "worker": partial(worker.compute, TICKET),
        "batched": update("batched"),
        "loop": update("reference"),
    }
    for _ in range(3):  # what is built, chosen and recorded on first use
        ways["worker"]()
    return {name: partial(waited, compute) for name, compute in ways.items()}


def speeds(device: torch.device, rounds: int, tasks: int) -> str:
    rows = []
    for name in NAMES:
        workload = WORKLOADS[name]._replace(tasks=tasks if name != "W6" else max(tasks // 4, 1))
        times = measure.in_turns(candidates(workload, device), rounds)
        per_s = {who: workload.tasks / sorted(t.wall_s)[rounds // 2] for who, t in times.items()}
        ratios = [
            measure.ratio(times[who].wall_s, times["loop"].wall_s) for who in ("worker", "batched")
        ]
        rows.append(
            [
                name,
                str(workload.tasks),
                *(f"{v:.4g}" for v in per_s.values()),
                *(f"{r:.1f}" for r in ratios),
            ]
        )
        print(*rows[-1], sep="  ", flush=True)
    header = [
        "",
        "tasks",
        "worker, tasks/s",
        "without the graph",
        "task after task",
        "ratio",
        "without the graph",
    ]
    return measure.table(header, rows)


def learn(folder: Path, device: torch.device, minutes: float, sets: list[str]) -> str:
    gpus = int(device.type == "cuda")
    sets = ["outer.tasks_per_ticket=32", "validation.every_steps=2000", "tracking.uri=none", *sets]
    config = schema.load(RunConfig, RECIPE, [*sets, f"output={folder / 'run'}"])
    config = dataclasses.replace(
        config, workers=dataclasses.replace(config.workers, max=0, gpus=gpus)
    )
    alarm = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    alarm.start()
    started = time.monotonic()
    try:
        _, scores = run.train(config, resume="auto")
        ended = scores[0].line()
    except Interrupted as stopped:
        ended = str(stopped)
    alarm.cancel()
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    draw(rows, config.outer.tasks_per_step, folder / "accuracy.png")
    steps_per_s = [
        row["system/tasks_per_s"] / config.outer.tasks_per_step
        for row in rows
        if "system/tasks_per_s" in row
    ]
    share = sorted(row["system/driver_share"] for row in rows if "system/driver_share" in row)
    return (
        f"{ended}\n\n{rows[-1]['step']} outer steps, {time.monotonic() - started:.0f} s in this "
        "call; "
        f"{sorted(steps_per_s)[len(steps_per_s) // 2]:.1f} steps/s, driver's share of a step "
        f"{share[len(share) // 2]:.2f} (medians)"
    )


def draw(rows: list[dict[str, float]], tasks_per_step: int, path: Path) -> None:
    from matplotlib.figure import Figure

    seconds, shown = 0.0, []
    for row in rows:
        seconds += (
            tasks_per_step / row["system/tasks_per_s"] if "system/tasks_per_s" in row else 0.0
        )
        if "val/accuracy_after" in row:
            shown.append((seconds / 60, 100 * row["val/accuracy_after"]))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*shown, strict=True), marker=".")
    axes.set(
        xlabel="minutes of training",
        ylabel="validation accuracy in %",
        title="MAML, Omniglot 5-way 1-shot",
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9, help="in all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=32)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--set", action="append", default=[], help="of the recipe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, device = time.monotonic(), torch.device(arguments.device)
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = f"{measure.machine()}; {device}\n\n"
    if not (arguments.output / "run").exists():  # once
        text += speeds(device, arguments.rounds, arguments.tasks) + "\n\n"
    left = arguments.minutes - (time.monotonic() - started) / 60
    text += learn(arguments.output, device, left, arguments.set)
    measure.write("gpu", text, arguments.output)


if __name__ == "__main__":
    main()
