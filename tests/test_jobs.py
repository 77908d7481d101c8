"""Runs and sweeps as jobs on two real Ray nodes with a token, a real MLflow server and a storage."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import GLYPHS, S3, SINUSOID, Nodes, command, config, free_port, until

from cluster import checkpoint, jobs, run
from cluster.config import RunConfig
from metatrain import recipe as recipes
from metatrain import storage
from metatrain.core import InputError
from metatrain.tasks import remote
from metatrain.tasks.sources import open_data

LONG = SINUSOID | {
    "outer": {"steps": 100_000, "tasks_per_step": 6, "tasks_per_ticket": 3, "lr": 0.001},
    "checkpoint": {"every_steps": 100},
    "workers": {"min": 2, "max": 2},
    "tracking": {"experiment": "jobs"},
}


def written(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def parameters(where: str) -> dict[str, torch.Tensor]:
    return {name: t for name, t in checkpoint.load(where).tensors.items() if name.startswith("params.")}


def steps(where: str) -> int:
    return checkpoint.load(where).scalars["version"] if checkpoint.latest(f"{where}/checkpoints") else 0


def runs_of(uri: str, experiment: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id])


def alive(nodes: Nodes) -> list[str]:
    """Actors of ours on the cluster."""
    said = nodes.run("ray", "list", "actors", "--address", nodes.address, "--filter", "state=ALIVE", "--format", "json")
    found = [] if said.stdout.startswith("No resource") else json.loads(said.stdout)
    return [actor["class_name"] for actor in found if actor["class_name"] == "RayWorker"]


@pytest.mark.ray
def test_a_job_is_followed_left_watched_stopped_and_resumed(nodes: Nodes, s3: S3, tmp_path: Path) -> None:
    where, recipe = "s3://bucket/runs/long", written(tmp_path / "long.yaml", LONG)
    sent = [
        "metatrain",
        "submit",
        str(recipe),
        "--address",
        nodes.address,
        "--set",
        f"output={where}",
        "--name",
        "long",
    ]
    with subprocess.Popen(sent, env=nodes.environment, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        lines = iter(follower.stdout)
        said = [next(lines)]
        while not said[-1].startswith("step "):
            said.append(next(lines))
        assert re.match(r"step \d+/100000  loss .* tasks/s  ETA ", said[-1])
        follower.send_signal(signal.SIGINT)
        rest = list(lines)
        assert follower.wait() == 130
    assert said[:1] == ["submitted long\n"]
    assert rest[-4] == "the job goes on\n"
    assert rest[-3:] == said[1:4]  # the commands
    follow, status, stop = (line.split(maxsplit=1)[1].split() for line in rest[-3:])

    assert "RUNNING" in nodes.run(*status).stdout
    again = nodes.submit(recipe, "--set", f"output={where}", "--name", "long")
    assert (again.returncode, again.stderr) == (
        2,
        "error: there is a job long on this cluster, which is under way: give another --name\n",
    )
    again = nodes.submit(recipe, "--set", f"output={where}")
    assert again.returncode == 2
    assert f"error: the job long writes to {where}: stop it" in again.stderr
    assert alive(nodes) == ["RayWorker", "RayWorker"]
    until(lambda: steps(where) >= 200)
    assert nodes.run(*stop).returncode == 0
    until(lambda: "Job 'long' was stopped" in nodes.run(*status).stdout)
    assert not alive(nodes)
    assert "outer steps; run the same command again to go on" in nodes.run(*follow).stdout
    done = steps(where)
    (recorded,) = runs_of(nodes.environment["MLFLOW_TRACKING_URI"], "jobs")
    assert recorded.info.status == "KILLED"
    assert recorded.data.tags["metatrain.job"] == "long"

    shorter = ["--set", f"outer.steps={done + 50}", "--set", f"output={where}"]
    resumed = nodes.submit(recipe, *shorter, "--driver-cpus", "0")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"resuming {where}/checkpoints/step-{done:08d} after {done} steps" in resumed.stdout
    assert resumed.stdout.splitlines()[-1].startswith("result: mse=")
    assert f"compare runs: {nodes.environment['MLFLOW_TRACKING_URI']}/#/experiments/" in resumed.stdout
    (recorded,) = runs_of(nodes.environment["MLFLOW_TRACKING_URI"], "jobs")  # the same one
    assert recorded.info.status == "FINISHED"
    assert "test/mse" in recorded.data.metrics

    local = recipes.parse(RunConfig, LONG | {"workers": {"max": 0}, "tracking": {"uri": "none"}}, "test")
    tree = recipes.dump(local) | {"output": str(tmp_path / "alone")}
    recipes.put(tree, "outer.steps", done + 50)
    run.train(recipes.parse(RunConfig, tree, "test"))
    expected, found = parameters(str(tmp_path / "alone")), parameters(where)
    assert all(torch.equal(t, found[name]) for name, t in expected.items())


@pytest.mark.ray
def test_a_job_that_fails_ends_with_its_cause(nodes: Nodes, tmp_path: Path) -> None:
    recipe = written(tmp_path / "glyphs.yaml", GLYPHS | {"workers": {"max": 1}})
    done = nodes.submit(recipe, "--set", f"output={tmp_path}/out", "--set", "family.ways=800", "--name", "many-ways")
    assert done.returncode == 2
    assert done.stderr == (
        "error: job many-ways failed: 800 ways were asked for, but the train split of glyphs/glyphs has 700 classes: "
        "lower family.ways\n"
    )
    again = nodes.submit(recipe, "--set", f"output={tmp_path}/out", "--name", "many-ways")
    assert (
        again.stderr
        == "error: there is a job many-ways on this cluster, which has ended (failed): give another --name\n"
    )


OWN = """
from dataclasses import dataclass
from metatrain.algorithms.maml import MAML

@dataclass(frozen=True, kw_only=True)
class Mine(MAML):
    name: str = "mine:Mine"

    def update(self, problem, meta, tasks, context):
        if context.ticket.step == 2:
            raise ZeroDivisionError("in the third step")
        return super().update(problem, meta, tasks, context)
"""


@pytest.mark.ray
def test_an_own_module_goes_along_and_its_error_comes_back(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "secret.txt").write_text("stays here")
    recipe = written(tmp_path / "own.yaml", LONG | {"algorithm": {"name": "mine:Mine", "inner_lr": 0.01}})
    done = nodes.submit(recipe, "--set", f"output={tmp_path}/out", "--name", "own")
    assert done.returncode == 2
    assert re.fullmatch(r"error: job own failed: .*ZeroDivisionError.*in the third step.*\n", done.stderr)
    assert steps(f"{tmp_path}/out") == 2  # what was learnt is kept


@pytest.mark.ray
def test_each_node_fetches_a_data_set_once(nodes: Nodes, s3: S3, tmp_path: Path) -> None:
    uri = "s3://bucket/jobs/glyphs"
    remote.push(open_data("glyphs"), uri)
    size = (remote.fetch(uri) / "images.arrow").stat().st_size
    s3.log.write_text("")
    tree = GLYPHS | {"workers": {"min": 3, "max": 3}, "outer": GLYPHS["outer"] | {"steps": 3}}
    done = nodes.submit(
        written(tmp_path / "g.yaml", tree), "--set", f"family.data={uri}", "--set", "output=s3://bucket/runs/glyphs"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sum(s3.asked("GET", "jobs/glyphs/images.arrow")) == 2 * size
    for cache in nodes.caches:
        (copy,) = cache.glob("glyphs-*/images.arrow")
        assert copy.stat().st_size == size
    assert not list(nodes.caches[1].glob("glyphs/*"))  # it was not drawn


@pytest.mark.ray
def test_a_sweep_as_a_job_leaves_parent_and_children(nodes: Nodes, s3: S3, tmp_path: Path) -> None:
    where = "s3://bucket/sweeps/rates"
    tree = LONG | {"validation": {"every_steps": 10, "tasks": 10}, "workers": {"min": 1, "max": 1}}
    written(tmp_path / "recipe.yaml", recipes.dump(config(tree, tracking__experiment="sweep-job")))
    sweep = {
        "name": "rates",
        "recipe": "recipe.yaml",
        "set": {"outer.steps": 20},
        "space": {"algorithm.inner_lr": {"loguniform": [0.001, 0.1]}},
        "budget": {"trials": 2},
        "output": where,
    }
    done = nodes.submit(written(tmp_path / "sweep.yaml", sweep), "--name", "sweep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("result: mse=")
    found = runs_of(nodes.environment["MLFLOW_TRACKING_URI"], "sweep-job")
    (parent,) = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 2
    assert {run.info.status for run in found} == {"FINISHED"}
    assert all(run.data.tags["metatrain.job"] == "sweep" for run in found)
    names = {info.base_name for info in storage.listing(where)}
    assert {"sweep.yaml", "recipe.yaml", "journal.jsonl", "result.json", "trials", "figures", "bundle"} <= names
    assert "tune" not in names
    assert (
        run.evaluate(where, ["workers.max=0"])[0].mean
        == json.loads(storage.read(f"{where}/result.json"))["scores"][0]["mean"]
    )
    again = nodes.submit(tmp_path / "sweep.yaml")
    assert again.returncode == 2
    assert again.stderr.endswith(f"failed: the sweep in {where} is finished: give another output\n")


@pytest.mark.ray
def test_who_cannot_send_a_job_is_told_why(nodes: Nodes, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", LONG)
    env = nodes.environment
    none, wrong = dict(env) | {"HOME": str(tmp_path)}, env | {"RAY_AUTH_TOKEN": "wrong"}
    del none["RAY_AUTH_MODE"], none["RAY_AUTH_TOKEN"]
    main = "; from tuning.cli import main; main()"
    other_ray = f"import ray; ray.__version__ = '2.1.0'{main}"
    other_python = f"import platform; platform.python_version = lambda: '3.99.1'{main}"
    hint = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
    dashboard = "give that of the head node, such as http://HEAD:8265"
    closed = f"http://127.0.0.1:{free_port()}"
    mlflow = env["MLFLOW_TRACKING_URI"]
    gcs = f"http://127.0.0.1:{nodes.port}"
    cases: list[tuple[list[str], str, dict[str, str], str]] = [
        ([], nodes.address, none, f"no token is here for the cluster at {nodes.address}: {hint}"),
        ([], nodes.address, wrong, f"the token that is here is not that of the cluster at {nodes.address}: {hint}"),
        ([], closed, env, rf"no Ray dashboard answers at {closed} \(.*refused\): {dashboard}"),
        ([], mlflow, env, rf"no Ray dashboard answers at {mlflow} \(.*\): {dashboard}"),
        ([], gcs, env, rf"no Ray dashboard answers at {gcs} \(what answers there does not speak .*\): {dashboard}"),
        (
            [other_ray],
            nodes.address,
            env,
            r"the cluster at \S+ runs Ray [\d.]+ and this is 2\.1\.0: use the same on both",
        ),
        (
            [other_python],
            nodes.address,
            env,
            r"the cluster at \S+ runs Python [\d.]+ and this is 3\.99: use the same .*",
        ),
    ]
    to = ["--set", f"output={tmp_path}/out", "--address"]
    started = [
        subprocess.Popen(
            [sys.executable, *(["-c", *code] if code else ["-m", "tuning.cli"]), "submit", str(recipe), *to, address],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for code, address, environment, _ in cases
    ]
    for process, (*_, sentence) in zip(started, cases, strict=True):
        _, errors = process.communicate()
        assert process.returncode == 2
        assert re.fullmatch(f"error: {sentence}\n", errors), errors
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_sent(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inner.py").write_text("y = 2")
    (tmp_path / "package" / "__pycache__").mkdir()
    (tmp_path / "package" / "__pycache__" / "inner.pyc").write_text("z")
    code = [tmp_path / "mine.py", tmp_path / "package"]
    job = jobs.Job("j", ["train", "recipe.yaml"], {"recipe.yaml": "name: j"}, code, {})
    packed = tmp_path / "packed"
    packed.mkdir()
    jobs._pack(job, packed)
    assert {path.name for path in packed.iterdir()} == {
        "metatrain", "cluster", "tuning", "recipe.yaml", "mine.py", "package"
    }  # fmt: skip
    files = [path for path in packed.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".py", ".yaml"}
    assert sum(path.stat().st_size for path in files) < 1 << 20
    (tmp_path / "package" / "large.bin").write_bytes(bytes(1 << 20))
    packed = tmp_path / "again"
    packed.mkdir()
    with pytest.raises(InputError, match=r"the job would be 1\.\d MiB, at most 1 is sent, and package/large.bin is"):
        jobs._pack(job, packed)


def test_a_job_gets_what_is_named_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("WANTED", "yes")
    there = "http://head:8265"
    assert jobs.environment(there, None, ["WANTED"]) == {"WANTED": "yes"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert jobs.environment(there, None, []) == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert jobs.environment(there, None, []) == {}  # a file of this machine
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@mlflow:5000")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI holds a password") as refused:
        jobs.environment(there, None, [])
    assert "word@" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    with pytest.raises(InputError, match="is this machine's own, which the cluster cannot reach"):
        jobs.environment(there, None, [])
    with pytest.raises(InputError, match="--env NOWHERE names a variable that is not set here"):
        jobs.environment(there, None, ["NOWHERE"])


@pytest.mark.parametrize("output", ["", "--set output=runs/first"])
def test_results_need_a_place_that_outlives_the_job(output: str, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", SINUSOID)
    done = command("submit", str(recipe), "--address", "http://127.0.0.1:1", *output.split())
    assert done.returncode == 2
    assert "and a job's own folder ends with it: give one that outlives it, such as --set output=s3://" in done.stderr
