"""The files in infra/ agree with each other and with the pins, and every command of docs/cluster.md
runs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from pages import LESS, ROOT, Home, commands, end
from services import S3, Nodes, free_port

from cluster import checkpoint

INFRA = ROOT / "infra"
OURS = {"buckets", "mlflow", "head", "worker"}
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ELSEWHERE = commands("README.md")  # which tests/test_pages.py runs


def pins() -> dict[str, str]:
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    ]
    return dict(line.split("==") for line in lines)


def test_rays_version_stands_in_one_place() -> None:
    version = pins()["ray"]
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    for name in tracked:
        if name.startswith(("infra/", ".ci/", "Makefile", "pyproject.toml", ".dockerignore")):
            assert version not in (ROOT / name).read_text(), name
    assert "--constraint constraints.txt" in (INFRA / "Dockerfile").read_text()
    assert not re.search(r"rayproject|ray==|ray\[", (INFRA / "Dockerfile").read_text())


def test_the_pins_are_within_the_ranges() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {name.lower(): version for name, version in pins().items()}
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["server"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), text
    assert Requirement(f"python{project['requires-python']}").specifier.contains(
        python_of_the_image()
    )


def python_of_the_image() -> str:
    found = re.search(r"^ARG PYTHON=(.+)$", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    return found.group(1)


def test_the_image_is_not_roots_and_gets_what_it_copies() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER metatrain"]
    assert lines.index("USER metatrain") > max(
        i for i, line in enumerate(lines) if line.startswith("RUN")
    )
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    let_in = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert copied == let_in
    assert ":latest" not in "\n".join(lines)


def test_every_service_is_pinned_limited_watched_and_on_loopback() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert tag not in ("", "latest", service["image"]), name
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory"} <= limits.keys(), name
        assert "healthcheck" in service or service["restart"] == "on-failure", name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        if name in OURS:
            assert service["cap_drop"] == ["ALL"]
            assert service["image"] == "ray-metatrain:${DEVICE:-cpu}"
            assert ("build" in service) == (
                name == "head"
            )  # two that build one image get in each other's way
        for other, needs in service.get("depends_on", {}).items():
            assert needs["condition"] != "service_started"
            assert (
                "healthcheck" in SERVICES[other]
                or needs["condition"] == "service_completed_successfully"
            )
    for node in ("head", "worker"):
        assert SERVICES[node]["environment"]["RAY_AUTH_MODE"] == "token"
        assert SERVICES[node]["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
        address = SERVICES[node]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
        assert f"--allowed-hosts={address}," in " ".join(
            SERVICES["mlflow"]["command"]
        )  # or it answers 403


def test_what_compose_asks_for_is_made(tmp_path: Path) -> None:
    shutil.copy(INFRA / "env.py", tmp_path)
    subprocess.run([sys.executable, "env.py"], cwd=tmp_path, check=True, capture_output=True)
    text = (tmp_path / ".env").read_text()
    made = dict(line.split("=", 1) for line in text.splitlines())
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    asked = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    assert asked <= made.keys()
    assert made["IMAGE_PYTHON"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (
        len(
            {
                made[name]
                for name in ("RAY_AUTH_TOKEN", "AWS_SECRET_ACCESS_KEY", "POSTGRES_PASSWORD")
            }
        )
        == 3
    )
    again = subprocess.run(
        [sys.executable, "env.py"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert again.returncode == 1
    assert "is there already" in again.stderr
    assert (tmp_path / ".env").read_text() == text


def test_compose_reads_it() -> None:
    compose = ["docker", "compose"]
    there = shutil.which("docker") and subprocess.run(
        [*compose, "version"], capture_output=True, check=False
    )
    if not there or there.returncode != 0:
        pytest.skip("docker compose is not installed")
    names = re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text())
    files = ["--file", str(INFRA / "compose.yaml"), "--file", str(INFRA / "compose.cuda.yaml")]
    environment = os.environ | dict.fromkeys(names, "x")
    subprocess.run([*compose, *files, "config", "--quiet"], check=True, env=environment)


def test_the_page_names_the_files() -> None:
    text = (INFRA / "README.md").read_text()
    for path in INFRA.iterdir():
        if path.suffix != ".md" and path.name not in (".env", "__pycache__"):
            assert f"| `{path.name}` |" in text


@pytest.mark.ray
def test_the_bucket_service_makes_its_buckets(s3: S3) -> None:
    for _ in range(2):  # it is there already when compose starts again
        subprocess.run([sys.executable, *SERVICES["buckets"]["command"][1:]], check=True)
    from metatrain import storage

    assert storage.listing("s3://runs") == storage.listing("s3://mlflow") == []
    storage.write("s3://data/x", b"1")


@pytest.mark.ray
def test_the_nodes_are_healthy(nodes: Nodes) -> None:
    """The cluster of these tests is started by compose's commands."""
    _, *check = SERVICES["worker"]["healthcheck"]["test"]
    assert (
        nodes.run(
            *(part.replace("head:6379", f"127.0.0.1:{nodes.port}") for part in check)
        ).returncode
        == 0
    )
    dead = nodes.run(
        "timeout", "5", *(part.replace("head:6379", f"127.0.0.1:{free_port()}") for part in check)
    )
    assert dead.returncode != 0


class Machines(Home):
    """A head, another machine and a laptop, all of them this one."""

    def __init__(self, folder: Path, nodes: Nodes) -> None:
        super().__init__(folder)
        self.nodes, self.started = nodes, []
        self.ports = {name: str(free_port()) for name in ("6379", "8265", "5000")}
        self.environment |= {"HOME": str(folder / "home")}
        self.compose = (
            self.environment
            | {  # as a shell has it after reading .env, but for where the tests' cluster is
                name: nodes.environment[name]
                for name in nodes.environment
                if name.startswith(("RAY_", "AWS_", "MLFLOW_"))
            }
        )
        self.compose["RAY_API_SERVER_ADDRESS"] = nodes.address
        (folder / "home").mkdir()
        (folder / "shared").mkdir()

    def steps(self, where: str) -> int:
        """The outer steps that a run has made."""
        newest = checkpoint.latest(str(self.folder / "shared" / where / "checkpoints"))
        return int(newest.rpartition("-")[2]) if newest else 0

    def here(self, command: str) -> str:
        # At once: a port may have the digits of another one's name.
        command = re.sub("|".join(self.ports), lambda found: self.ports[found[0]], command)
        return command.replace("HEAD", "127.0.0.1").replace("/shared", str(self.folder / "shared"))


@pytest.fixture(scope="module")
def machines(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    machines = Machines(tmp_path_factory.mktemp("infra"), nodes)
    yield machines
    for process in reversed(machines.started):
        end(process)


@pytest.mark.ray
@pytest.mark.parametrize(
    "command", [line for line in commands("docs/cluster.md") if line not in ELSEWHERE]
)
def test_every_command_runs(command: str, machines: Machines, s3: S3) -> None:
    if "docker" in command:
        pytest.skip("it needs a container engine")
    contained = "s3://runs" in command
    wanted = machines.here(command)
    if contained:
        subprocess.run([sys.executable, *SERVICES["buckets"]["command"][1:]], check=True)
    if command.startswith("export"):
        machines.environment |= dict(part.split("=", 1) for part in wanted.split()[1:])
    elif command.startswith("ray start"):
        started = (
            f"{wanted} --block --num-cpus=2 --disable-usage-stats "
            f"--temp-dir={machines.nodes.temporary()}"
        )
        if "--head" in command:
            started += f" --dashboard-port={machines.ports['8265']}"
            # there is another head on this machine
            started += f" --dashboard-agent-listen-port={free_port()}"
        machines.started.append(machines.start(started, until="Ray runtime started"))
    elif command.startswith("mlflow server"):
        machines.started.append(
            machines.start(f"{wanted} --workers 1", until="Application startup complete")
        )
    else:
        if "metatrain submit" in command or "metatrain train" in command:
            wanted += f" {LESS}"
        if "--name first" in command:
            wanted += " --set outer.steps=100000"  # until it is stopped
        elif "--resume" in command:
            wanted += f" --set outer.steps={machines.steps('runs/first') + 2}"
        there = (
            {"RAY_ADDRESS": f"127.0.0.1:{machines.ports['6379']}"} if "auto" in command else {}
        )  # of two here
        out = machines.run(
            wanted, (machines.compose if contained else machines.environment) | there
        )
        if command.startswith(("metatrain evaluate", "metatrain train", "metatrain follow")) or (
            "submit" in command and "--no-" not in command
        ):
            assert out.splitlines()[-1].startswith("result: accuracy=")
        if "doctor" in command:
            assert out.splitlines()[-1] == "no problems found"
            for row in (
                "driver, all 2 nodes +│ output +│ writable",
                "all 2 nodes +│ token +│ in use",
            ):
                assert re.search(row, out)
        if command.startswith("metatrain jobs"):
            assert re.search(r"\bfirst\b.*\brunning\b", out)


def test_the_commands_of_the_cluster_stand_on_its_page() -> None:
    assert set(ELSEWHERE) & set(
        commands("docs/cluster.md")
    )  # or there is nothing to leave to the other test
    assert not commands("infra/README.md")
