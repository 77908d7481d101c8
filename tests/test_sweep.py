"""Sweeps on real Ray: trials are runs, whatever dies; schedulers stop and perturb them; MLflow has
each once.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from cases import SINUSOID
from ray.tune.execution.tune_controller import TuneController
from services import command, store, until

from cluster import checkpoint, run
from cluster.claim import claimed
from cluster.config import RunConfig
from cluster.jobs.job import JOB, JOB_CPUS
from metatrain import schema, storage
from metatrain.core import InputError
from metatrain.storage import Folder
from tuning import ray_tune, sweep
from tuning import search as searches
from tuning.resources import at_once, check_resources

pytestmark = pytest.mark.ray

RECIPE = SINUSOID | {
    "outer": {"steps": 40, "tasks_per_step": 6, "tasks_per_ticket": 3, "lr": 0.001},
    "validation": {"every_steps": 10, "tasks": 10},
    "workers": {"max": 0, "cpus": 1.0, "wait_s": 600},
}
BROKEN = """
import sys
from dataclasses import dataclass
from metatrain.algorithms.maml import MAML

@dataclass(frozen=True, kw_only=True)
class Broken(MAML):
    name: str = "broken:Broken"

    def init(self, problem, generator):
        if self.inner_lr > 1 and "default_worker" in sys.argv[0]:
            raise ZeroDivisionError("no such start")
        return super().init(problem, generator)

    def update(self, problem, meta, tasks, context):
        if 0.1 < self.inner_lr < 1:
            raise ZeroDivisionError("no such rate")
        return super().update(problem, meta, tasks, context)
"""
RATES = {
    "algorithm.inner_lr": {"loguniform": [0.001, 0.1]},
    "outer.lr": {"loguniform": [0.0001, 0.01]},
}


def load(folder: Path, **changes: Any) -> searches.Search:
    """A sweep in `folder`, with changes of its keys, __ being the dot in those of its recipe."""
    recipe = schema.dump(schema.parse(RunConfig, RECIPE, "test"))
    for key in [key for key in changes if "__" in key]:
        schema.put(recipe, key.replace("__", "."), changes.pop(key))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    whole = {
        "name": "s",
        "recipe": "recipe.yaml",
        "space": RATES,
        "budget": {"trials": 2},
    } | changes
    (folder / "sweep.yaml").write_text(yaml.safe_dump(whole))
    return searches.load(folder / "sweep.yaml")


def journal(folder: Path) -> list[dict[str, Any]]:
    path = folder / "journal.jsonl"
    return (
        [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        if path.exists()
        else []
    )


def rows(folder: Path | Folder, number: int) -> list[dict[str, Any]]:
    path = f"{folder}/trials/{number:02d}/metrics.jsonl"
    text = storage.read(path).decode() if storage.is_file(path) else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    newest = checkpoint.latest(f"{folder}/checkpoints")
    assert newest is not None
    return {
        name: t for name, t in checkpoint.load(newest).tensors.items() if name.startswith("params.")
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(t, other[name]) for name, t in one.items()
    )


def alone(folder: Path, number: int, to: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """What the recorded recipe of a trial gives without a sweep, and in process."""
    tree = yaml.safe_load((folder / "trials" / f"{number:02d}" / "config.yaml").read_text())
    for key, value in {
        "output": str(to),
        "workers.max": 0,
        "tracking.uri": "none",
        **changes,
    }.items():
        schema.put(tree, key, value)
    run.train(schema.parse(RunConfig, tree, "the trial's"))
    return parameters(to)


def processes(name: str) -> set[int]:
    """Ray's processes of that name that descend from this one."""
    found = subprocess.run(
        ["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    lines = [line.split(maxsplit=2) for line in found.stdout.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, _ in lines}

    def descends(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return {
        int(pid)
        for pid, _, title in lines
        if title.startswith(f"ray::{name}") and descends(int(pid))
    }


def runs_of(uri: str) -> list[Any]:
    """All runs in a store, the newest first."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    return client.search_runs(
        [experiment.experiment_id for experiment in client.search_experiments()]
    )


def without_date(found: Any) -> str:
    """The name of a run in MLflow, of which a sweep's has its date."""
    return re.sub(r"^s \d{4}-\d\d-\d\d \d\d:\d\d$", "s", found.info.run_name)


@pytest.fixture
def watching() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Lets a function look on while the sweep runs; what it raises fails the test."""
    failures: list[BaseException] = []
    threads: list[threading.Thread] = []

    def start(look: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                look()
            except BaseException as error:
                failures.append(error)

        threads.append(threading.Thread(target=guarded, daemon=True))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()
    if failures:
        raise failures[0]


@pytest.fixture
def reporting(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[int, int], None]], None]:
    """Lets a function look on at each report of a trial, by number and step: the trial waits."""
    report = ray_tune.Watch.on_trial_result

    def start(look: Callable[[int, int], None]) -> None:
        def reported(self: ray_tune.Watch, **info: Any) -> None:
            report(self, **info)
            look(int(str(info["trial"])), info["result"]["step"])

        monkeypatch.setattr(ray_tune.Watch, "on_trial_result", reported)

    return start


@pytest.fixture
def in_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """No trial goes on before all others have reported as many steps."""
    train, held = TuneController._schedule_trial_train, []

    def made(trial: Any) -> int:
        return int(trial.run_metadata.last_result.get("step", -1))

    def go_on(controller: Any, trial: Any) -> None:
        held.append(trial)
        least = min(made(each) for each in controller.get_trials() if not each.is_finished())
        for each in [each for each in held if made(each) <= least]:
            held.remove(each)
            train(controller, each)

    monkeypatch.setattr(TuneController, "_schedule_trial_train", go_on)


@pytest.mark.usefixtures("pictures")
@pytest.mark.usefixtures("ray_cluster")
def test_two_trials_of_two_workers_at_once_are_runs_that_can_be_repeated(
    tmp_path: Path, watching: Callable[[Callable[[], None]], None]
) -> None:
    before = processes("RayWorker")
    search = load(tmp_path, at_once=2, workers__max=2, outer__steps=60)
    together: list[int] = []

    def look() -> None:
        """Each worker is held when it is seen first, until there are four."""
        while len(together) < 4:
            for pid in sorted(processes("RayWorker") - before - set(together)):
                os.kill(pid, signal.SIGSTOP)
                together.append(pid)
            assert not (search.folder / "result.json").exists(), "they did not run together"
            time.sleep(0.1)
        for pid in together:
            os.kill(pid, signal.SIGCONT)

    watching(look)
    outcome = sweep.start(search)
    assert len(together) == 4
    starts, ends = (
        {line["trial"]: line["at"] for line in journal(search.folder) if kind in line}
        for kind in ("values", "ended")
    )
    assert max(starts.values()) < min(ends.values()), "they did not run together"
    assert [trial.state for trial in outcome.trials] == ["completed", "completed"]
    assert outcome.trials[0].last.value <= outcome.trials[1].last.value
    for trial in outcome.trials:
        folder = search.folder / "trials" / f"{trial.number:02d}"
        assert equal(
            alone(search.folder, trial.number, tmp_path / f"again-{trial.number}"),
            parameters(folder),
        )
        assert trial.last.value == rows(search.folder, trial.number)[-1]["val/mse_after"]
        assert [report.step for report in trial.reports] == [0, 10, 20, 30, 40, 50, 60]
    until(lambda: not processes("RayWorker") - before)
    assert not (search.folder / "tune").exists()
    for picture in ("validation_curves", "values", "map"):
        assert (search.folder / "figures" / f"{picture}.png").stat().st_size > 5_000
    (score,) = run.evaluate(str(search.folder), ["workers.max=0"])  # the bundle is the winner's
    assert score.mean == outcome.scores[0].mean


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_goes_on_when_its_worker_or_its_own_process_is_killed(
    tmp_path: Path, reporting: Callable[[Callable[[int, int], None]], None]
) -> None:
    before = processes("RayWorker") | processes("ImplicitFunc")
    uri = store(tmp_path)
    search = load(
        tmp_path, budget={"trials": 1}, workers__max=1, outer__steps=200, tracking__uri=uri
    )
    killed: list[str] = []

    def look(number: int, step: int) -> None:
        for name, at in (("RayWorker", 20), ("ImplicitFunc", 60)):
            if step == at and name not in killed:
                (victim,) = processes(name) - before
                os.kill(victim, signal.SIGKILL)
                killed.append(name)

    reporting(look)
    outcome = sweep.start(search)
    assert killed == ["RayWorker", "ImplicitFunc"]
    assert [trial.state for trial in outcome.trials] == ["completed"]
    assert [report.step for report in outcome.winner.reports] == list(range(0, 201, 10))
    assert equal(
        alone(search.folder, 0, tmp_path / "again"), parameters(search.folder / "trials" / "00")
    )
    assert [without_date(found) for found in runs_of(uri)] == [
        "s-00 (winner)",
        "s",
    ]  # the same run in MLflow, too


@pytest.mark.usefixtures("ray_cluster")
def test_a_stopped_trial_leaves_no_process_while_the_next_one_runs(
    tmp_path: Path, reporting: Callable[[Callable[[int, int], None]], None]
) -> None:
    before = processes("RayWorker") | processes("ImplicitFunc")
    rates = {"outer.lr": {"grid": [0.003, 1e-9, 1e-8]}}
    asha = {"name": "asha", "first_rung": 100, "reduction": 3}
    options = {"search": "grid", "budget": {}, "scheduler": asha, "at_once": 1}
    search = load(
        tmp_path,
        space=rates,
        workers__max=1,
        outer__steps=400,
        validation__every_steps=100,
        **options,
    )
    alive: list[int] = []

    def look(number: int, step: int) -> None:
        if (number, step) == (2, 0):
            until(lambda: len(processes("RayWorker") - before) == 1)
            alive.append(len(processes("RayWorker") - before))

    reporting(look)
    outcome = sweep.start(search)
    assert alive == [1]
    states = {trial.number: (trial.state, trial.steps) for trial in outcome.trials}
    assert states == {0: ("completed", 400), 1: ("stopped", 100), 2: ("stopped", 100)}
    until(lambda: not (processes("RayWorker") | processes("ImplicitFunc")) - before)
    stopped = alone(
        search.folder, 1, tmp_path / "again", **{"outer.steps": 100}
    )  # its rate does not fall with steps
    assert equal(stopped, parameters(search.folder / "trials" / "01"))


@pytest.mark.usefixtures("pictures")
@pytest.mark.usefixtures("ray_cluster", "s3", "in_step")
def test_a_perturbation_changes_the_rate_inside_the_running_learner(tmp_path: Path) -> None:
    """Trials go on from each other's checkpoints, which lie in a storage here. One that starts
    when the other has ended could not.
    """
    pbt = {"name": "pbt", "every_steps": 20, "quantile": 0.5, "resample": 0}
    rates = {"outer.lr": {"loguniform": [1e-9, 0.01]}}
    output = "s3://bucket/perturbed"
    search = load(
        tmp_path,
        output=output,
        space=rates,
        scheduler=pbt,
        outer__steps=80,
        seed=3,
    )
    outcome = sweep.start(search)
    schedule = json.loads((search.folder / "schedule.json").read_text())
    assert schedule[0]["step"] == 0
    assert schedule[-1]["trial"] == outcome.winner.number
    perturbed = 0
    for trial in outcome.trials:
        newest = checkpoint.latest(f"{search.folder}/trials/{trial.number:02d}/checkpoints")
        history = json.loads(checkpoint.load(newest).notes["schedule"])
        ends = [*(entry["step"] for entry in history[1:]), 80]
        for entry, end in zip(history, ends, strict=True):
            if entry["trial"] == trial.number:  # its own record has what it did itself
                used = {
                    row["learner.lr"]
                    for row in rows(search.folder, trial.number)
                    if entry["step"] < row["step"] <= end
                }
                assert used == {entry["values"]["outer.lr"]}
        for old, new in pairwise(history):
            perturbed += 1
            ratio = new["values"]["outer.lr"] / old["values"]["outer.lr"]
            assert (
                min(abs(ratio - 0.8), abs(ratio - 1.2)) < 1e-9 or new["values"]["outer.lr"] == 0.01
            )
    assert perturbed, "nobody exploited anybody"
    assert (search.folder / "figures" / "schedule.png").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_diverges_is_the_last_one_and_costs_the_others_nothing(tmp_path: Path) -> None:
    rates = {"algorithm.inner_lr": {"grid": [0.01, 1e30]}}
    outcome = sweep.start(load(tmp_path, space=rates, search="grid", budget={}))
    assert [(trial.number, trial.state) for trial in outcome.trials] == [
        (0, "completed"),
        (1, "diverged"),
    ]
    assert "is not finite" in outcome.trials[1].cause
    with pytest.raises(InputError, match="is finished: give another output"):
        sweep.start(load(tmp_path, space=rates, search="grid", budget={}), resume="auto")


@pytest.mark.usefixtures("ray_cluster")
def test_when_the_time_is_up_the_best_so_far_is_the_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep's minutes are over as soon as each trial has come twenty steps further."""
    search = load(tmp_path, budget={"trials": 2, "minutes": 30}, outer__steps=100_000, at_once=2)
    far = dict.fromkeys(range(2), 0)

    def enough() -> bool:
        lines = [line for line in journal(search.folder) if "report" in line]
        steps = {line["trial"]: line["report"]["step"] for line in lines}
        return all(steps.get(number, 0) >= 20 + far[number] for number in far)

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1800 * enough())
    monkeypatch.setattr(ray_tune, "time", clock)
    outcome = sweep.start(search)
    assert {trial.state for trial in outcome.trials} == {"timed out"}
    assert outcome.winner.last.value == min(trial.last.value for trial in outcome.trials)
    bundled = yaml.safe_load((search.folder / "bundle" / "recipe.yaml").read_text())
    assert bundled["outer"]["steps"] == outcome.winner.last.step
    assert f"trained {outcome.winner.last.step} steps of 6 tasks" in outcome.scores[0].protocol
    far |= {trial.number: trial.steps for trial in outcome.trials}
    outcome = sweep.start(search, resume="auto")
    assert {trial.state for trial in outcome.trials} == {"timed out"}
    assert all(trial.steps >= 20 + far[trial.number] for trial in outcome.trials), (
        "it has its full minutes again"
    )


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    "scheduler", [{"name": "asha", "first_rung": 10}, {"name": "pbt", "every_steps": 20}]
)
def test_a_sweep_with_a_scheduler_goes_on_where_it_was(
    tmp_path: Path, scheduler: dict[str, Any]
) -> None:
    """As if it had been killed after each trial's report of step 30."""
    space_ = {"outer.lr": {"loguniform": [1e-4, 1e-2]}}
    search = load(
        tmp_path,
        space=space_,
        scheduler=scheduler,
        budget={"trials": 3},
        outer__steps=60,
        checkpoint__keep=9,
    )
    sweep.start(search)
    kept = [
        line
        for line in journal(search.folder)
        if "ended" not in line and line.get("report", {}).get("step", 0) <= 30
    ]
    (search.folder / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in kept))
    (search.folder / "result.json").unlink()
    for number in range(3):
        for saved in (search.folder / "trials" / f"{number:02d}" / "checkpoints").glob("step-*"):
            if saved.name > "step-00000030":
                shutil.rmtree(saved)
    ahead = {
        n: [r["step"] for r in rows(search.folder, n) if "val/mse_after" in r] for n in range(3)
    }
    assert all(steps[-1] >= 10 for steps in ahead.values())
    outcome = sweep.start(search, resume="auto")
    assert len(outcome.trials) == 3
    assert all(trial.over for trial in outcome.trials)
    assert outcome.winner.steps == 60


@pytest.mark.usefixtures("ray_cluster")
def test_one_folder_has_one_sweep_at_a_time(tmp_path: Path) -> None:
    search = load(tmp_path)
    with (
        claimed(str(search.folder), "sweep"),
        pytest.raises(InputError, match="another process works on the sweep in"),
    ):
        sweep.start(search)


def test_a_trial_that_fails_says_why_and_costs_the_others_nothing(tmp_path: Path) -> None:
    """And a sweep of one's own classes: their file is sent to the trials."""
    (tmp_path / "broken.py").write_text(BROKEN)
    load(
        tmp_path,
        space={"algorithm.inner_lr": {"grid": [0.01, 0.2, 2.0]}},
        search="grid",
        budget={},
        name="own",
    )
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    recipe["algorithm"] = {"name": "broken:Broken", "inner_lr": 0.01}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [sys.executable, "-m", "tuning.cli", "tune", "sweep.yaml"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "trial 1 failed: ZeroDivisionError: no such rate (" in done.stderr
    assert (
        "trial 2 failed: ZeroDivisionError: no such start (" in done.stderr
    )  # before its first step
    trials = json.loads((tmp_path / "runs" / "own" / "result.json").read_text())["trials"]
    assert [(trial["trial"], trial["state"]) for trial in trials] == [
        (0, "completed"),
        (1, "failed"),
        (2, "failed"),
    ]
    assert "broken.py" in (tmp_path / "runs" / "own" / "trials" / "01" / "error.txt").read_text()


@pytest.mark.usefixtures("ray_cluster")
def test_more_than_the_cluster_has_is_refused_before_any_trial(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=(
            r"a trial needs 5 workers of 1 CPUs and 0 GPUs, and this cluster has 4 "
            r"CPUs and 1 GPUs"
        ),
    ):
        sweep.start(load(tmp_path, workers__max=5))


@pytest.mark.usefixtures("ray_cluster")
def test_a_jobs_own_process_leaves_less_for_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = load(tmp_path, workers__max=2)
    assert at_once(search) == 2
    monkeypatch.setenv(JOB, "mine")
    monkeypatch.setenv(JOB_CPUS, "1")
    assert at_once(search) == 1
    monkeypatch.setenv(JOB_CPUS, "3")
    with pytest.raises(
        InputError, match="this cluster has 1 CPUs and 1 GPUs besides what --driver-cpus"
    ):
        check_resources(search)


@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_says_what_would_run_and_starts_nothing(tmp_path: Path) -> None:
    load(tmp_path, workers__max=2, workers__cpus=0.5, budget={"trials": 6})
    done = command("tune", "sweep.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "outer.lr: loguniform [0.0001, 0.01]" in done.stdout
    assert "at once: 4 on this cluster, each with 2 workers of 0.5 CPUs and 0 GPUs" in done.stdout
    assert "tasks: at most 1440 to learn from and 300 to validate with" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_stopped_and_killed_sweeps_go_on_without_doing_anything_twice(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    search = load(
        tmp_path,
        budget={"trials": 3},
        search="optuna",
        at_once=2,
        outer__steps=900,
        validation__every_steps=60,
        tracking__uri=None,
    )
    arguments = [sys.executable, "-m", "tuning.cli", "tune", "sweep.yaml"]

    def go(*more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*arguments, *more], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def reports() -> int:
        return sum("report" in line for line in journal(search.folder))

    first = go()
    until(lambda: reports() >= 4)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=600)
    assert first.returncode == 130, said
    assert said.endswith(
        "trials; what they reported is kept\nto continue: metatrain tune sweep.yaml --resume auto\n"
    )
    done = reports()

    second = go("--resume", "auto")
    until(lambda: any("ended" in line for line in journal(search.folder)) and reports() >= done + 8)
    second.kill()
    second.communicate(timeout=600)
    (search.folder / "journal.jsonl").open("a").write('{"trial": 2, "rep')  # killed in mid line

    third = go("--resume", str(search.folder))
    out, said = third.communicate(timeout=600)
    assert third.returncode == 0, said
    assert out.splitlines()[-1].startswith("result: mse=")

    whole = journal(search.folder)
    for kind, count in (("values", 3), ("ended", 3), ("report", 3 * 16)):
        lines = [
            (line["trial"], line.get("report", {}).get("step")) for line in whole if kind in line
        ]
        assert len(lines) == len(set(lines)) == count, (kind, lines)
    found = runs_of(uri)
    best = json.loads((search.folder / "result.json").read_text())["winner"]
    trials = [f"s-0{i}{' (winner)' * (i == best)}" for i in range(3)]
    assert sorted(map(without_date, found)) == ["s", *trials]
    assert len({r.info.experiment_id for r in found}) == 1
    assert {r.info.status for r in found} == {"FINISHED"}
    (parent,) = (r for r in found if without_date(r) == "s")
    children = [r for r in found if r is not parent]
    assert {r.data.tags["mlflow.parentRunId"] for r in children} == {parent.info.run_id}
    assert len({r.data.params["outer.lr"] for r in children}) == 3
    assert [len(r.outputs.model_outputs) for r in (parent, *children)] == [1, 0, 0, 0]
    assert {each.dataset.name for r in found for each in r.inputs.dataset_inputs} >= {
        "sinusoid train",
        "sinusoid test",
    }
    client = MlflowClient(uri)
    best = [m.value for m in client.get_metric_history(parent.info.run_id, "val/mse_after")]
    assert best == sorted(best, reverse=True), "the best so far cannot become worse"
    assert float(parent.data.params["best.outer.lr"]) in {
        float(r.data.params["outer.lr"]) for r in children
    }
    assert {f.path for f in client.list_artifacts(parent.info.run_id)} == {
        "sweep.yaml",
        "recipe.yaml",
        "journal.jsonl",
        "result.json",
        "figures",
        "bundle",
    }
    again = alone(search.folder, 0, tmp_path / "again")
    assert equal(again, parameters(search.folder / "trials" / "00"))


def test_tune_names_the_command_for_what_is_no_sweep_and_continues_a_sweep_only(
    tmp_path: Path,
) -> None:
    load(tmp_path)  # sweep.yaml and recipe.yaml
    for name in ("run/config.yaml", "swept/sweep.yaml", "other/notes.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    swept = "swept is a sweep's folder: metatrain tune swept/sweep.yaml --resume swept"
    cases = {
        "recipe.yaml": "recipe.yaml is a recipe: metatrain train recipe.yaml",
        "run": "run is a run's folder: metatrain train run/config.yaml --resume run",
        "swept": swept,
        "other": "other is a folder: give a YAML file such as those in recipes/sweeps/",
        (
            "sweep.yaml --resume run"
        ): f"{tmp_path}/run holds no sweep to continue: give a sweep's folder, or",
        (
            "sweep.yaml --resume run --set output=x"
        ): "output is x, and --resume continues the sweep in run: give one",
    }
    for arguments, sentence in cases.items():
        done = command("tune", *arguments.split())
        assert done.returncode == 2
        assert f"error: {sentence}" in done.stderr
