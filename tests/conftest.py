"""What several tests share: a private data cache, small recipes, one local Ray cluster."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import pytest
import torch

from cluster.config import RunConfig
from metatrain import cli
from metatrain import recipe as recipes
from metatrain.core import Context, Ticket, generator_for
from metatrain.tasks.images import ImageStore
from metatrain.tasks.sources import import_data
from tuning.cli import app


@pytest.fixture(scope="session", autouse=True)
def _private_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's data cache, and none talks to an MLflow or Ray of theirs."""
    os.environ["METATRAIN_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and stores that a test leaves in the working directory are its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with more CPU slots than this machine may have, and one for a GPU."""
    import ray

    ray.init(address="local", num_cpus=4, num_gpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def _omniglot_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Omniglot, imported once into a cache of its own."""
    source = Path(os.environ.get("METATRAIN_DATA", "")) / "omniglot"
    if not (source / "images_background.zip").exists():
        pytest.skip("METATRAIN_DATA has no omniglot/images_background.zip")
    folder = tmp_path_factory.mktemp("omniglot")
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


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Its address and its process."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", store(tmp_path), "--artifacts-destination", str(tmp_path / "artifacts")]
    process = subprocess.Popen(
        command, env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, start_new_session=True, cwd=tmp_path
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
    "outer": {"steps": 20, "tasks_per_step": 5, "tasks_per_ticket": 2, "optimizer": "SGD", "lr": 1.0},
}
SHORT = {"steps": 4, "tasks_per_step": 5, "tasks_per_ticket": 2, "lr": 0.003}
PROBES: dict[str, dict[str, Any]] = {  # a member of each kind of meta-learning
    "sinusoid": SINUSOID,
    "maml-conv4": GLYPHS,
    "reptile-conv4": REPTILE,
    "anil": GLYPHS | {"algorithm": {"name": "maml", "inner_lr": 0.4, "adapts": ["head.*"]}, "outer": SHORT},
    "meta-sgd": GLYPHS
    | {
        "algorithm": {"name": "meta_sgd", "initial_lr": 0.4},
        "outer": SHORT | {"groups": {"algorithm.*": {"lr": 0.1}}},
    },
    "layer-step-rates": SINUSOID
    | {"algorithm": {"name": "meta_sgd", "initial_lr": 0.01, "inner_steps": 2, "rates": "layer_step"}},
    "prototypical": GLYPHS
    | {
        "algorithm": {"name": "prototypical"},
        "norm": "running",
        "outer": SHORT,
        "evaluation": {"tasks": 30, "tasks_per_ticket": 7, "norm": "running", "family": {"ways": 3}},
    },
    "recurrent": SINUSOID
    | {
        "family": {"name": "series", "shots": 4, "queries": 3},
        "model": {"name": "rnn", "cell": "lstm", "hidden": 8, "body": {"name": "mlp", "hidden": [8]}},
        "algorithm": {"name": "recurrent"},
    },
    "recurrent-conv4": GLYPHS
    | {
        "model": {"name": "rnn", "cell": "gru", "hidden": 8, "body": GLYPHS["model"]},
        "algorithm": {"name": "recurrent"},
        "outer": SHORT,
    },
    "rl2": SINUSOID
    | {
        "family": {"name": "bandit", "pulls": 4, "episodes": 3},
        "model": {"name": "rnn", "cell": "gru", "hidden": 8, "body": {"name": "mlp", "hidden": []}},
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
    tree = recipes.dump(recipes.parse(RunConfig, base, "test"))
    for key, value in overrides.items():
        recipes.put(tree, key.replace("__", "."), value)
    return recipes.parse(RunConfig, tree, "test")


def context(seed: int = 0) -> Context:
    ticket = Ticket("update", "train", 0, 0)
    return Context(ticket, generator_for(seed, ticket, "adaptation"))


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str) -> Done:
    """What `metatrain ARGUMENTS` does, in this process: a second less than a process of its own."""
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level, code, on_sigint = root.handlers[:], root.level, 0, signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["metatrain", *arguments])
        root.handlers.clear()
        try:
            cli.main(app)
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            signal.signal(signal.SIGINT, on_sigint)
    return Done(code, out.getvalue(), err.getvalue())
