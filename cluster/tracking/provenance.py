"""Where a run comes from: its name and experiment, who made it, from which code and recipe."""

from __future__ import annotations

import getpass
import os
import subprocess
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.jobs.job import COMMIT, JOB, USER
from metatrain import storage

LOGGED_VERSIONS = ("ray-metatrain", "torch", "ray", "mlflow")
JOB_TAG = "metatrain.job"


def experiment(family: Any) -> str:
    """Name the experiment of a family and its data: "fewshot omniglot", "sinusoid"."""
    name = str(family.name)
    if ":" in name:  # a class of the user's own
        return name.rpartition(":")[2]
    data = PurePosixPath(str(getattr(family, "data", ""))).stem
    return f"{name} {data}".strip()


def dated(name: str) -> str:
    """Return a new run's name with the date, which tells it apart from others of its recipe."""
    return f"{name} {time.strftime('%Y-%m-%d %H:%M')}"


def tags(folder: str, name: str, file: str | None) -> dict[str, str]:
    """Return the tags of a run: its folder, recipe, code, versions, and who made it.

    name, file: the recipe's; a job gets a copy of the file, so that its name says nothing.
    """
    recipe = file if file and JOB not in os.environ else name
    found = {
        "metatrain.output": absolute(folder),
        "metatrain.recipe": recipe,
        "mlflow.source.name": recipe,
        "mlflow.source.type": "JOB" if JOB in os.environ else "LOCAL",
        "mlflow.user": user(),
        "mlflow.source.git.commit": commit(),
        JOB_TAG: os.environ.get(JOB, ""),
    }
    for package in LOGGED_VERSIONS:
        with suppress(metadata.PackageNotFoundError):
            found[f"version.{package}"] = metadata.version(package)
    return {name: value for name, value in found.items() if value}


def absolute(folder: str) -> str:
    """Return a folder's path or address as it holds in any working directory."""
    return folder if storage.is_remote(folder) else str(Path(folder).absolute())


def user() -> str:
    """Return who runs this, or who sent the job that does; "" if the system does not say."""
    if USER in os.environ:
        return os.environ[USER]
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return ""


def commit() -> str:
    """Return the commit of this checkout, or of the sent job's; "" if there is none.

    It ends with "-dirty" if the checkout has changes.
    """
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    here = Path(__file__).resolve().parents[2]
    try:
        if Path(_git(here, "rev-parse", "--show-toplevel")).resolve() != here:
            return ""  # installed in a folder of somebody else's checkout
        return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
