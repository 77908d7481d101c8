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
def test_a_node_that_dies_costs_time_and_nothing_else(nodes: Nodes, tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [200, 200]}  # whose updates are large enough to be kept by the node
    tree = LONG | {"model": model, "outer": LONG["outer"] | {"steps": 1500}, "workers": {"min": 5, "max": 5}}
    recipe, where = written(tmp_path / "r.yaml", tree), str(tmp_path / "out")
    third = nodes.start("worker", METATRAIN_CACHE=str(tmp_path / "cache"))
    sent = ["metatrain", "submit", str(recipe), "--address", nodes.address, "--set", f"output={where}"]
    with subprocess.Popen(sent, env=nodes.environment, stdout=subprocess.PIPE, text=True) as follower:
        until(lambda: steps(where) >= 100)
        nodes.fail(third)
        out, _ = follower.communicate(timeout=200)
    assert follower.returncode == 0, out
    assert "was lost" in out
    tree |= {"workers": {"max": 0}, "tracking": {"uri": "none"}, "output": str(tmp_path / "alone")}
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
    token = tmp_path / "token"
    token.write_text(nodes.environment["RAY_AUTH_TOKEN"])
    elsewhere = {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_MODE": None}
    again = nodes.submit(recipe, "--set", f"output={tmp_path}/out", "--name", "many-ways", **elsewhere)
    assert (
        again.stderr
        == "error: there is a job many-ways on this cluster, which has ended (failed): give another --name\n"
    )


@pytest.mark.ray
def test_a_job_that_waits_says_for_what(nodes: Nodes, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", LONG)
    sent = ["metatrain", "submit", str(recipe), "--address", nodes.address, "--name", "large", "--driver-cpus", "99"]
    sent += ["--set", f"output={tmp_path}/out"]
    with subprocess.Popen(sent, env=nodes.environment, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        *_, waits = [next(follower.stdout) for _ in range(5)]
        follower.send_signal(signal.SIGINT)
        rest, _ = follower.communicate(timeout=60)
    assert waits.startswith("waiting: ")
    assert "resources" in waits
    assert "the job goes on" in rest
    assert follower.returncode == 130


OWN = """
from dataclasses import dataclass
from metatrain.algorithms.maml import MAML

@dataclass(frozen=True, kw_only=True)
class Mine(MAML):
    name: str = "failing:Mine"

    def update(self, problem, meta, tasks, context):
        if context.ticket.step == 2:
            raise ZeroDivisionError("in the third step")
        return super().update(problem, meta, tasks, context)
"""


@pytest.mark.ray
def test_an_own_module_goes_along_and_its_error_comes_back(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(OWN)
    (tmp_path / "secret.txt").write_text("stays here")
    recipe = written(tmp_path / "own.yaml", LONG | {"algorithm": {"name": "failing:Mine", "inner_lr": 0.01}})
    done = nodes.submit(recipe, "--set", f"output={tmp_path}/out", "--name", "own")
    assert done.returncode == 2
    assert re.fullmatch(r"error: job own failed: .*ZeroDivisionError.*in the third step.*\n", done.stderr)
    assert steps(f"{tmp_path}/out") == 2  # what was learnt is kept


@pytest.mark.ray
def test_what_an_own_module_imports_goes_along_with_a_job(nodes: Nodes, tmp_path: Path) -> None:
    text = OWN.replace("failing:", "importing:").replace(
        'raise ZeroDivisionError("in the third step")', "from beside.helpers import third; third()"
    )
    (tmp_path / "importing.py").write_text(text)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "helpers.py").write_text("import neighbour\nthird = neighbour.third\n")
    (tmp_path / "neighbour.py").write_text("def third():\n    pass\n")
    tree = LONG | {"outer": LONG["outer"] | {"steps": 4}, "evaluation": {"tasks": 4}}
    recipe = written(tmp_path / "own.yaml", tree | {"algorithm": {"name": "importing:Mine", "inner_lr": 0.01}})
    done = nodes.submit(recipe, "--set", f"output={tmp_path}/out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not sent" not in done.stdout
    found = {str(path.relative_to(tmp_path / "out/bundle/code")) for path in (tmp_path / "out/bundle").rglob("*.py")}
    assert found == {"importing.py", "beside/helpers.py", "neighbour.py"}


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
        (copy,) = cache.glob("fetched/glyphs-*/images.arrow")
        assert copy.stat().st_size == size


@pytest.mark.ray
def test_a_sweep_as_a_job_leaves_parent_and_children(nodes: Nodes, s3: S3, tmp_path: Path) -> None:
    where = "s3://bucket/sweeps/job"
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
    hint = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
    dashboard = "give that of the head node, such as http://HEAD:8265"
    here, mlflow = nodes.address, env["MLFLOW_TRACKING_URI"]
    closed, gcs = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{nodes.port}"
    other_ray = "import ray; ray.__version__ = '2.1.0'"
    other_python = "import platform; platform.python_version = lambda: '3.99.1'"
    cases = {  # sentence -> address, environment, what the program does first, options
        f"no token is here for the cluster at {here}: {hint}": (here, none, "", ""),
        f"the token that is here is not that of the cluster at {here}: {hint}": (here, wrong, "", ""),
        rf"no Ray dashboard answers at {closed} \(.*refused\): {dashboard}": (closed, env, "", ""),
        rf"no Ray dashboard answers at {mlflow} \(.*\): {dashboard}": (mlflow, env, "", ""),
        rf"no Ray dashboard answers at {gcs} \(what answers there does not .*\): {dashboard}": (gcs, env, "", ""),
        rf"the cluster at {here} runs Ray \S+ and this is 2\.1\.0: use the same on both": (here, env, other_ray, ""),
        rf"the cluster at {here} runs Python \S+ and this is 3\.99: use .*": (here, env, other_python, ""),
        "--name 'a/b' cannot name a job: use letters, digits, '_', '-' and '.'": (here, env, "", "--name a/b"),
    }
    started = {}
    for sentence, (address, environment, before, options) in cases.items():
        program = [sys.executable, "-c", f"{before}\nfrom tuning.cli import main; main()", "submit", str(recipe)]
        to = ["--address", address, "--set", f"output={tmp_path}/out", *options.split()]
        started[sentence] = subprocess.Popen([*program, *to], env=environment, stderr=subprocess.PIPE, text=True)
    for sentence, process in started.items():
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
    assert {path.suffix for path in files} == {".py", ".cpp", ".h", ".yaml"}
    assert sum(path.stat().st_size for path in files) < 1 << 20
    (tmp_path / "tuning").mkdir()
    (tmp_path / "clash").mkdir()
    with pytest.raises(InputError, match="tuning has the name of a package that every job gets: rename it"):
        jobs._pack(job._replace(code=[tmp_path / "tuning"]), tmp_path / "clash")
    (tmp_path / "package" / "large.bin").write_bytes(bytes(1 << 20))
    packed = tmp_path / "again"
    packed.mkdir()
    with pytest.raises(InputError, match=r"the job would be 1\.\d MiB, at most 1 is sent, and package/large.bin is"):
        jobs._pack(job, packed)


def test_a_job_gets_what_is_named_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("WANTED", "yes")
    there = "http://head:8265"
    assert jobs.environment(there, ["WANTED"]) == {"WANTED": "yes"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert jobs.environment(there, []) == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert jobs.environment(there, []) == {}  # a file of this machine
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@mlflow:5000")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI holds a password") as refused:
        jobs.environment(there, [])
    assert "word@" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    with pytest.raises(InputError, match="is this machine's own, which the cluster cannot reach"):
        jobs.environment(there, [])
    with pytest.raises(InputError, match="--env NOWHERE names a variable that is not set here"):
        jobs.environment(there, ["NOWHERE"])


def test_the_commands_that_are_printed_work_in_the_users_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    here = "http://head:8265"
    plain = "stop:   ray job stop j --address http://head:8265"
    assert jobs.commands(here, "j", {"RAY_AUTH_MODE": "token"}).splitlines()[-1] == plain
    token = plain.replace("ray job", "RAY_AUTH_MODE=token ray job")
    assert jobs.commands(here, "j", {"RAY_API_SERVER_ADDRESS": here}).splitlines()[-1] == token
    other = {"RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": "http://elsewhere:1"}
    assert f"RAY_API_SERVER_ADDRESS={here} ray job stop" in jobs.commands(here, "j", other)


@pytest.mark.parametrize("setting", ["checkpoint.uri=checkpoints", "family.data=data/glyphs", "family.data=./glyphs"])
def test_what_else_a_job_reads_and_writes_does_so_too(setting: str, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", GLYPHS)
    to = ["--address", "http://127.0.0.1:1", "--set", f"output={tmp_path}", "--set", setting]
    done = command("submit", str(recipe), *to)
    assert done.returncode == 2
    key, _, value = setting.partition("=")
    assert f"error: {key} is {value}, and a job's own folder ends with it" in done.stderr


@pytest.mark.parametrize("output", ["", "--set output=runs/first"])
def test_results_need_a_place_that_outlives_the_job(output: str, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", SINUSOID)
    done = command("submit", str(recipe), "--address", "http://127.0.0.1:1", *output.split())
    assert done.returncode == 2
    assert (
        "and a job's own folder ends with it: give a place that outlives it, such as s3://bucket/first" in done.stderr
    )
