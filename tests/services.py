"""What runs beside a test: commands, a storage, MLflow servers and the nodes of a cluster."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.request import Request, urlopen

import psutil
import pytest
import yaml

from metatrain import console, figures
from tuning.cli import app


def cache_in(folder: Path) -> Path:
    """A data cache of its own, but for the compiled kernels."""
    folder.mkdir()
    (folder / ".compiled").symlink_to((Path(os.environ["METATRAIN_CACHE"]) / ".compiled").resolve())
    return folder


SAVE = figures.save


@contextmanager
def drawing() -> Iterator[None]:
    """Pictures are drawn, which conftest.py leaves out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save", SAVE)
        yield


def store(path: Path) -> str:
    return f"sqlite:///{path / 'mlflow.db'}"


def free_port() -> int:
    """A port that nobody listens on, from the range that neither the system gives to those who ask
    for any port nor Ray to its workers: until a server listens there, another one could take it.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


class S3(NamedTuple):
    """A storage on loopback, where a bucket is there from the beginning."""

    environment: dict[str, str]  # of processes that use it
    read_only: str  # its address for those that may not write
    log: Path

    def asked(self, method: str, path: str) -> list[int]:
        """The bytes of each answer to such a request so far."""
        lines = [line.split() for line in self.log.read_text().splitlines()]
        return [int(size) for _, m, p, size in lines if (m, p) == (method, f"/bucket/{path}")]


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

    def answers() -> bool:
        assert process.poll() is None, "the MLflow server ended"
        with suppress(OSError), urlopen(f"{uri}/health", timeout=60) as answer:
            return bool(answer.read() == b"OK")
        return False

    try:
        until(answers)
        yield uri, process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


TOO_LATE = "node timed out during startup"  # what Ray says after 30 s
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
        log = self._folder / name
        until(lambda: "Ray runtime started" in log.read_text() or process.poll() is not None)
        if process.poll() is not None:  # a busy machine: compose starts it again, too
            assert TOO_LATE in log.read_text(), log.read_text()
            return self.start(service, *options, **environment)
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
            command, env=known, capture_output=True, text=True, check=False, timeout=800
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def submit(self, file: Path, *arguments: str, **environment: str | None) -> Done:
        return self.run(
            "metatrain", "submit", str(file), "--address", self.address, *arguments, **environment
        )

    def alive(self, kind: Literal["nodes", "actors"]) -> list[dict[str, Any]]:
        """Nodes or actors that are alive, of the dashboard: Ray's command takes seconds."""
        alive = "filter_keys=state&filter_predicates=%3D&filter_values=ALIVE"
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        with urlopen(Request(f"{self.address}/api/v0/{kind}?{alive}", headers=token)) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
        return found

    def fail(self, process: subprocess.Popen[bytes]) -> None:
        """As a machine that loses its power."""
        gone = psutil.Process(process.pid)
        for each in (gone, *gone.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):  # it ended with those before it
                each.kill()

    def end(self) -> None:
        for process in reversed(self._started):
            process.terminate()
        for process in self._started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(self._short, ignore_errors=True)


def until(true: Callable[[], object], seconds: float = 600) -> None:
    """Wait until it is true: so many seconds bound only what hangs."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


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
