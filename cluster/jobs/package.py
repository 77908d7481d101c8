"""The parts of a job: its command, the files and the code that are sent, its environment."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cluster.config import OUR_PACKAGES
from cluster.jobs.job import COMMIT, JOB, JOB_CPUS, JOB_GPUS, USER
from cluster.tracking.provenance import commit, user
from metatrain.addresses import holds_secret, without_secrets
from metatrain.core import InputError

MOST_BYTES = 1 << 20  # of the user's code and configuration
STOP_S = 60  # for a job that is stopped to save: Ray's default is 3
# Output comes at once, a native crash leaves the lines of Python that it ended, and Ray does not
# report the errors of actors that were ended on purpose.
PROCESS = {
    "PYTHONUNBUFFERED": "1",
    "PYTHONFAULTHANDLER": "1",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Job(NamedTuple):
    """A job as it is sent to a cluster."""

    name: str
    arguments: Sequence[str]  # of `metatrain`, on the cluster
    files: Mapping[str, str]  # the texts of its working directory's files, by name
    code: Sequence[Path]  # the user's own modules: files and package folders
    environment: Mapping[str, str]
    output: str = ""  # where its results go
    cpus: float = 0.0  # reserved for its driver; without cpus, gpus and memory it runs on the head
    gpus: float = 0.0
    memory_gb: float = 0.0
    recipe: str = ""  # the file, as the user gave it
    again: str = ""  # the command that continues it
    sent: Mapping[str, Path] = {}  # files that it reads, by relative path
    retries: int = 0  # how often its driver starts again if it dies

    @property
    def needs(self) -> str:
        """What its driver needs, in words."""
        needs = ((self.cpus, "CPUs"), (self.gpus, "GPUs"), (self.memory_gb, "GB of memory"))
        return (
            " and ".join(f"{value:g} {what}" for value, what in needs if value) or "the head node"
        )

    def command(self) -> str:
        """Return what Ray runs in a shell of a node."""
        retried = ["cluster.jobs.retrying", str(self.retries)] if self.retries else ["tuning.cli"]
        return shlex.join(["python", "-m", *retried, *self.arguments])

    def metadata(self) -> dict[str, str]:
        """Return what the cluster's dashboard shows of it besides its name."""
        again = without_secrets(self.again)  # a key may be set to an address with a password
        return {"recipe": self.recipe, "output": self.output, "needs": self.needs, "again": again}

    def variables(self) -> dict[str, str]:
        """Return all environment variables of its process."""
        own = {
            JOB: self.name,
            JOB_CPUS: str(self.cpus),
            JOB_GPUS: str(self.gpus),
            COMMIT: commit(),
            USER: user(),
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S),
        }
        return own | PROCESS | dict(self.environment)


def dated(name: str) -> str:
    """Return a job's name with date and time, which tells it apart from others of its recipe."""
    return re.sub(r"[^\w.-]+", "-", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")


def environment(address: str, names: Sequence[str]) -> dict[str, str]:
    """Return the variables that a job gets from this environment.

    These are the ones in `names`, and MLflow's address if it is a server's. Raises InputError if
    one is not set, if the address holds a password that `names` does not ask for, or if the cluster
    at `address` cannot reach it.
    """
    found = {}
    for name in names:
        if "=" in name:
            raise InputError(
                f"--env {name.partition('=')[0]}=*** gives a value, and takes only a name",
                remedy="set the variable here, and leave out its value",
            )
        if name not in os.environ:
            raise InputError(
                f"--env {name} names a variable that is not set here",
                remedy="set it, or leave it out",
            )
        found[name] = os.environ[name]
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or "MLFLOW_TRACKING_URI" in names:
        return found
    if holds_secret(server):
        raise InputError(
            "MLFLOW_TRACKING_URI holds a password or options, which a cluster shows to all who see "
            "its jobs",
            remedy="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on its nodes, or "
            "pass the address all the same with --env",
        )
    if parts.hostname in LOOPBACK and urlsplit(address).hostname not in LOOPBACK:
        raise InputError(
            f"MLflow's address {server} is this machine's own, which the cluster cannot reach",
            remedy="give the address that the nodes use",
        )
    return {"MLFLOW_TRACKING_URI": server} | found


def pack(job: Job, folder: Path) -> None:
    """Copy all that is sent into `folder`, as it will lie in the job's working directory.

    Raises InputError if two of them have one name, or if the code is too large.
    """
    _pack_code(job, folder)
    _pack_sent(job, folder)


def _pack_code(job: Job, folder: Path) -> None:
    for path in [*OUR_PACKAGES, *job.code]:
        if (folder / path.name).exists():
            raise InputError(
                f"{path} has the name of a package that every job gets", remedy="rename it"
            )
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(path, folder / path.name, ignore=ignored, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(path, folder / path.name)
    for name, text in job.files.items():
        (folder / name).write_text(text)
    ours = {package.name for package in OUR_PACKAGES}
    files = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    sizes = {name: path.stat().st_size for name, path in files.items() if name.parts[0] not in ours}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"the job's own code has {total / MOST_BYTES:.1f} MiB, and at most 1 is sent; "
            f"its largest file is {largest}",
            remedy="move data out of your packages, and send it with --send or push it with "
            "`metatrain data push`",
        )


def _pack_sent(job: Job, folder: Path) -> None:
    ours = {package.name for package in OUR_PACKAGES} | job.files.keys()
    for name, path in job.sent.items():
        target, first = folder / name, Path(name).parts[0]
        if first in ours:
            raise InputError(
                f"--send {name} has the name of what every job gets, {first}", remedy="rename it"
            )
        if target.is_file() and target.read_bytes() == path.read_bytes():
            continue  # data in one of the user's own packages
        if target.exists() or any(parent.is_file() for parent in target.parents):
            raise InputError(
                f"--send {name} has the name of one of your own modules", remedy="rename it"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
