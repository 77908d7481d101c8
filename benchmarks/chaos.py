"""A run on two Ray nodes to which everything happens that can, and one to which nothing does.

    python benchmarks/chaos.py [--steps 500] [--kills 20] [--seed 0]

Workers are killed, a node crashes and returns, a worker stops for ever, one is slowed tenfold,
MLflow ends and starts again, the driver is killed and resumed, a checkpoint is damaged: by a
schedule that the seed decides. Then the parameters must equal, bit for bit, those of a run in this
process, and metrics.jsonl and MLflow must hold each step once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import psutil
import torch
import yaml

from cluster import checkpoint, run
from cluster.config import RunConfig
from metatrain import schema

RECIPE: dict[str, Any] = {
    "name": "chaos",
    "family": {"name": "sinusoid"},
    "model": {"name": "mlp", "hidden": [40, 40]},
    "algorithm": {"name": "maml", "inner_lr": 0.01, "inner_steps": 10},
    "outer": {"steps": 500, "tasks_per_step": 1600, "tasks_per_ticket": 100, "lr": 0.001},
    "validation": {"every_steps": 100, "tasks": 20},
    "evaluation": {"tasks": 20},
    "checkpoint": {"every_steps": 10, "keep": 3},
    "workers": {"min": 1, "max": 4, "wait_s": 600},
}
WORKER = re.compile(r"^ray::.*RayWorker")


class Event(NamedTuple):
    """What happens as soon as so many outer steps were made."""

    step: int
    what: str


def schedule(steps: int, kills: int, seed: int) -> list[Event]:
    """All that happens, in order; the driver is killed twice, each time with what surrounds it."""
    drawn = random.Random(seed)
    events = [
        Event(drawn.randrange(steps // 20, steps - steps // 20), "kill a worker")
        for _ in range(kills)
    ]
    named = {
        0.15: "end MLflow",
        0.22: "start MLflow",
        0.30: "kill the driver",
        0.40: "crash a node",
        0.48: "start a node",
        0.55: "stop a worker for ever",
        0.62: "slow a worker",
        0.70: "end MLflow",
        0.72: "end the slowing",
        0.75: "start MLflow",
        0.90: "kill the driver and damage its checkpoint",  # resuming needs MLflow
    }
    events += [Event(int(part * steps), what) for part, what in named.items()]
    return sorted(events)


class Chaos:
    """A cluster of two nodes, a server, a driver, and what happens to them."""

    def __init__(self, folder: Path, steps: int) -> None:
        from ray.cluster_utils import Cluster

        self.folder, self.steps = folder, steps
        self.done: Counter[str] = Counter()
        head = {"num_cpus": 2, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
        self.node = self.cluster.add_node(num_cpus=2)
        self.port = _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.server: subprocess.Popen[bytes] | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.slowed = threading.Event()
        schema.put(RECIPE, "outer.steps", steps)
        (folder / "chaos.yaml").write_text(yaml.safe_dump(RECIPE))
        self.start_mlflow()
        self.start_driver()

    def start_mlflow(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        self.server = subprocess.Popen(
            command,
            cwd=self.folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def end_mlflow(self) -> None:
        if self.server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()

    def start_driver(self) -> None:
        """Start or resume the run, which needs MLflow at that time."""
        _until(lambda: _answers(f"{self.uri}/health"))
        command = [sys.executable, "-m", "tuning.cli", "train", "chaos.yaml", "--resume", "auto"]
        command += ["--address", self.cluster.address, "--set", "output=out"]
        with (self.folder / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                [*command, "--set", f"tracking.uri={self.uri}"],
                cwd=self.folder,
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
                stdout=log,
                stderr=log,
            )

    def step(self) -> int:
        """The outer steps that metrics.jsonl holds."""
        path = self.folder / "out" / "metrics.jsonl"
        lines = path.read_bytes().splitlines() if path.exists() else []
        with suppress(ValueError, IndexError):
            return int(json.loads(lines[-1])["step"])
        return 0

    def workers(self) -> list[psutil.Process]:
        """The workers' processes on the two nodes."""
        own = {p.pid for p in psutil.Process().children(recursive=True)}
        found = []
        for process in psutil.process_iter(["cmdline"]):
            title = (process.info["cmdline"] or [""])[0]
            if WORKER.match(title) and process.pid in own:
                found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def one(self, act: Callable[[psutil.Process], object], drawn: random.Random) -> bool:
        """Do something to one of the workers; whether there was any."""
        for process in drawn.sample(found := self.workers(), len(found)):
            with suppress(psutil.NoSuchProcess):  # it ended just now
                act(process)
                return True
        return False

    def happen(self, what: str, drawn: random.Random) -> None:
        """Do one of the things that the schedule names.

        The driver stands still meanwhile: a node takes seconds to start, and the run would end
        before all has happened.
        """
        driver = self.driver
        if driver is not None:
            driver.send_signal(signal.SIGSTOP)
        self.done[what] += self._happened(what, drawn)
        if driver is not None:
            driver.send_signal(signal.SIGCONT)  # nothing, if it was killed

    def _happened(self, what: str, drawn: random.Random) -> bool:
        if what == "kill a worker":
            return self.one(psutil.Process.kill, drawn)
        if what == "stop a worker for ever":
            return self.one(psutil.Process.suspend, drawn)
        if what == "slow a worker":
            self.slowed.clear()
            return self.one(self._start_slowing, drawn)
        if what == "crash a node":
            self.cluster.remove_node(self.node, allow_graceful=False)
        elif what == "start a node":
            self.node = self.cluster.add_node(num_cpus=2)
        elif what == "end the slowing":
            self.slowed.set()
        elif what == "end MLflow":
            self.end_mlflow()
        elif what == "start MLflow":
            self.start_mlflow()
        elif what.startswith("kill the driver") and self.driver is not None:
            self.driver.kill()
            self.driver.wait()
            if "damage" in what:
                newest = checkpoint.latest(str(self.folder / "out" / "checkpoints"))
                path = Path(str(newest)) / "learner.safetensors"
                data = bytearray(path.read_bytes())
                data[len(data) // 2] ^= 255
                path.write_bytes(data)
            self.start_driver()
        return True

    def _start_slowing(self, process: psutil.Process) -> None:
        process.resume()  # raises NoSuchProcess if it has ended
        threading.Thread(target=self._slow, args=(process,), daemon=True).start()

    def _slow(self, process: psutil.Process) -> None:
        """Let a process run a tenth of the time."""
        with suppress(psutil.NoSuchProcess):
            while not self.slowed.is_set():
                process.suspend()
                time.sleep(0.18)
                process.resume()
                time.sleep(0.02)

    def end(self) -> None:
        self.slowed.set()
        if self.driver is not None:
            self.driver.kill()
        self.end_mlflow()
        self.cluster.shutdown()


@contextmanager
def chaos(folder: Path, steps: int) -> Iterator[Chaos]:
    made = Chaos(folder, steps)
    try:
        yield made
    finally:
        made.end()


def disturbed(folder: Path, steps: int, kills: int, seed: int, limit_s: float) -> Counter[str]:
    """Train with all that the schedule has; what happened, and how often."""
    drawn = random.Random(seed)
    with chaos(folder, steps) as running:
        events, deadline = schedule(steps, kills, seed), time.monotonic() + limit_s
        while running.driver is not None and running.driver.poll() is None:
            assert time.monotonic() < deadline, (folder / "driver.log").read_text()[-5000:]
            step = running.step()
            while events and step >= events[0].step:
                event = events.pop(0)
                assert step < steps, f"the run ended before: {event}"
                print(f"step {step}: {event.what}", flush=True)
                running.happen(event.what, drawn)
            time.sleep(0.05)
        log = (folder / "driver.log").read_text()
        assert running.driver is not None
        assert running.driver.returncode == 0, log[-5000:]
        assert not events, f"the run ended before {events}"
        check_records(folder, running.uri, steps)
        return running.done


def check_records(folder: Path, uri: str, steps: int) -> None:
    """metrics.jsonl and MLflow hold each step once; no half file is left."""
    from mlflow.tracking import MlflowClient

    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(steps + 1))
    place = json.loads((folder / "out" / "mlflow.json").read_text())
    client = MlflowClient(uri)
    history = client.get_metric_history(place["run_id"], "train/loss_after")
    assert sorted(metric.step for metric in history) == list(range(1, steps + 1))
    written = {row["step"]: row.get("train/loss_after") for row in rows}
    assert all(metric.value == written[metric.step] for metric in history)
    assert client.get_run(place["run_id"]).info.status == "FINISHED"
    left = [str(path) for path in (folder / "out").rglob("*") if path.name.endswith(".partial")]
    assert not left, left
    for saved in (folder / "out" / "checkpoints").iterdir():
        assert (saved / "manifest.json").exists(), f"{saved} is half a checkpoint"


def undisturbed(folder: Path, steps: int) -> dict[str, torch.Tensor]:
    """The parameters of the same run in this process."""
    schema.put(RECIPE, "outer.steps", steps)
    tree = RECIPE | {"workers": {"max": 0}, "tracking": {"uri": "none"}}
    run.train(schema.parse(RunConfig, tree | {"output": str(folder / "alone")}, "the benchmark"))
    return parameters(folder / "alone")


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    """What the newest checkpoint of a run's folder holds."""
    return checkpoint.load(str(folder)).tensors


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=30) as answer:
            return bool(answer.read() == b"OK")
    except OSError:
        return False


def _until(true: Callable[[], bool], seconds: float = 600.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _free_port() -> int:
    """A port that neither the system gives to those who ask for any port nor Ray to its workers:
    nobody takes it before MLflow listens there, or until MLflow is back.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def compare(steps: int, kills: int, seed: int, limit_s: float) -> Counter[str]:
    """Both runs, compared; raises AssertionError if anything differs."""
    with tempfile.TemporaryDirectory(prefix="chaos") as name:
        folder = Path(name)
        done = disturbed(folder, steps, kills, seed, limit_s)
        expected, found = undisturbed(folder, steps), parameters(folder / "out")
        assert expected.keys() == found.keys()
        assert all(torch.equal(t, found[key]) for key, t in expected.items()), "other bits"
        log = (folder / "driver.log").read_text()
        done["late tickets that an idle worker got, too"] = log.count("gets its tickets, too")
        done["processes that were replaced"] = log.count("its process is replaced")
        return done


def main() -> None:
    import measure

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    done = compare(given.steps, given.kills, given.seed, limit_s=3600)
    rows = [[what, str(count)] for what, count in sorted(done.items())]
    text = (
        f"{measure.machine('ray')}; seed {given.seed}, {given.steps} outer steps of 16 tickets on "
        f"4 workers of 2 nodes, {time.monotonic() - started:.0f} s\n\n"
        f"{measure.table(['what happened', 'times'], rows)}\n\n"
        "The parameters equal those of a run in process, bit for bit. metrics.jsonl and MLflow "
        "hold each step once.\n"
    )
    measure.write("chaos", text)


if __name__ == "__main__":
    main()
