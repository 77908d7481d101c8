"""What several tests share: a private data cache, small recipes, one local Ray cluster."""

from __future__ import annotations

import io
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import pytest
import torch
import yaml

from cluster.config import RunConfig
from metatrain import console, schema
from metatrain.core import Context, Ticket, Work, generator_for
from metatrain.data.images import ImageStore
from metatrain.data.sources import import_data
from tuning.cli import app


@pytest.fixture(scope="session", autouse=True)
def _private_caches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test reads or writes the user's data cache, and none talks to an MLflow or Ray of
    theirs.
    """
    compiler = re.sub(r"\W", "", os.environ.get("CXX", ""))
    kernels = request.config.cache.mkdir(
        f"kernels{compiler}"
    )  # which pytest keeps: to compile them takes seconds
    os.environ["METATRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    (Path(os.environ["METATRAIN_CACHE"]) / ".compiled").symlink_to(kernels)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        os.environ.pop(name, None)
    torch.set_num_threads(1)


def cache_in(folder: Path) -> Path:
    """A data cache of its own, but for the compiled kernels."""
    folder.mkdir()
    (folder / ".compiled").symlink_to((Path(os.environ["METATRAIN_CACHE"]) / ".compiled").resolve())
    return folder


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and stores that a test leaves in the working directory are its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def ray_cluster(_s3: S3) -> Iterator[None]:
    """A local Ray with more CPU slots than this machine may have, and one for a GPU; it knows the
    storage.
    """
    import ray

    with pytest.MonkeyPatch.context() as patch:
        for name, value in _s3.environment.items():
            patch.setenv(name, value)
        ray.init(
            address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def _omniglot_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Omniglot, imported once into a cache of its own."""
    source = Path(os.environ.get("METATRAIN_DATA", "")) / "omniglot"
    if not (source / "images_background.zip").exists():
        pytest.skip("METATRAIN_DATA has no omniglot/images_background.zip")
    folder = cache_in(tmp_path_factory.mktemp("omniglot") / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METATRAIN_CACHE", str(folder))
        import_data("omniglot", source)
    return folder


@pytest.fixture
def omniglot(_omniglot_cache: Path, monkeypatch: pytest.MonkeyPatch) -> ImageStore:
    monkeypatch.setenv("METATRAIN_CACHE", str(_omniglot_cache))
    return ImageStore.open("omniglot")


def store(path: Path) -> str:
    return f"sqlite:///{path / 'mlflow.db'}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class S3(NamedTuple):
    """A storage on loopback, where a bucket is there from the beginning."""

    environment: dict[str, str]  # of processes that use it
    read_only: str  # its address for those that may not write
    log: Path

    def asked(self, method: str, path: str) -> list[int]:
        """The bytes of each answer to such a request so far."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [int(size) for _, m, p, size in lines if (m, p) == (method, f"/bucket/{path}")]


@pytest.fixture(scope="session")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    log = tmp_path_factory.mktemp("s3") / "log"
    port, read_only = free_port(), free_port()
    command = [
        sys.executable,
        str(Path(__file__).parent / "s3.py"),
        str(port),
        str(read_only),
        str(log),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"serving\n"
            urlopen(Request(f"http://127.0.0.1:{port}/bucket", method="PUT")).close()
            keys = {
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
            keys["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            yield S3(keys, f"http://127.0.0.1:{read_only}", log)
        finally:
            process.kill()


@pytest.fixture
def s3(_s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in _s3.environment.items():
        monkeypatch.setenv(name, value)
    return _s3


@contextmanager
def mlflow_in(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server whose store is in a folder: its address and its process."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += [
        "--backend-store-uri",
        store(folder),
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        start_new_session=True,
        cwd=folder,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            time.sleep(0.5)
            try:
                with urlopen(f"{uri}/health", timeout=2) as answer:
                    if answer.read() == b"OK":
                        break
            except OSError:
                continue
        else:
            pytest.fail("the MLflow server did not start")
        yield uri, process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with mlflow_in(tmp_path) as served:
        yield served


COMPOSE = yaml.safe_load((Path(__file__).parent.parent / "infra" / "compose.yaml").read_text())


class Nodes:
    """A Ray head with a token and other nodes, by the commands of infra/compose.yaml, and all that
    their jobs need.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._short = Path(
            tempfile.mkdtemp(prefix="mt")
        )  # Ray's sockets are files, whose names must not be long
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard}"
        here = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = os.environ | here | token | environment  # of who sends jobs, too
        self.caches = [cache_in(folder / "cache-head"), cache_in(folder / "cache-node")]
        self._folder, self._started = folder, []

    def temporary(self) -> Path:
        """Of a node's own, as on a machine of its own: a node unpacks what a job ships over what is
        there.
        """
        return Path(tempfile.mkdtemp(dir=self._short))

    def start(self, service: str, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """A node as compose starts it, that runs until it is told to end."""
        name = f"ray-{len(self._started)}.log"
        ports = {
            "head:6379": f"127.0.0.1:{self.port}",
            "=6379": f"={self.port}",
            "=8265": f"={self.dashboard}",
        }
        command = list(COMPOSE["services"][service]["command"])
        for before, now in ports.items():
            command = [part.replace(before, now) for part in command]
        alone = (
            f"--dashboard-agent-listen-port={free_port()}"  # there are other nodes on this machine
        )
        command += [*options, alone, f"--temp-dir={self.temporary()}"]
        with (self._folder / name).open("wb") as log:
            process = subprocess.Popen(
                command,
                env=self.environment | environment,
                stdout=log,
                stderr=log,
                cwd=self._folder,
            )
        self._started.append(process)
        until(lambda: "Ray runtime started" in (self._folder / name).read_text())
        return process

    def run(self, *command: str, **environment: str | None) -> Done:
        """A command that talks to the cluster, as a process of its own; None is for a variable that
        is not set.
        """
        known = {
            name: value
            for name, value in (self.environment | environment).items()
            if value is not None
        }
        done = subprocess.run(
            command, env=known, capture_output=True, text=True, check=False, timeout=280
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def submit(self, file: Path, *arguments: str, **environment: str | None) -> Done:
        return self.run(
            "metatrain", "submit", str(file), "--address", self.address, *arguments, **environment
        )

    def fail(self, process: subprocess.Popen[bytes]) -> None:
        """As a machine that loses its power."""
        listed = subprocess.run(
            ["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
        gone = {process.pid}
        for pid, parent in sorted(
            (int(pid), int(parent)) for pid, parent in map(str.split, listed.splitlines())
        ):
            if parent in gone:
                gone.add(pid)
        for pid in gone:
            os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self._short, ignore_errors=True)


@pytest.fixture(scope="session")
def nodes(_s3: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes with a cache each, that know a storage and an MLflow server."""
    folder = tmp_path_factory.mktemp("nodes")
    with mlflow_in(folder) as (server, _):
        nodes = Nodes(folder, _s3.environment | {"MLFLOW_TRACKING_URI": server})
        try:
            nodes.start("head", METATRAIN_CACHE=str(nodes.caches[0]))
            nodes.start("worker", METATRAIN_CACHE=str(nodes.caches[1]))
            yield nodes
        finally:
            nodes.end()


def until(true: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


SINUSOID: dict[str, Any] = {
    "name": "sinusoid",
    "family": {"name": "sinusoid", "shots": 5, "queries": 5},
    "model": {"name": "mlp", "hidden": [16, 16]},
    "algorithm": {"name": "maml", "inner_lr": 0.01},
    "outer": {"steps": 20, "tasks_per_step": 10, "tasks_per_ticket": 3, "lr": 0.001},
    "evaluation": {"tasks": 30, "tasks_per_ticket": 7},
    "workers": {"max": 0},
    "tracking": {"uri": "none"},
}
GLYPHS: dict[str, Any] = SINUSOID | {
    "name": "glyphs",
    "family": {"name": "fewshot", "data": "glyphs"},
    "model": {"name": "conv4", "filters": 8, "pool": "stride", "features": "mean"},
    "algorithm": {"name": "maml", "inner_lr": 0.4},
    "outer": {"steps": 20, "tasks_per_step": 5, "tasks_per_ticket": 2, "lr": 0.003},
}
REPTILE: dict[str, Any] = GLYPHS | {
    "name": "reptile",
    "family": {"name": "fewshot", "data": "glyphs", "shots": 4},
    "algorithm": {"name": "reptile", "inner_lr": 0.001, "inner_steps": 3, "inner_batch": 7},
    "outer": {
        "steps": 20,
        "tasks_per_step": 5,
        "tasks_per_ticket": 2,
        "optimizer": "SGD",
        "lr": 1.0,
    },
}
SHORT = {"steps": 4, "tasks_per_step": 5, "tasks_per_ticket": 2, "lr": 0.003}
PROBES: dict[str, dict[str, Any]] = {  # a member of each kind of meta-learning
    "sinusoid": SINUSOID,
    "maml-conv4": GLYPHS,
    "maml-conv4-fused": GLYPHS | {"model": GLYPHS["model"] | {"filters": 16}, "outer": SHORT},
    "reptile-conv4": REPTILE,
    "anil": GLYPHS
    | {"algorithm": {"name": "maml", "inner_lr": 0.4, "adapts": ["head.*"]}, "outer": SHORT},
    "meta-sgd": GLYPHS
    | {
        "algorithm": {"name": "meta_sgd", "initial_lr": 0.4},
        "outer": SHORT | {"groups": {"algorithm.*": {"lr": 0.1}}},
    },
    "layer-step-rates": SINUSOID
    | {
        "algorithm": {
            "name": "meta_sgd",
            "initial_lr": 0.01,
            "inner_steps": 2,
            "rates": "layer_step",
        }
    },
    "prototypical": GLYPHS
    | {
        "algorithm": {"name": "prototypical"},
        "norm": "running",
        "outer": SHORT,
        "evaluation": {
            "tasks": 30,
            "tasks_per_ticket": 7,
            "norm": "running",
            "family": {"ways": 3},
        },
    },
    "recurrent": SINUSOID
    | {
        "family": {"name": "series", "shots": 4, "queries": 3},
        "model": {
            "name": "mlp",
            "hidden": [8],
            "head": {"name": "memory", "cell": "lstm", "hidden": 8},
        },
        "algorithm": {"name": "recurrent"},
    },
    "recurrent-conv4": GLYPHS
    | {
        "model": GLYPHS["model"] | {"head": {"name": "memory", "cell": "gru", "hidden": 8}},
        "algorithm": {"name": "recurrent"},
        "outer": SHORT,
    },
    "rl2": SINUSOID
    | {
        "family": {"name": "bandit", "pulls": 4, "episodes": 3},
        "model": {
            "name": "mlp",
            "hidden": [],
            "head": {"name": "memory", "cell": "gru", "hidden": 8},
        },
        "algorithm": {"name": "recurrent"},
    },
    "maml-navigation": SINUSOID
    | {
        "family": {"name": "navigation", "horizon": 8, "episodes": 4},
        "algorithm": {"name": "maml", "inner_lr": 0.1},
        "outer": SHORT,
    },
}


def config(base: dict[str, Any], **overrides: Any) -> RunConfig:
    """A run's configuration; overrides are dotted keys with __ for the dot."""
    tree = schema.dump(schema.parse(RunConfig, base, "test"))
    for key, value in overrides.items():
        schema.put(tree, key.replace("__", "."), value)
    return schema.parse(RunConfig, tree, "test")


def context(seed: int = 0, work: Work = "update") -> Context:
    ticket = Ticket(work, "train", 0, 0)
    return Context(ticket, generator_for(seed, ticket, "adaptation"))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str) -> Done:
    """What `metatrain ARGUMENTS` does, in this process: a second less than a process of its own."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level, code, on_sigint = (
        root.handlers[:],
        root.level,
        0,
        signal.getsignal(signal.SIGINT),
    )
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["metatrain", *arguments])
        root.handlers.clear()
        try:
            console.main(app)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            signal.signal(signal.SIGINT, on_sigint)
    return Done(code, out.getvalue(), err.getvalue())
