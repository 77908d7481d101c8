"""Runs and sweeps as jobs on two real Ray nodes with a token, a real MLflow server and a
storage.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cases import GLYPHS, SINUSOID
from services import S3, Nodes, command, free_port, until

from cluster import checkpoint, run
from cluster.config import RunConfig
from cluster.jobs import package
from cluster.jobs.follow import commands
from cluster.jobs.package import Job
from cluster.jobs.sent import is_sent, sent_files
from metatrain import console, schema, storage
from metatrain.core import InputError
from metatrain.data import remote
from metatrain.data.sources import open_data

LONG = SINUSOID | {
    "outer": {"steps": 100_000, "tasks_per_step": 6, "tasks_per_ticket": 3, "lr": 0.001},
    "checkpoint": {"every_steps": 100},
    "workers": {"min": 1, "max": 1, "wait_s": 600},
    # A stopped job has a minute to send what waits for MLflow: on a busy machine that is little.
    "tracking": {"experiment": "jobs", "every_steps": 50},
}


def written(path: Path, tree: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path


def parameters(where: str) -> dict[str, torch.Tensor]:
    return {
        name: t for name, t in checkpoint.load(where).tensors.items() if name.startswith("params.")
    }


def steps(where: str) -> int:
    """Of the newest checkpoint by its name: the run may remove it while it is read."""
    return checkpoint.steps_made(f"{where}/checkpoints")


def runs_of(uri: str, experiment: str) -> list[Any]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return client.search_runs([found.experiment_id])


def together(*asked: Callable[[], Any]) -> list[Any]:
    """What each gives: at the same time, since most of it is the start of a process."""
    with ThreadPoolExecutor() as threads:
        return [answer.result() for answer in [threads.submit(each) for each in asked]]


def last(text: str) -> str:
    return text.splitlines()[-1]


def error(text: str) -> str:
    (found,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return found


def workers(nodes: Nodes) -> list[str]:
    """Names of our workers on the cluster."""
    return [a["name"] for a in nodes.alive("actors") if a["class_name"] == "RayWorker"]


@pytest.mark.ray
def test_a_job_is_followed_left_watched_stopped_and_resumed(
    nodes: Nodes, s3: S3, tmp_path: Path
) -> None:
    where = "s3://bucket/runs/long"
    recipe = written(
        tmp_path / "long.yaml", LONG | {"workers": {"min": 2, "max": 2, "wait_s": 600}}
    )
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
        "--retries",
        "1",
    ]
    with subprocess.Popen(
        sent, env=nodes.environment, stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        lines = iter(follower.stdout)
        said = [next(lines)]
        while " step " not in said[-1]:
            said.append(next(lines))
        # Of the job alone, and none of Ray's; on a busy machine it waits for its process first.
        log = [line for line in said[4:] if not line.startswith("waiting for 1 CPUs: Job has not")]
        assert all(re.match(r"\d\d:\d\d:\d\d \w", line) for line in log), said
        assert re.match(r"\S+ step \d+/100000  loss .* tasks/s  ETA ", said[-1])
        follower.send_signal(signal.SIGINT)
        rest = list(lines)
        assert follower.wait() == 130
    assert said[:1] == ["submitted long\n"]
    assert rest[-4] == "the job keeps running\n"
    assert rest[-3:] == said[1:4]  # the commands
    follow, stop, listed = (line.split(maxsplit=1)[1].split() for line in rest[-3:])

    shown, same_name, same_output, actors = together(
        lambda: nodes.run(*listed, "--json"),
        lambda: nodes.submit(recipe, "--set", f"output={where}", "--name", "long"),
        lambda: nodes.submit(recipe, "--set", f"output={where}"),
        lambda: workers(nodes),
    )
    (job,) = [job for job in json.loads(shown.stdout) if job["name"] == "long"]
    assert (job["state"], job["output"], job["recipe"]) == ("running", where, str(recipe))
    assert same_name.returncode == same_output.returncode == 2
    assert (
        last(same_name.stderr)
        == "error: this cluster already has a job long, it is under way: give another --name"
    )
    assert (
        f"error: the job long writes to {where}: stop it with `metatrain stop long`"
        in same_output.stderr
    )
    assert [name[:-6] for name in sorted(actors)] == ["sinusoid worker-0 ", "sinusoid worker-1 "]
    until(lambda: steps(where) >= 200)
    stopped = nodes.run(*stop[:-3], *stop[-2:])  # the newest
    assert stopped.returncode == 0, stopped.stderr
    told, to_continue = stopped.stdout.splitlines()
    assert told == "job long was stopped"
    done = steps(where)
    shorter = ["--set", f"outer.steps={done + 50}", "--set", f"output={where}"]
    again, followed, unknown, refused, _ = together(
        lambda: nodes.run(*stop),
        lambda: nodes.run(*follow),
        lambda: nodes.run(*follow[:2], "lang", *follow[-2:]),
        lambda: nodes.submit(recipe, *shorter),
        lambda: until(lambda: not workers(nodes)),
    )
    assert (again.returncode, followed.returncode, unknown.returncode, refused.returncode) == (
        2,
        130,
        2,
        2,
    )
    assert (
        last(again.stderr)
        == "error: the job long was stopped already: `metatrain jobs` lists those under way"
    )
    assert re.search(
        r"\n\S+ stopping: it saves first\n(.*\n)*stopped after \d+ of 100000 outer steps\n",
        followed.stdout,
    )
    assert last(followed.stderr) == to_continue
    assert last(unknown.stderr).startswith(
        "error: there is no job lang on this cluster; the nearest name is long: "
    )
    assert last(refused.stderr).endswith(
        f"{where} already holds a run: pass --resume auto to continue it, or give another output"
    )
    (recorded,) = runs_of(nodes.environment["MLFLOW_TRACKING_URI"], "jobs")
    assert recorded.info.status == "KILLED"
    assert recorded.data.tags["metatrain.job"] == "long"

    command, _, arguments = to_continue.removeprefix(f"to continue in {where}: ").partition(" ")
    resumed = nodes.run(command, *arguments.split(), *shorter, "--driver-cpus", "0")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"resuming {where}/checkpoints/step-{done:08d} after {done} steps" in resumed.stdout
    assert resumed.stdout.splitlines()[-1].startswith("result: mse=")
    assert (
        f"compare runs: {nodes.environment['MLFLOW_TRACKING_URI']}/#/experiments/" in resumed.stdout
    )
    (recorded,) = runs_of(nodes.environment["MLFLOW_TRACKING_URI"], "jobs")  # the same one
    assert recorded.info.status == "FINISHED"
    assert "test/mse" in recorded.data.metrics

    local = schema.parse(
        RunConfig, LONG | {"workers": {"max": 0}, "tracking": {"uri": "none"}}, "test"
    )
    tree = schema.dump(local) | {"output": str(tmp_path / "alone")}
    schema.put(tree, "outer.steps", done + 50)
    run.train(schema.parse(RunConfig, tree, "test"))
    expected, found = parameters(str(tmp_path / "alone")), parameters(where)
    assert all(torch.equal(t, found[name]) for name, t in expected.items())


@pytest.mark.ray
def test_a_node_that_dies_costs_time_and_nothing_else(nodes: Nodes, tmp_path: Path) -> None:
    model = {
        "name": "mlp",
        "hidden": [200, 200],
    }  # whose updates are large enough to be kept by the node
    tree = LONG | {
        "model": model,
        "outer": LONG["outer"] | {"steps": 1000},
        "workers": {"min": 3, "max": 3, "cpus": 2.0, "wait_s": 600},  # one on each node
    }
    recipe, where = written(tmp_path / "r.yaml", tree), str(tmp_path / "out")
    third = nodes.start("worker", METATRAIN_CACHE=str(tmp_path / "cache"))
    sent = [
        "metatrain",
        "submit",
        str(recipe),
        "--address",
        nodes.address,
        "--set",
        f"output={where}",
        "--driver-cpus",
        "0",
    ]
    with subprocess.Popen(
        sent, env=nodes.environment, stdout=subprocess.PIPE, text=True
    ) as follower:
        until(lambda: steps(where) >= 100)
        nodes.fail(third)
        out, _ = follower.communicate(timeout=600)
    assert follower.returncode == 0, out
    assert "was lost" in out
    assert not re.search(r"\.py:\d+ --", out)  # as Ray logs
    assert "(raylet)" not in out
    tree |= {"workers": {"max": 0}, "tracking": {"uri": "none"}, "output": str(tmp_path / "alone")}
    run.train(schema.parse(RunConfig, tree, "test"))
    expected, found = parameters(str(tmp_path / "alone")), parameters(where)
    assert all(torch.equal(t, found[name]) for name, t in expected.items())


@pytest.mark.ray
def test_a_job_that_waits_says_for_what(nodes: Nodes, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", LONG)
    sent = [
        "metatrain",
        "submit",
        str(recipe),
        "--address",
        nodes.address,
        "--name",
        "large",
        "--driver-cpus",
        "99",
    ]
    sent += ["--set", f"output={tmp_path}/out"]
    with subprocess.Popen(
        sent, env=nodes.environment, stdout=subprocess.PIPE, text=True
    ) as follower:
        assert follower.stdout is not None
        *_, waits = [next(follower.stdout) for _ in range(5)]
        follower.send_signal(signal.SIGINT)
        rest, _ = follower.communicate(timeout=600)
    assert waits.startswith("waiting for 99 CPUs: ")
    assert "resources" in waits
    assert "the job keeps running" in rest
    assert follower.returncode == 130
    stopped = nodes.run("metatrain", "stop", "large", "--address", nodes.address)
    assert stopped.returncode == 2
    assert (
        "error: the job large waits for 99 CPUs to start, and Ray can only stop it then"
        in stopped.stderr
    )


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
def test_an_own_module_goes_along_and_the_job_that_fails_ends_with_its_error(
    nodes: Nodes, tmp_path: Path
) -> None:
    (tmp_path / "failing.py").write_text(OWN)
    (tmp_path / "secret.txt").write_text("stays here")
    recipe = written(
        tmp_path / "own.yaml", LONG | {"algorithm": {"name": "failing:Mine", "inner_lr": 0.01}}
    )
    done = nodes.submit(recipe, "--set", f"output={tmp_path}/out", "--name", "own")
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: job own failed: .*ZeroDivisionError.*in the third step.*", error(done.stderr)
    )
    assert steps(f"{tmp_path}/out") == 2  # what was learnt is kept
    token = tmp_path / "token"
    token.write_text(nodes.environment["RAY_AUTH_TOKEN"])
    elsewhere = {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_MODE": None}
    again = nodes.submit(recipe, "--set", f"output={tmp_path}/again", "--name", "own", **elsewhere)
    taken = "this cluster already has a job own, it has ended (failed): give another --name"
    assert last(again.stderr) == f"error: {taken}"


@pytest.mark.ray
def test_what_an_own_module_imports_goes_along_and_each_node_fetches_a_data_set_once(
    nodes: Nodes, s3: S3, tmp_path: Path
) -> None:
    text = OWN.replace("failing:", "importing:").replace(
        'raise ZeroDivisionError("in the third step")', "from beside.helpers import third; third()"
    )
    (tmp_path / "importing.py").write_text(text)
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "helpers.py").write_text("import neighbour\nthird = neighbour.third\n")
    reading = (
        "from pathlib import Path\ndef third():\n    assert "
        "Path('data/own.txt').read_text() == 'sent'\n"
    )
    (tmp_path / "neighbour.py").write_text(reading)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "own.txt").write_text("sent")
    uri, out = "s3://bucket/jobs/glyphs", "s3://bucket/runs/glyphs"
    remote.push(open_data("glyphs"), uri)
    size = (remote.fetch(uri) / "images.arrow").stat().st_size
    s3.log.write_text("")
    tree = GLYPHS | {"outer": GLYPHS["outer"] | {"steps": 4}}
    tree |= {"workers": {"min": 3, "max": 3, "wait_s": 600}}
    tree |= {"algorithm": {"name": "importing:Mine", "inner_lr": 0.4}, "evaluation": {"tasks": 4}}
    recipe = written(tmp_path / "own.yaml", tree)
    from_there = ["--set", f"family.data={uri}"]
    done = nodes.submit(recipe, *from_there, "--set", f"output={out}", "--send", "data/own.txt")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is not sent" not in done.stdout
    code = f"{out}/bundle/code"
    names = {info.base_name for at in ("", "/beside") for info in storage.listing(f"{code}{at}")}
    assert names == {"importing.py", "beside", "helpers.py", "neighbour.py"}
    assert sum(s3.asked("GET", "jobs/glyphs/images.arrow")) == 2 * size
    for cache in nodes.caches:
        (copy,) = cache.glob("fetched/glyphs-*/images.arrow")
        assert copy.stat().st_size == size

    done = nodes.submit(recipe, *from_there, "--set", f"output={tmp_path}/lacks")
    assert done.returncode == 2
    lacks = (
        r"worker worker-\d failed on .*: node \S+ \(\w{6}\) has no file data/own.txt: send it with "
    )
    lacks += "`metatrain submit --send data/own.txt`, or give a path that all nodes see"
    assert re.search(lacks, error(done.stderr)), done.stderr
    assert "Traceback" not in done.stdout


@pytest.mark.ray
def test_who_cannot_send_a_job_is_told_why(nodes: Nodes, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", LONG)
    env = nodes.environment
    none, wrong = dict(env) | {"HOME": str(tmp_path)}, env | {"RAY_AUTH_TOKEN": "wrong"}
    del none["RAY_AUTH_MODE"], none["RAY_AUTH_TOKEN"]
    hint = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
    dashboard = "give the head node's, such as http://HEAD:8265"
    here, mlflow = nodes.address, env["MLFLOW_TRACKING_URI"]
    closed, gcs = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{nodes.port}"
    other_ray = "import ray; ray.__version__ = '2.1.0'"
    other_python = "import platform; platform.python_version = lambda: '3.99.1'"
    cases = {  # sentence -> address, environment, what the program does first, options
        f"the cluster at {here} asks for a token, and none is set here: {hint}": (
            here,
            none,
            "",
            "",
        ),
        f"the cluster at {here} refuses the token that is set here: {hint}": (
            here,
            wrong,
            "",
            "",
        ),
        rf"no Ray dashboard answers at {closed} \(.*refused\): {dashboard}": (closed, env, "", ""),
        rf"no Ray dashboard answers at {mlflow} \(.*\): {dashboard}": (mlflow, env, "", ""),
        (
            rf"no Ray dashboard answers at {gcs} \(the server at that address is not "
            rf".*\): {dashboard}"
        ): (
            gcs,
            env,
            "",
            "",
        ),
        rf"the cluster at {here} runs Ray \S+, and this machine 2\.1\.0: install the same .*": (
            here,
            env,
            other_ray,
            "",
        ),
        rf"the cluster at {here} runs Python \S+, and this machine 3\.99: .*": (
            here,
            env,
            other_python,
            "",
        ),
        "--name 'a/b' cannot name a job: use letters, digits, '_', '-' and '.'": (
            here,
            env,
            "",
            "--name a/b",
        ),
    }
    started = {}
    for sentence, (address, environment, before, options) in cases.items():
        program = [
            sys.executable,
            "-c",
            f"{before}\nfrom tuning.cli import main; main()",
            "submit",
            str(recipe),
        ]
        to = ["--address", address, "--set", f"output={tmp_path}/out", *options.split()]
        started[sentence] = subprocess.Popen(
            [*program, *to], env=environment, stderr=subprocess.PIPE, text=True
        )
    for sentence, process in started.items():
        _, errors = process.communicate()
        assert process.returncode == 2
        assert re.fullmatch(f"error: {sentence}", last(errors)), errors
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_sent(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inner.py").write_text("y = 2")
    (tmp_path / "package" / "__pycache__").mkdir()
    (tmp_path / "package" / "__pycache__" / "inner.pyc").write_text("z")
    code = [tmp_path / "mine.py", tmp_path / "package"]
    job = Job("j", ["train", "recipe.yaml"], {"recipe.yaml": "name: j"}, code, {})
    packed = tmp_path / "packed"
    packed.mkdir()
    package.pack(job, packed)
    assert {path.name for path in packed.iterdir()} == {
        "metatrain", "cluster", "tuning", "recipe.yaml", "mine.py", "package"
    }  # fmt: skip
    files = [path for path in packed.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".py", ".cpp", ".h", ".yaml"}
    assert sum(path.stat().st_size for path in files) < 2 << 20
    (tmp_path / "tuning").mkdir()
    (tmp_path / "clash").mkdir()
    with pytest.raises(
        InputError, match="tuning has the name of a package that every job gets: rename it"
    ):
        package.pack(job._replace(code=[tmp_path / "tuning"]), tmp_path / "clash")
    (tmp_path / "package" / "large.bin").write_bytes(bytes(1 << 20))
    packed = tmp_path / "again"
    packed.mkdir()
    with pytest.raises(
        InputError,
        match=r"code has 1\.\d MiB, and at most 1 is sent; its largest file is package/large.bin",
    ):
        package.pack(job, packed)


def test_a_job_gets_what_is_named_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("WANTED", "yes")
    there = "http://head:8265"
    assert package.environment(there, ["WANTED"]) == {"WANTED": "yes"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert package.environment(there, []) == {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")
    assert package.environment(there, []) == {}  # a file of this machine
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:word@mlflow:5000")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI holds a password") as refused:
        package.environment(there, [])
    assert "word@" not in str(refused.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    with pytest.raises(InputError, match="is this machine's own, which the cluster cannot reach"):
        package.environment(there, [])
    with pytest.raises(InputError, match="--env NOWHERE names a variable that is not set here"):
        package.environment(there, ["NOWHERE"])


def test_the_commands_that_are_printed_work_in_the_users_shell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["metatrain"])
    here = "http://head:8265"
    assert commands(f"{here}/", "j", {"RAY_API_SERVER_ADDRESS": here}).splitlines() == [
        "follow: metatrain follow j", "stop:   metatrain stop j", "jobs:   metatrain jobs"
    ]  # fmt: skip
    for other in ({}, {"RAY_API_SERVER_ADDRESS": "http://elsewhere:1"}):
        assert (
            commands(here, "j", other).splitlines()[1]
            == f"stop:   metatrain stop j --address {here}"
        )
    sent = [
        "submit",
        "my recipe.yaml",
        "--name",
        "j",
        "--resume=/runs/x",
        "--set",
        "output=/runs/j",
        "--name=k",
    ]
    assert (
        console.again(sent, "--resume", "auto")
        == "metatrain submit 'my recipe.yaml' --set output=/runs/j --resume auto"
    )


def test_files_go_along_below_their_own_paths(tmp_path: Path) -> None:
    for name in (
        "data/a.csv",
        "data/.hidden",
        "data/__pycache__/a.pyc",
        "data/deep/b.csv",
        "single.csv",
        ".env",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "linked.csv").symlink_to("data/a.csv")
    os.utime(tmp_path / "single.csv", (0, 0))  # which a zip file could not say
    found = sent_files(["data", "./data/../single.csv", str(tmp_path / "linked.csv"), ".env"])
    assert set(found) == {"data/a.csv", "data/deep/b.csv", "single.csv", "linked.csv", ".env"}
    assert is_sent("./data/", found)
    assert is_sent("data/deep/../a.csv", found)
    assert not is_sent("dat", found)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x.py").write_text("x = 1")
    job = Job(
        "j",
        [],
        {"recipe.yaml": "name: j"},
        [tmp_path / "own"],
        {},
        sent=found | sent_files(["own/x.py"]),
    )
    packed = tmp_path / "packed"
    packed.mkdir()
    package.pack(job, packed)
    assert (packed / "data" / "deep" / "b.csv").read_text() == "data/deep/b.csv"
    assert (packed / "single.csv").stat().st_mtime > 1e9
    (tmp_path / "own" / "x.py").write_text("x = 2")
    for name in ("recipe.yaml", "tuning", "metatrain/x.csv"):
        clash = tmp_path / name.replace("/", "-")
        clash.mkdir()
        with pytest.raises(
            InputError, match=f"--send {name} has the name of what every job gets, {name[:6]}"
        ):
            package.pack(job._replace(sent={name: tmp_path / "single.csv"}), clash)
    (tmp_path / "clash").mkdir()
    with pytest.raises(
        InputError, match=r"--send own/x\.py has the name of one of your own modules: rename it"
    ):
        package.pack(job._replace(sent={"own/x.py": tmp_path / "single.csv"}), tmp_path / "clash")


def test_the_command_in_a_jobs_description_has_no_password() -> None:
    again = (
        "metatrain submit a.yaml --set family.a=postgres://me:hunter2@db/x --set "
        "'family.b=https://u:p@ss@h/y z'"
    )
    job = Job("j", [], {}, [], {}, again=again)
    assert job.metadata()["again"] == (
        "metatrain submit a.yaml --set family.a=postgres://***@db/x --set "
        "'family.b=https://***@h/y z'"
    )
    plain = (
        "metatrain submit a.yaml --address http://head:8265 --set "
        "output=s3://bucket/a@b --resume auto"
    )
    assert job._replace(again=plain).metadata()["again"] == plain


def test_what_cannot_go_along_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "above.csv").write_text("above")
    for name, target in {
        "out": "../above.csv",
        "away": "..",
        "broken": "nothing",
        "loop/again": "../loop",
    }.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).symlink_to(target)
    (here / "empty").mkdir()
    os.mkfifo(here / "pipe")
    (here / "loop" / "a.csv").write_text("a")
    with (here / "large.bin").open("wb") as file:
        file.truncate(51 << 20)
    (here / "this").symlink_to("that")
    (here / "that").symlink_to("this")
    refusals = {
        "": "names no file",
        "this": "this.* is a link (that leads to itself|to .*this, which does not exist)",
        "this/below": "this.*( is a link that leads to itself| does not exist)",
        "../above.csv": "lies outside of this folder",
        str(tmp_path / "above.csv"): "lies outside of this folder",
        "out": "out is a link to .*above.csv, outside of this folder: copy it here",
        "away": "away is a link to .*, outside of this folder",
        "broken": "broken is a link to .*nothing, which does not exist",
        "loop": "loop/again is a link to a folder that holds it: remove the link",
        "missing.csv": "missing.csv does not exist: correct the path",
        "empty": "holds no files",
        "pipe": "pipe is neither a file nor a folder",
        "large.bin": (
            r"51\.0 MiB, and at most 50 are sent; the largest file is large.bin: push images "
            r"with `metatrain data"
        ),
    }
    for given, why in refusals.items():
        with pytest.raises(InputError, match=rf"--send .*{why}"):
            sent_files([given])


@pytest.mark.parametrize(
    ("tree", "setting"),
    [
        (GLYPHS, "family.data=data/glyphs"),
        (GLYPHS, "family.data=./glyphs"),
        (GLYPHS, "evaluation.family.data=other/glyphs"),
        (GLYPHS, "model.weights=first.safetensors"),
        (
            SINUSOID | {"family": {"name": "table", "group": "g", "target": "y", "data": ""}},
            "family.data=houses.csv",
        ),
    ],
)
def test_what_a_job_reads_is_sent_or_seen_by_all_nodes(
    tree: dict[str, Any], setting: str, tmp_path: Path
) -> None:
    recipe = written(tmp_path / "r.yaml", tree)
    to = ["--address", "http://127.0.0.1:1", "--set", f"output={tmp_path}", "--set", setting]
    done = command("submit", str(recipe), *to)
    assert done.returncode == 2
    key, _, value = setting.removeprefix("evaluation.").partition("=")
    assert (
        f"error: {key} is {value}, a path in this folder, which the cluster does not see: send it "
        "with" in done.stderr
    )
    (tmp_path / value).parent.mkdir(exist_ok=True)
    (tmp_path / value).write_text("sent")
    done = command("submit", str(recipe), *to, "--send", value)
    assert "no Ray dashboard answers" in done.stderr  # which is asked next


def test_the_file_that_an_own_family_names_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(
        Path(__file__).parent.parent / "recipes" / "rooms", tmp_path, dirs_exist_ok=True
    )
    monkeypatch.setattr(sys, "path", sys.path[:])  # which gets this folder
    to = ["--address", "http://127.0.0.1:1", "--set", f"output={tmp_path}/out"]
    done = command("submit", "rooms.yaml", *to)
    assert (
        "family.data is rooms.csv, a path in this folder, which the cluster does not see"
        in done.stderr
    )
    assert (
        "no Ray dashboard answers"
        in command("submit", "rooms.yaml", *to, "--send", "rooms.csv").stderr
    )
    for name in ("rooms", "helpers"):
        del sys.modules[name]  # other tests have modules of these names


def test_what_a_job_writes_outlives_it(tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", GLYPHS)
    to = ["--address", "http://127.0.0.1:1", "--set", f"output={tmp_path}"]
    for key, arguments in (
        ("checkpoint.uri", ["--set", "checkpoint.uri=x"]),
        ("--resume", ["--resume", "x"]),
    ):
        done = command("submit", str(recipe), *to, *arguments)
        assert done.returncode == 2
        assert f"error: {key} is x, and a job's own folder ends with it" in done.stderr


@pytest.mark.parametrize("output", ["", "--set output=runs/first"])
def test_results_need_a_place_that_outlives_the_job(output: str, tmp_path: Path) -> None:
    recipe = written(tmp_path / "r.yaml", SINUSOID)
    done = command("submit", str(recipe), "--address", "http://127.0.0.1:1", *output.split())
    assert done.returncode == 2
    assert (
        "and a job's own folder ends with it: give a place that outlives it, such as "
        "s3://bucket/first" in done.stderr
    )
