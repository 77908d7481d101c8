"""What the tests of printed commands share: the commands of a page, and where they run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from photos import album
from services import TOO_LATE, cache_in, command, drawing
from sklearn.datasets import load_wine

ROOT = Path(__file__).parent.parent
LESS = (
    "--set outer.steps=2 --set outer.tasks_per_step=4 --set outer.tasks_per_ticket=2 "
    "--set validation.tasks=2 --set evaluation.tasks=4 --set workers.max=1 "
    "--set workers.wait_s=600"
)
FEWER = (
    "--set budget.trials=2 --set budget.steps=4 --set at_once=1 "
    "--set 'set={validation: {every_steps: 2, tasks: 2}, evaluation.tasks: 4, "
    "workers.wait_s: 600}'"
)


def fenced(name: str) -> list[tuple[str, str]]:
    """The language and the text of each block of a page."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL)


def blocks(name: str, language: str) -> list[str]:
    return [
        text for kind, text in fenced(name) if kind == language and "-->" not in text
    ]  # a drawing is no command


def commands(name: str) -> list[str]:
    """Each line of a page's blocks without a language, and those that end in a backslash with the
    next one.
    """
    lines = [
        line for block in blocks(name, "") for line in re.sub(r"\\\n\s*", "", block).splitlines()
    ]
    return [line.partition("  #")[0].strip() for line in lines]


def houses(folder: Path) -> None:
    """A table of ten districts, and one of a new district in two parts."""
    generator = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"district": np.repeat(np.arange(11), 20), "rooms": generator.integers(1, 6, 220)}
    )
    rows["area"] = 10 * rows["rooms"] + generator.uniform(0, 20, 220)
    rows["price"] = (2 + rows["district"] / 10) * rows["area"]
    rows[:200].to_csv(folder / "houses.csv", index=False)
    rows[200:205].to_csv(folder / "few.csv", index=False)
    rows[205:].drop(columns="price").to_csv(folder / "new.csv", index=False)


def wine(folder: Path) -> None:
    """Wines whose kind is known, and others."""
    rows = load_wine(as_frame=True).frame.sample(frac=1, random_state=0)
    rows["kind"] = rows.pop("target").map({0: "red", 1: "rose", 2: "white"})
    rows[:60].to_csv(folder / "known.csv", index=False)
    rows[60:].drop(columns="kind").to_csv(folder / "asked.csv", index=False)


def said(folder: Path) -> None:
    """Texts of six classes."""
    rows = [f"class {i % 6},text {i} of {i % 6}" for i in range(24)]
    (folder / "texts.csv").write_text("\n".join(["label,text", *rows]))


class Home:
    """A checkout with its environment, and the pictures and tables that the pages talk of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "infra").mkdir()
        shutil.copy(ROOT / "infra" / "env.py", folder / "infra")  # it writes beside itself
        for name in (
            "recipes",
            "Makefile",
            "pyproject.toml",
            "constraints.txt",
            "README.md",
            "LICENSE",
        ):
            (folder / name).symlink_to(ROOT / name)
        (folder / ".venv").symlink_to(sys.prefix)
        photos = album(folder / "photos", range(29), 6)
        album(photos, range(29, 30), 1)
        (photos / "kind 03" / "00.jpg").write_bytes(b"\xff\xd8 broken")
        album(folder / "few", range(30, 35), 1)
        album(folder / "new", range(30, 35), 2, first=1)
        houses(folder)
        wine(folder)
        said(folder)
        here = {
            "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
            "METATRAIN_CACHE": str(cache_in(folder / "cache")),
        }
        self.environment = os.environ | here
        for name in (
            "RAY_AUTH_MODE",
            "MAKEFLAGS",
            "MAKELEVEL",
            "VENV",
        ):  # of another test's Ray, of `make test`
            self.environment.pop(name, None)

    def call(self, line: str) -> str:
        """What `metatrain ...` prints here, in this process: starting another takes longer."""
        path, modules = sys.path[:], set(sys.modules)
        with pytest.MonkeyPatch.context() as patch, drawing():
            patch.chdir(self.folder)
            patch.setenv("METATRAIN_CACHE", self.environment["METATRAIN_CACHE"])
            done = command(*shlex.split(line)[1:])
        sys.path[:] = path
        for name in set(sys.modules) - modules:  # of recipes/, which other tests have, too
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(ROOT / "recipes")):
                del sys.modules[name]
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, command: str, environment: dict[str, str] | None = None) -> str:
        options = {
            "shell": True,
            "executable": "/bin/bash",
            "cwd": self.folder,
            "env": environment or self.environment,
        }
        done = subprocess.run(
            command, **options, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, done.stderr
        found: str = done.stdout
        return found

    def start(self, command: str, until: str) -> subprocess.Popen[bytes]:
        """In a process group of its own, which `end` ends, as soon as it has said `until`."""
        path = self.folder / f"started-{len(list(self.folder.glob('started-*')))}.log"
        with path.open("wb") as log:
            options = {"cwd": self.folder, "env": self.environment, "stdout": log, "stderr": log}
            process = subprocess.Popen(command.split(), **options, start_new_session=True)
        deadline = time.monotonic() + 600
        while until not in path.read_text():
            assert time.monotonic() < deadline, path.read_text()
            if process.poll() is not None:  # a busy machine: compose starts it again, too
                assert TOO_LATE in path.read_text(), path.read_text()
                return self.start(command, until)
            time.sleep(0.2)
        return process


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(600)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
