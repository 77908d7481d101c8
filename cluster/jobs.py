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
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

import aiohttp
import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.ray_pool import PACKAGES
from cluster.tracking import JOB
from metatrain import storage
from metatrain.core import InputError

MOST_BYTES = 1 << 20  # of all that is sent
ANSWER_S = 15.0  # for a dashboard to answer
GONE_S = 60.0  # without an answer, and a job is followed no longer
PENDING_S = 5.0  # before it is said what a job waits for
POLL_S = 0.5
STOP_S = 60  # for a job that is told to stop to save: Ray's default is 3
KEPT_LINES = 50  # of a job's log, to say why it failed
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
    client = connect(address)
    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # its uploads are nobody's concern
    submit(client, job)
    print(f"submitted {job.name}", commands(address, job.name), sep="\n", flush=True)
    if not follow:
        return 0
    try:
        return listen(client, job.name)
    except KeyboardInterrupt:
        print(f"\nthe job goes on\n{commands(address, job.name)}", flush=True)
        return 130


def connect(address: str) -> JobSubmissionClient:
    """The dashboard at `address`; InputError where it is none, its token is not here, or its versions are others."""
    address = address.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise InputError(f"--address {address} is no dashboard's: give one such as http://HEAD:8265")
    if _asks_for_token(address):
        os.environ["RAY_AUTH_MODE"] = "token"  # or Ray would not look for one
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


def submit(client: JobSubmissionClient, job: Job) -> None:
    """Send a job; InputError where its name is taken, another one writes to its output, or it is too large."""
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
    said = _Said()
    heard_s, pending_s, waits = time.monotonic(), time.monotonic(), ""
    while True:
        try:
            info = client.get_job_info(name)
            heard_s = time.monotonic()
            if info.status == JobStatus.PENDING:
                if info.message != waits and time.monotonic() - pending_s > PENDING_S:
                    waits = info.message
                    print(f"waiting: {waits}", flush=True)
            elif info.status.is_terminal() and said.whole:
                break
            else:
                said.whole = False
                asyncio.run(_listen(client, name, said))
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            if time.monotonic() - heard_s > GONE_S:
                raise InputError(
                    f"the cluster has not answered for {GONE_S:g} s ({_last_line(str(error))}): "
                    f"the job {name} may go on"
                ) from error
        time.sleep(POLL_S)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        print(f"job {name} was stopped: submit it again with the same output to go on", file=sys.stderr)
        return 130
    cause = next((line for line in reversed(said.lines) if line.startswith("error: ")), _last_line(info.message or ""))
    print(f"error: job {name} failed: {cause.removeprefix('error: ')}", file=sys.stderr)
    return info.driver_exit_code or 1


def commands(address: str, name: str) -> str:
    """How to go on with a job by Ray's own commands."""
    ends = f"{shlex.quote(name)} --address {shlex.quote(address.rstrip('/'))}"
    return f"follow: ray job logs --follow {ends}\nstatus: ray job status {ends}\nstop:   ray job stop {ends}"


def check_output(output: str | None) -> str:
    """Refuse results in a folder that ends with the job."""
    if output is None or not (storage.is_remote(output) or Path(output).is_absolute()):
        raise InputError(
            f"output is {output or 'not given'}, and a job's own folder ends with it: give one that outlives it, such "
            "as --set output=s3://bucket/runs/first or a folder that all nodes see"
        )
    if storage.is_remote(output):
        storage.check_address(output)
    return output.rstrip("/")


def environment(address: str, tracking_uri: str | None, names: Sequence[str]) -> dict[str, str]:
    """What a job gets of this environment: MLflow's address, where it is a server's, and the variables in `names`."""
    found = {}
    for name in names:
        if name not in os.environ:
            raise InputError(f"--env {name} names a variable that is not set here: set it, or leave it out")
        found[name] = os.environ[name]
    server = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    parts = urlsplit(server)
    if parts.scheme not in ("http", "https"):
        return found
    if parts.password is not None and "MLFLOW_TRACKING_URI" not in names:
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
    return {JOB: job.name, "PYTHONUNBUFFERED": "1", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **job.environment}


def _pack(job: Job, folder: Path) -> None:
    """All that is sent, as it will lie in the job's working directory."""
    for path in [*PACKAGES, *job.code]:
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
        self.whole = False  # whether the log was read to its end


async def _listen(client: JobSubmissionClient, name: str, said: _Said) -> None:
    """Print a log until it ends, from where the last time broke off."""
    skip = said.length
    async for text in client.tail_job_logs(name):
        new = text[skip:]
        skip = max(skip - len(text), 0)
        print(new, end="", flush=True)
        said.length += len(new)
        said.lines.extend(line for line in new.splitlines() if line)
    said.whole = True


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
