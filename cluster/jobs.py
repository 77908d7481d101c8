"""Jobs on a Ray cluster: send one, follow what it says, and end as it ends.

here --- code, resolved recipe or sweep: under 1 MiB ---> dashboard ---> `metatrain train|tune` on a node: the driver
     <-- its log, line by line, and its exit code -------                   |
                                                 workers (ray_pool) <-------+-------> output, MLflow
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

from cluster.config import JOB, JOB_CPUS, JOB_GPUS, PACKAGES
from metatrain import storage
from metatrain.core import InputError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient  # elsewhere not before `find_token`

MOST_BYTES = 1 << 20  # of all that is sent
ANSWER_S = 15.0  # for a dashboard to answer
GONE_S = 60.0  # without an answer, and a job is followed no longer
ENDED_S = 5.0  # of trying to read the log of one that has ended
PENDING_S = 5.0  # before it is said what a job waits for
POLL_S = 0.5
STOP_S = 60  # for a job that is told to stop to save: Ray's default is 3
KEPT_LINES = 50  # of a job's log, to say why it failed
COMMANDS = {"follow:": "logs --follow", "status:": "status", "stop:  ": "stop"}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Job(NamedTuple):
    """What is sent."""

    name: str
    arguments: Sequence[str]  # of `metatrain`, on the cluster
    files: Mapping[str, str]  # that it finds in its working directory, besides the packages
    code: Sequence[Path]  # the user's own modules: files and package folders
    environment: Mapping[str, str]
    output: str = ""  # where its results go
    cpus: float = 0.0  # that its driver has to itself; with none of anything it runs on the head node
    gpus: float = 0.0
    memory_gb: float = 0.0


def run(address: str, job: Job, *, follow: bool = True) -> int:
    """Send a job, and follow it unless told otherwise; its exit code. Ctrl-C ends the following and not the job."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = dict(os.environ)
    client = connect(address)
    again = commands(address.rstrip("/"), job.name, before)
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # its uploads are nobody's concern
    submit(client, job)
    print(f"submitted {job.name}", again, sep="\n", flush=True)
    if not follow:
        return 0
    try:
        code = listen(client, job.name)
        if code == 0 and job.output:
            print(f"job {job.name} succeeded: its results are in {job.output}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        print(f"\nthe job goes on\n{again}", flush=True)
        return 130


def connect(address: str) -> JobSubmissionClient:
    """The dashboard at `address`; InputError where it is none, its token is not here, or its versions are others."""
    address = address.rstrip("/")
    find_token(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # or another one there would be taken instead
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        answer = client._do_request("GET", "/api/v0/cluster_metadata")  # nothing public says it
        there = answer.json()["data"]
    except AuthenticationError as error:
        wrong = "invalid" in str(error).lower()
        what = "the token that is here is not that of" if wrong else "no token is here for"
        raise InputError(
            f"{what} the cluster at {address}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _no_dashboard(address, error) from error
    for what, theirs, ours in (
        ("Ray", there["rayVersion"], ray.__version__),
        ("Python", _minor(there["pythonVersion"]), _minor(platform.python_version())),
    ):
        if theirs != ours:
            raise InputError(f"the cluster at {address} runs {what} {theirs} and this is {ours}: use the same on both")
    return client


def find_token(address: str) -> None:
    """Let Ray look for a token where the dashboard at `address` asks for one: it decides so when it is imported."""
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address} is no dashboard's: give one such as http://HEAD:8265")
    if _asks_for_token(address.rstrip("/")):
        os.environ["RAY_AUTH_MODE"] = "token"


def submit(client: JobSubmissionClient, job: Job) -> None:
    """Send a job; InputError where its name is taken, another one writes to its output, or it is too large."""
    if not re.fullmatch(r"[\w.-]+", job.name):
        raise InputError(f"--name {job.name!r} cannot name a job: use letters, digits, '_', '-' and '.'")
    for other in client.list_jobs():
        if other.submission_id == job.name:
            ended = other.status.is_terminal()
            what = f"has ended ({other.status.value.lower()})" if ended else "is under way"
            raise InputError(f"there is a job {job.name} on this cluster, which {what}: give another --name")
        if job.output and not other.status.is_terminal() and (other.metadata or {}).get("output") == job.output:
            raise InputError(
                f"the job {other.submission_id} writes to {job.output}: stop it, let it end, or give another output"
            )
    with tempfile.TemporaryDirectory() as temporary:
        _pack(job, Path(temporary))
        try:
            client.submit_job(
                submission_id=job.name,
                entrypoint=shlex.join(["python", "-m", "tuning.cli", *job.arguments]),
                runtime_env={"working_dir": temporary, "env_vars": _environment(job)},
                metadata={"output": job.output},
                entrypoint_num_cpus=job.cpus or None,
                entrypoint_num_gpus=job.gpus or None,
                entrypoint_memory=int(job.memory_gb * 1e9) or None,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"the cluster did not take the job: {_last_line(str(error))}") from error


def listen(client: JobSubmissionClient, name: str) -> int:
    """Print a job's log until it ends, and say how; its exit code. InputError where the cluster is gone."""
    from aiohttp import ClientError

    said, sent_s, waits = _Said(), time.monotonic(), ""
    failing_s: float | None = None  # since when
    while True:
        ended = False
        try:
            info = client.get_job_info(name)
            ended = info.status.is_terminal()
            if info.status.value != "PENDING":
                asyncio.run(_listen(client, name, said))
            elif info.message != waits and time.monotonic() - sent_s > PENDING_S:
                waits = info.message
                print(f"waiting: {waits}", flush=True)
            failing_s = None
            if ended:
                break
        except (ClientError, OSError, RuntimeError) as error:
            failing_s = failing_s or time.monotonic()
            if ended and time.monotonic() - failing_s > ENDED_S:
                break  # it never started, or its node is gone, so that there is no log
            if time.monotonic() - failing_s > GONE_S:
                why = _last_line(str(error))
                raise InputError(f"no answer for {GONE_S:g} s ({why}): the job {name} may go on") from error
        time.sleep(POLL_S)
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        print(f"job {name} was stopped: submit it again with the same output to go on", file=sys.stderr)
        return 130
    cause = next((line for line in reversed(said.lines) if line.startswith("error: ")), _last_line(info.message or ""))
    again = "" if info.driver_exit_code in (1, 2) else "; submitted again with the same output it goes on"
    print(f"error: job {name} failed: {cause.removeprefix('error: ')}{again}", file=sys.stderr)
    return info.driver_exit_code or 1


def commands(address: str, name: str, shell: Mapping[str, str]) -> str:
    """How to go on with a job by Ray's own commands, in a shell with these variables."""
    needed = {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "")}
    if {shell.get(variable, address) for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")} != {address}:
        needed["RAY_API_SERVER_ADDRESS"] = address  # which wins over --address
    sets = "".join(f"{key}={shlex.quote(value)} " for key, value in needed.items() if value != shell.get(key, ""))
    ends = f"{shlex.quote(name)} --address {shlex.quote(address)}"
    return "\n".join(f"{what} {sets}ray job {how} {ends}" for what, how in COMMANDS.items())


def dated(name: str) -> str:
    """A name for a job, with date and time: one for each that is sent."""
    return re.sub(r"[^\w.-]+", "-", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")


def check_place(key: str, place: str | None) -> str:
    """Refuse what would lie in a job's own folder, which ends with the job."""
    if place is None or not (storage.is_remote(place) or Path(place).is_absolute()):
        raise InputError(
            f"{key} is {place or 'not given'}, and a job's own folder ends with it: give a place that outlives it, "
            f"such as s3://bucket/first or the path of a folder that all nodes see"
        )
    if storage.is_remote(place):
        storage.check_address(place)
    return place.rstrip("/")


def environment(address: str, names: Sequence[str]) -> dict[str, str]:
    """What a job gets of this environment: MLflow's address, where it is a server's, and the variables in `names`."""
    found = {}
    for name in names:
        if name not in os.environ:
            raise InputError(f"--env {name} names a variable that is not set here: set it, or leave it out")
        found[name] = os.environ[name]
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https") or "MLFLOW_TRACKING_URI" in names:
        return found
    if parts.password is not None:
        raise InputError(
            "MLFLOW_TRACKING_URI holds a password, which a cluster shows to all who see its jobs: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on its nodes, or pass it all the same with --env"
        )
    if parts.hostname in LOOPBACK and urlsplit(address).hostname not in LOOPBACK:
        raise InputError(
            f"MLflow's address {server} is this machine's own, which the cluster cannot reach: give it as nodes see it"
        )
    return {"MLFLOW_TRACKING_URI": server} | found


def _environment(job: Job) -> dict[str, str]:
    own = {JOB: job.name, JOB_CPUS: str(job.cpus), JOB_GPUS: str(job.gpus)}
    return own | {"PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **job.environment}


def _pack(job: Job, folder: Path) -> None:
    """All that is sent, as it will lie in the job's working directory."""
    for path in [*PACKAGES, *job.code]:
        if (folder / path.name).exists():
            raise InputError(f"{path} has the name of a package that every job gets: rename it")
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(path, folder)
    for name, text in job.files.items():
        (folder / name).write_text(text)
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            f"the job would be {sum(sizes.values()) / MOST_BYTES:.1f} MiB, at most 1 is sent, and "
            f"{largest.relative_to(folder)} is the largest of it: push data with `metatrain data push`"
        )


class _Said:
    """What a job has said so far."""

    def __init__(self) -> None:
        self.length = 0  # characters that were printed
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)  # the last ones


async def _listen(client: JobSubmissionClient, name: str, said: _Said) -> None:
    """Print a log until it ends, from where the last time broke off."""
    skip = said.length
    async for text in client.tail_job_logs(name):
        new = text[skip:]
        skip = max(skip - len(text), 0)
        print(new, end="", flush=True)
        said.length += len(new)
        said.lines.extend(line for line in new.splitlines() if line)


def _asks_for_token(address: str) -> bool:
    direct = urllib.request.Request(f"{address}/api/version")
    try:
        with urllib.request.urlopen(direct, timeout=ANSWER_S) as answer:
            json.load(answer)["ray_version"]
        return False
    except HTTPError as error:
        if error.code in (401, 403):
            return True
        raise _no_dashboard(address, error) from error
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise _no_dashboard(address, error) from error


def _no_dashboard(address: str, error: Exception) -> InputError:
    reason = getattr(error, "reason", None) or "what answers there does not speak its language"
    return InputError(
        f"no Ray dashboard answers at {address} ({reason}): give that of the head node, such as http://HEAD:8265"
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:300]
