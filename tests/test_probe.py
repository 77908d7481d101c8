"""Before it hurts: an estimate of memory and time, a sentence where memory is short, a trace of
where time goes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import GLYPHS, SINUSOID, config
from services import command

from cluster import dry_run
from cluster.config import RunConfig
from metatrain import schema
from metatrain.start import prepare

LINUX = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="memory is read from Linux's /proc"
)
CONV4 = GLYPHS | {
    "model": {"name": "conv4", "filters": 32},
    "algorithm": {"name": "maml", "inner_lr": 0.1},
}
WIDE = SINUSOID | {"model": {"name": "mlp", "hidden": [1024, 1024]}}


def write(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(tree))
    return str(path)


def estimated(settings: RunConfig) -> dry_run.Estimate:
    return dry_run.estimate(settings, prepare(settings.recipe()))


def test_a_dry_run_says_what_is_needed_and_writes_nothing(tmp_path: Path) -> None:
    further = "evaluations={ways3: {tasks: 7, family: {ways: 3}}}"
    done = command("train", write(tmp_path / "r.yaml", GLYPHS), "--dry-run", "--set", further)
    assert done.returncode == 0, done.stderr
    assert "compute path: reference: " in done.stdout
    assert re.search(r"a ticket of 2 tasks: [\d.e-]+ s, \d+\.\d\d GB a worker\n", done.stdout)
    assert re.search(r"an outer step of 5 tasks on 1 worker: [\d.e-]+ s\n", done.stdout)
    assert re.search(
        r"the run, 20 outer steps and 37 tasks of evaluation: [\d.]+ minutes\n", done.stdout
    )
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml"}


def test_bad_input_is_refused_there_too(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", GLYPHS)
    done = command("train", recipe, "--dry-run", "--set", "family.ways=5000")
    assert done.returncode == 2
    assert "lower family.ways" in done.stderr
    done = command("train", recipe, "--profile", str(tmp_path / "no" / "trace.json"))
    assert done.returncode == 2
    assert "give a file in a folder that is there" in done.stderr


@LINUX
@pytest.mark.ray
def test_what_is_estimated_grows_with_the_ticket_where_tasks_are_batched() -> None:
    """From tickets of at most four tasks to one of 400, which is never computed."""
    small, large = (
        estimated(config(WIDE, outer__tasks_per_step=n, outer__tasks_per_ticket=n)).ticket.memory
        for n in (4, 400)
    )
    weights = 4 * 1024**2  # bytes of the large layer
    assert large - small > 100 * 4 * weights  # parameters, a gradient and both their graphs


def test_more_than_is_free_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "available", lambda device: 1e6)
    settings = config(SINUSOID)
    last = estimated(settings).lines(settings)[-1]
    assert "set workers.max or outer.tasks_per_ticket lower" in last


@pytest.mark.ray
def test_a_profile_is_a_trace_of_one_outer_step(tmp_path: Path) -> None:
    done = command(
        "train", write(tmp_path / "r.yaml", SINUSOID), "--profile", str(tmp_path / "trace.json")
    )
    assert done.returncode == 0, done.stderr
    names = {
        event.get("name")
        for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    }
    assert {"ticket 0", "ticket 1", "ticket 2", "ticket 3", "learner", "aten::baddbmm"} <= names
    assert "ticket 4" not in names
    assert {path.name for path in tmp_path.iterdir()} == {"r.yaml", "trace.json"}


LIMITED = """
import resource, sys
from tuning.cli import main

resource.setrlimit(resource.RLIMIT_AS, (12 * 1024**3,) * 2)
recipe = sys.argv[1]
MANY = ["outer.tasks_per_step=4000", "outer.tasks_per_ticket=4000"]
for sets in (["outer.steps=1"], MANY):
    own = [f"--set={item}" for item in sets]
    sys.argv = ["metatrain", "train", recipe, "--resume", "auto", *own]
    try:
        main()
    except SystemExit as ended:
        print("ended", ended.code or 0)
"""


@pytest.mark.ray
@LINUX
def test_too_little_memory_is_one_sentence_and_the_last_step_is_saved(tmp_path: Path) -> None:
    """A process that may have twelve gigabytes of addresses meets a ticket that wants more."""
    recipe = write(
        tmp_path / "r.yaml",
        WIDE | {"output": str(tmp_path / "run"), "checkpoint": {"every_steps": 1}},
    )
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, recipe], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "ended 2", done.stderr
    assert "ended 0" in done.stdout
    assert "Traceback" not in done.stderr
    sentence = (
        "the memory of the cpu is not enough for a ticket: set outer.tasks_per_ticket "
        "lower, or algorithm.recompute"
    )
    assert sentence in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "manifest.json").exists()


PEAKS = """
import json, runpy, sys
from cluster.config import RunConfig
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import schema
from metatrain.core import Ticket
from metatrain.start import prepare

peak_mb = runpy.run_path(sys.argv[1])["peak_mb"]
for tree, work in json.load(sys.stdin):
    recipe = schema.parse(RunConfig, tree, "test").recipe()
    worker = Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
    worker.load(0, worker.layout.flatten(prepare(recipe).meta))
    ticket = Ticket(work, "train" if work == "update" else "test", 0, 0)
    print(peak_mb(lambda: worker.compute(ticket)))
"""


def peaks(*asked: tuple[Any, str]) -> list[float]:
    """Megabytes that tickets add to a process of their own, in which they were computed before."""
    measure = Path(__file__).parent.parent / "benchmarks" / "measure.py"
    trees = json.dumps([(schema.dump(settings), work) for settings, work in asked])
    full = [sys.executable, "-c", PEAKS, str(measure)]
    exact = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
    }  # what is freed goes back at once
    done = subprocess.run(
        full, input=trees, capture_output=True, text=True, check=True, env=os.environ | exact
    )
    return [float(line) for line in done.stdout.splitlines()]


@pytest.mark.ray
@LINUX
@pytest.mark.parametrize("filters", [24, 64], ids=["reference", "fused"])
def test_memory_grows_neither_with_the_tasks_of_a_ticket_nor_an_evaluations_with_its_steps(
    filters: int,
) -> None:
    def settings(tasks: int, steps: int) -> Any:
        return config(
            CONV4,
            model={"name": "conv4", "filters": filters},
            family__queries=15,
            algorithm__inner_steps=2,
            outer__tasks_per_step=tasks,
            outer__tasks_per_ticket=tasks,
            evaluation__algorithm={"inner_steps": steps},
            evaluation__tasks=2,
        )

    few, many, one, twenty = peaks(
        (settings(4, 1), "update"),
        (settings(32, 1), "update"),
        (settings(4, 1), "score"),
        (settings(4, 20), "score"),
    )
    assert many < 1.2 * few
    assert twenty < 1.2 * one


@pytest.mark.ray
@LINUX
def test_recomputing_keeps_the_memory_of_one_step() -> None:
    def settings(recompute: bool, steps: int) -> Any:
        algorithm = {"name": "maml", "inner_lr": 0.1, "inner_steps": steps, "recompute": recompute}
        return config(
            CONV4,
            algorithm=algorithm,
            model__filters=64,
            family__shots=8,
            outer__tasks_per_ticket=1,
        )

    again, again_more, kept, kept_more = peaks(
        *((settings(recompute, steps), "update") for recompute in (True, False) for steps in (4, 8))
    )
    assert again_more < 1.2 * again
    assert kept_more > 1.5 * kept


KEPT = """
import resource
import torch
from pathlib import Path
from cases import SINUSOID, config
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.start import prepare

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

recipe = config(SINUSOID).recipe()
Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
before = resident()
blocks = [torch.zeros(2**22) for _ in range(6)]
del blocks
print(resident() - before)
"""


@pytest.mark.ray
@LINUX
def test_a_worker_keeps_the_memory_that_it_frees() -> None:
    """To fetch pages anew for each task costs a network of large layers up to a tenth of its
    time.
    """
    options = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": False}
    for variables, kept in (({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)):
        done = subprocess.run([sys.executable, "-c", KEPT], env=os.environ | variables, **options)
        assert done.returncode == 0, done.stderr
        assert (int(done.stdout) > 6 * 2**24 * 0.9) == kept
