"""A GPU against the per-task loop on the same device, and the MAML paper's Omniglot run.

    python benchmarks/gpu.py --output FOLDER [--minutes 9] [--set family.data=FOLDER]

It needs neither Ray nor MLflow nor an installed ray-metatrain. Import Omniglot first, or name a
copied import with `--set family.data=`. One process computes: learner and worker on the device.

First, each workload in three ways, in turns: as a worker computes it (a ticket's tasks in one
batch, its update replayed as a CUDA graph), in one batch without the graph, and task after task, as
a plain loop does. Second, the kernels and the time of a replay for several sizes of a ticket.
Third, recipes/omniglot_maml_5w1s.yaml with the 32 tasks of a step in one ticket, until it ends or
the minutes are over: the same command resumes it. FOLDER/gpu_speeds_DATE.md has each number as soon
as it is measured, FOLDER/gpu_run_DATE.md the run, FOLDER/accuracy.png its validation against time.
`--device cpu` tries the script out without a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a bare machine has not installed the packages

import measure  # noqa: E402
import torch  # noqa: E402
from workloads import TICKET, WORKLOADS, Workload  # noqa: E402

from cluster import run  # noqa: E402
from cluster.collector import Interrupted  # noqa: E402
from cluster.config import RunConfig  # noqa: E402
from cluster.workers.plan import Plan  # noqa: E402
from cluster.workers.worker import Worker  # noqa: E402
from metatrain import schema  # noqa: E402
from metatrain.core import Context, InputError, generator_for, to_device  # noqa: E402
from metatrain.first_look import check_data  # noqa: E402
from metatrain.start import prepare  # noqa: E402

NAMES = ("W1", "W1s", "W2", "W6", "O1")
SIZES = {"O1": (8, 32, 128), "W1": (8, 32, 128)}
RECIPE = ROOT / "recipes" / "omniglot_maml_5w1s.yaml"
SPEEDS = [
    "",
    "tasks",
    "worker, tasks/s",
    "without the graph",
    "task after task",
    "ratio",
    "without the graph",
]
REPLAYS = ["", "tasks", "kernels", "replay, ms", "tasks/s", "most memory, GB"]


def candidates(workload: Workload, plan: Plan) -> dict[str, Callable[[], None]]:
    """The three ways to compute an update of a workload."""
    worker, device = worker_of(workload, plan), torch.device(plan.device)
    meta = to_device(prepare(workload.recipe()).meta, device)
    tasks = to_device(
        workload.family.sample(generator_for(0, TICKET, "tasks"), workload.tasks, "train"), device
    )
    context = Context(TICKET, generator_for(0, TICKET, "adaptation"))

    def update(path: Any) -> Callable[[], Any]:
        problem = workload.family.bind(workload.model, ("transductive",), path)
        return partial(workload.algorithm.update, problem, meta, tasks, context)

    def in_turn() -> None:
        worker.launch(TICKET)
        worker.draw(TICKET)  # the next one's, while the device computes

    ways = {
        "worker": in_turn,
        "batched": update("batched"),
        "loop": update("reference"),
    }
    return {name: partial(waited, compute, device) for name, compute in ways.items()}


def worker_of(workload: Workload, plan: Plan) -> Worker:
    """A worker that has recorded what it replays."""
    prepared = prepare(workload.recipe())
    worker = Worker(prepared, plan)
    worker.load(0, worker.layout.flatten(to_device(prepared.meta, torch.device(plan.device))))
    for _ in range(3):  # what is built, chosen and recorded on first use
        worker.compute(TICKET)
    return worker


def waited(compute: Callable[[], object], device: torch.device) -> None:
    """Compute, and wait for the device."""
    compute()
    if device.type == "cuda":
        torch.cuda.synchronize()


def speeds(plan: Plan, rounds: int, tasks: int) -> Iterator[list[str]]:
    """Rows of the first table."""
    for name in NAMES:
        workload = WORKLOADS[name]._replace(tasks=tasks if name != "W6" else max(tasks // 4, 1))
        times = measure.in_turns(candidates(workload, plan), rounds)
        per_s = [workload.tasks / sorted(t.wall_s)[rounds // 2] for t in times.values()]
        loop = times["loop"].wall_s
        ratios = [measure.ratio(times[who].wall_s, loop) for who in ("worker", "batched")]
        shown = [*(f"{v:.4g}" for v in per_s), *(f"{r:.1f}" for r in ratios)]
        yield [name, str(workload.tasks), *shown]


def replays(plan: Plan) -> Iterator[list[str]]:
    """Rows of the second table: what the model of docs/performance.md predicts."""
    device = torch.device(plan.device)
    for name, sizes in SIZES.items():
        for tasks in sizes if device.type == "cuda" else (1,):
            workload = WORKLOADS[name]._replace(tasks=tasks)
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            compute = partial(waited, partial(worker_of(workload, plan).compute, TICKET), device)
            seconds = sorted(measure.in_turns({"worker": compute}, 5)["worker"].wall_s)[2]
            busy_ms, kernels = profiled(compute, device)
            memory = torch.cuda.max_memory_reserved() / 1e9 if device.type == "cuda" else 0.0
            shown = [str(kernels), f"{busy_ms:.2f}", f"{tasks / seconds:.4g}", f"{memory:.1f}"]
            yield [name, str(tasks), *shown]


def profiled(compute: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Milliseconds from the first to the last kernel of a call, and the number of kernels."""
    if device.type != "cuda":
        return 0.0, 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        compute()
    found = [e.time_range for e in profile.events() if e.device_type.name == "CUDA"]
    if not found:
        return 0.0, 0
    return (max(e.end for e in found) - min(e.start for e in found)) / 1000, len(found)


def configured(folder: Path, plan: Plan, sets: list[str]) -> RunConfig:
    """The paper's recipe in one process. Raises InputError if its data is not here."""
    sets = ["outer.tasks_per_ticket=32", "validation.every_steps=2000", "tracking.uri=none", *sets]
    config = schema.load(RunConfig, RECIPE, [*sets, f"output={folder / 'run'}"])
    gpus = int(plan.device == "cuda")
    workers = dataclasses.replace(config.workers, max=0, gpus=gpus, compile=plan.compile)
    config = dataclasses.replace(config, workers=workers)
    check_data(prepare(config.recipe()))
    return config


def learn(config: RunConfig, folder: Path, minutes: float) -> str:
    """Train for so many minutes, and say how far and how fast."""
    alarm = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
    alarm.daemon = True  # an error must not hold the device until it rings
    alarm.start()
    started = time.monotonic()
    try:
        _, scores = run.train(config, resume="auto")
        ended = scores[0].line()
    except Interrupted as stopped:
        ended = str(stopped)
    finally:
        alarm.cancel()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    draw(rows, config.outer.tasks_per_step, folder / "accuracy.png")
    timed = [row for row in rows if "system/tasks_per_s" in row]
    if not timed:
        return f"{ended}\n\nno outer step was made"
    steps_per_s = sorted(row["system/tasks_per_s"] / config.outer.tasks_per_step for row in timed)
    validated = [row["val/accuracy_after"] for row in rows if "val/accuracy_after" in row]
    accuracy = f"; last validation {100 * validated[-1]:.2f} %" if validated else ""
    return (
        f"{ended}\n\n{rows[-1]['step']} outer steps, {time.monotonic() - started:.0f} s in this "
        f"call; {steps_per_s[len(timed) // 2]:.1f} steps/s (median){accuracy}"
    )


def draw(rows: list[dict[str, float]], tasks_per_step: int, path: Path) -> None:
    """Show the validation against the minutes of training."""
    from matplotlib.figure import Figure

    seconds, shown = 0.0, []
    for row in rows:
        seconds += tasks_per_step / row.get("system/tasks_per_s", float("inf"))
        if "val/accuracy_after" in row:
            shown.append((seconds / 60, 100 * row["val/accuracy_after"]))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([minute for minute, _ in shown], [accuracy for _, accuracy in shown], marker=".")
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
    parser.add_argument("--compile", action="store_true", help="with workers.compile")
    parser.add_argument("--set", action="append", default=[], help="of the recipe")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started, plan = time.monotonic(), Plan("batched", arguments.device, 1, arguments.compile)
    try:
        config = configured(arguments.output.resolve(), plan, arguments.set)  # first: in seconds
    except InputError as error:
        sys.exit(f"error: {error}")
    parts = [f"{measure.machine()}; {plan}"]
    if not (arguments.output / "run").exists():  # once
        measured = speeds(plan, arguments.rounds, arguments.tasks)
        for header, found in ((SPEEDS, measured), (REPLAYS, replays(plan))):
            parts.append("")
            rows = []
            for row in found:
                print(*row, sep="  ", flush=True)
                rows.append(row)
                parts[-1] = measure.table(header, rows)
                measure.keep("gpu_speeds", "\n\n".join(parts), arguments.output)
    left = arguments.minutes - (time.monotonic() - started) / 60
    learned = learn(config, arguments.output, left) if left > 0 else "no time was left to learn"
    measure.write("gpu_run", f"{parts[0]}\n\n{learned}", arguments.output)


if __name__ == "__main__":
    main()
