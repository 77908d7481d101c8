"""Jobs on a Ray cluster: send one, list them, follow what one says, end as it ends, stop one.

here --- code, resolved recipe or sweep, own files ---> dashboard ---> `metatrain train|tune` on a
node: the driver
     <-- its log, line by line, and its exit code -----                   |
                                               workers (ray_pool) <-------+-------> output, MLflow
"""

from __future__ import annotations

import asyncio
import difflib
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
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

from cluster.config import JOB, JOB_CPUS, JOB_GPUS, PACKAGES
from cluster.jobs.job import COMMIT, USER
from cluster.jobs.sent import is_sent
from cluster.tracking.description import commit, user
from metatrain import console, storage
from metatrain.awaiting import awaiting
from metatrain.core import InputError

if TYPE_CHECKING:
    from ray.job_submission import (
        JobDetails,
        JobSubmissionClient,
    )  # elsewhere not before `find_token`

MOST_BYTES = 1 << 20  # of code and configuration
ANSWER_S = 15.0  # for a dashboard to answer
GONE_S = 60.0  # without an answer, and a job is followed no longer
ENDED_S = 5.0  # of trying to read the log of one that has ended
PENDING_S = 5.0  # before it is said what a job waits for
POLL_S = 0.5
STOP_S = 60  # for a job that is told to stop to save: Ray's default is 3
KEPT_LINES = 50  # of a job's log, to say why it failed
RAYS_LINES = 20  # with which a job's log may begin
QUIET = {"PYTHONUNBUFFERED": "1", "RAY_IGNORE_UNHANDLED_ERRORS": "1"}  # of actors that were ended
# Ray leaves out of a working directory what .gitignore names, and folders such as venv: all that is
# packed is sent.
WHOLE = {"RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1", "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": ""}
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Job(NamedTuple):
    """What is sent."""

    name: str
    arguments: Sequence[str]  # of `metatrain`, on the cluster
    files: Mapping[str, str]  # that it finds in its working directory, besides the packages
    code: Sequence[Path]  # the user's own modules: files and package folders
    environment: Mapping[str, str]
    output: str = ""  # where its results go
    cpus: float = (
        0.0  # that its driver has to itself; with none of anything it runs on the head node
    )
    gpus: float = 0.0
    memory_gb: float = 0.0
    recipe: str = ""  # the file, as it was given
    again: str = ""  # the command that continues it
    sent: Mapping[str, Path] = {}  # files that it reads, by relative path


class Listed(NamedTuple):
    """A job that the cluster knows."""

    name: str
    state: str  # pending, running, succeeded, failed, stopped
    submitted_s: float
    took_s: float  # until now if it has not ended
    output: str
    recipe: str

    @property
    def under_way(self) -> bool:
        return self.state in ("pending", "running")


def run(address: str, job: Job, *, follow: bool = True) -> int:
    """Send a job, and follow it unless told otherwise; its exit code. Ctrl-C ends the following and
    not the job.
    """
    before = dict(os.environ)
    client = connect(address)
    with awaiting(f"sending the job {job.name}"):
        submit(client, job)
    print(f"submitted {job.name}", commands(address, job.name, before), sep="\n", flush=True)
    return watch(client, job.name, commands(address, job.name, before)) if follow else 0


def watch(client: JobSubmissionClient, name: str, commands: str) -> int:
    """Follow a job until it ends, or until Ctrl-C, which prints the `commands` to go on with; its
    exit code.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = listen(client, name)
    except KeyboardInterrupt:
        print(f"\nthe job keeps running\n{commands}", flush=True)
        return 130
    output = (client.get_job_info(name).metadata or {}).get("output")
    if code == 0 and output:
        print(f"job {name} succeeded: its results are in {output}", file=sys.stderr)
    return code


def listed(client: JobSubmissionClient) -> list[Listed]:
    """The jobs that `metatrain submit` has sent to a cluster, newest first."""
    found = []
    for info in client.list_jobs():
        metadata = info.metadata or {}
        if info.submission_id and "output" in metadata:
            start_s = (info.start_time or 0) / 1000
            end_s = info.end_time / 1000 if info.end_time else time.time()
            state, took_s = info.status.value.lower(), max(end_s - start_s, 0.0)
            found.append(
                Listed(
                    info.submission_id,
                    state,
                    start_s,
                    took_s,
                    metadata["output"],
                    metadata.get("recipe", ""),
                )
            )
    return sorted(found, key=lambda job: job.submitted_s, reverse=True)


def find(client: JobSubmissionClient, name: str | None, *, under_way: bool = False) -> Listed:
    """The job of that name, or the newest one, or the newest one `under_way`. InputError if there
    is none.
    """
    found = listed(client)
    if not found:
        raise InputError(
            "there is no job on this cluster", remedy="send one with `metatrain submit`"
        )
    if name is None:
        job = next((job for job in found if job.under_way or not under_way), None)
        if job is None:
            raise InputError(
                "no job is under way on this cluster",
                remedy=(f"the newest, {found[0].name}, {_ended(found[0])}"),
            )
        return job
    job = next((job for job in found if job.name == name), None)
    if job is None:
        near = difflib.get_close_matches(name, [job.name for job in found], 1)
        instead = f"the nearest name is {near[0]}" if near else f"the newest is {found[0].name}"
        raise InputError(
            f"there is no job {name} on this cluster",
            remedy=f"{instead}; `{console.program()} jobs` lists all",
        )
    return job


def stop(client: JobSubmissionClient, name: str | None) -> str:
    """Ask a job to save and end, and wait until it has; how to continue it. InputError if it has
    ended before.
    """
    job = find(client, name, under_way=True)
    if not job.under_way:
        raise InputError(
            f"the job {job.name} {_ended(job)} already",
            remedy=(f"`{console.program()} jobs` lists those under way"),
        )
    client.stop_job(job.name)
    with awaiting(f"waiting for {job.name} to save and end"):
        info, since_s = client.get_job_info(job.name), time.monotonic()
        while not info.status.is_terminal():
            if info.status.value == "PENDING" and time.monotonic() - since_s > PENDING_S:
                needs = (info.metadata or {}).get("needs")
                raise InputError(
                    (
                        f"the job {job.name} waits for {needs} to start, and Ray can only stop it "
                        "then"
                    ),
                    remedy=("it will end at once, or after 15 minutes without starting"),
                )
            if time.monotonic() - since_s > STOP_S + GONE_S:
                raise InputError(
                    f"the job {job.name} has not ended in {STOP_S + GONE_S:g} s",
                    remedy="look at its node",
                )
            time.sleep(POLL_S)
            info = client.get_job_info(job.name)
    state = info.status.value.lower()
    if state != "stopped":  # it ended by itself just then
        return f"job {job.name} {_ended(job._replace(state=state))} before it was stopped"
    return f"job {job.name} was stopped\n{_to_go_on(info)}"


def connect(address: str) -> JobSubmissionClient:
    """The dashboard at `address`; InputError if it is none, its token is not here, or its versions
    differ.
    """
    address = address.rstrip("/")
    with awaiting(f"connecting to {address}"):
        return _connect(address)


def _connect(address: str) -> JobSubmissionClient:
    find_token(address)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # or another one there would be taken instead
    import ray
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        answer = client._do_request("GET", "/api/v0/cluster_metadata")  # nothing public says it
        there = answer.json()["data"]
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # its uploads are nobody's concern
    except AuthenticationError as error:
        wrong = "invalid" in str(error).lower()
        what = (
            "does not take the token that is set here"
            if wrong
            else "asks for a token, and none is set here"
        )
        raise InputError(
            f"the cluster at {address} {what}",
            remedy=("set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file that holds it"),
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise _no_dashboard(address, error) from error
    for what, theirs, ours in (
        ("Ray", there["rayVersion"], ray.__version__),
        ("Python", _minor(there["pythonVersion"]), _minor(platform.python_version())),
    ):
        if theirs != ours:
            raise InputError(
                f"the cluster at {address} runs {what} {theirs}, and this machine {ours}",
                remedy=("install the same on both"),
            )
    return client


def find_token(address: str) -> None:
    """Let Ray look for a token if the dashboard at `address` asks for one: Ray decides it when it
    is imported.
    """
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"--address {address} is not a dashboard's address",
            remedy="give one such as http://HEAD:8265",
        )
    if _asks_for_token(address.rstrip("/")):
        os.environ["RAY_AUTH_MODE"] = "token"


def submit(client: JobSubmissionClient, job: Job) -> None:
    """Send a job; InputError if its name is taken, another one writes to its output, or it is too
    large.
    """
    if not re.fullmatch(r"[\w.-]+", job.name):
        raise InputError(
            f"--name {job.name!r} cannot name a job", remedy="use letters, digits, '_', '-' and '.'"
        )
    for other in client.list_jobs():
        if other.submission_id == job.name:
            ended = other.status.is_terminal()
            what = f"it has ended ({other.status.value.lower()})" if ended else "it is under way"
            raise InputError(
                f"this cluster already has a job {job.name}, {what}", remedy="give another --name"
            )
        if (
            job.output
            and not other.status.is_terminal()
            and (other.metadata or {}).get("output") == job.output
        ):
            raise InputError(
                f"the job {other.submission_id} writes to {job.output}",
                remedy=(
                    "stop it with "
                    f"`{console.program()} stop "
                    f"{other.submission_id}`, let it end, or give another output"
                ),
            )
    with tempfile.TemporaryDirectory() as temporary:
        _pack(job, Path(temporary))
        os.environ |= WHOLE
        try:
            client.submit_job(
                submission_id=job.name,
                entrypoint=shlex.join(["python", "-m", "tuning.cli", *job.arguments]),
                runtime_env={"working_dir": temporary, "env_vars": _environment(job)},
                metadata=_described(job),
                entrypoint_num_cpus=job.cpus or None,
                entrypoint_num_gpus=job.gpus or None,
                entrypoint_memory=int(job.memory_gb * 1e9) or None,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(
                "the cluster did not take the job", remedy=f"{_last_line(str(error))}"
            ) from error


def listen(client: JobSubmissionClient, name: str) -> int:
    """Print a job's log until it ends, and say how; its exit code. InputError if the cluster is
    gone.
    """
    from aiohttp import ClientError

    said, sent_s, waits = _Said(name), time.monotonic(), ""
    failing_s: float | None = None  # since when
    pending = ExitStack()
    with pending:
        while True:
            ended = False
            try:
                info = client.get_job_info(name)
                ended = info.status.is_terminal()
                if info.status.value != "PENDING":
                    pending.close()
                    asyncio.run(_listen(client, name, said))
                elif not waits:
                    pending.enter_context(awaiting("waiting for the job to start"))
                    waits = "a node"
                elif info.message != waits and time.monotonic() - sent_s > PENDING_S:
                    waits = info.message
                    print(f"waiting for {(info.metadata or {}).get('needs')}: {waits}", flush=True)
                failing_s = None
                if ended:
                    break
            except (ClientError, OSError, RuntimeError) as error:
                failing_s = failing_s or time.monotonic()
                if ended and time.monotonic() - failing_s > ENDED_S:
                    break  # it never started, or its node is gone, so that there is no log
                if time.monotonic() - failing_s > GONE_S:
                    raise InputError(
                        (
                            f"the cluster has not answered for {GONE_S:g} s "
                            f"({_last_line(str(error))})"
                        ),
                        remedy=(
                            f"the job {name} may keep running; see "
                            f"`{console.program()} follow {name}`"
                        ),
                    ) from error
            time.sleep(POLL_S)
    if info.driver_exit_code is not None:
        print(said.held(), end="", flush=True)
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        print(f"job {name} was stopped\n{_to_go_on(info)}", file=sys.stderr)
        return 130
    cause = next(
        (line for line in reversed(said.lines) if line.startswith("error: ")),
        _last_line(info.message or ""),
    )
    print(f"error: job {name} failed: {cause.removeprefix('error: ')}", file=sys.stderr)
    if info.driver_exit_code not in (1, 2):  # its process died
        print(_to_go_on(info), file=sys.stderr)
    return info.driver_exit_code or 1


def commands(address: str, name: str, shell: Mapping[str, str]) -> str:
    """How to go on with a job, in a shell with these variables."""
    address = address.rstrip("/")
    known = shell.get("RAY_API_SERVER_ADDRESS", "").rstrip("/") == address
    there = "" if known else f" --address {shlex.quote(address)}"
    named = {"follow": f" {shlex.quote(name)}", "stop": f" {shlex.quote(name)}", "jobs": ""}
    return "\n".join(
        f"{what + ':':7} {console.program()} {what}{which}{there}" for what, which in named.items()
    )


def dated(name: str) -> str:
    """A name for a job, with date and time: one for each that is sent."""
    return re.sub(r"[^\w.-]+", "-", f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")


def check_place(key: str, place: str | None) -> str:
    """Refuse a place in a job's own folder, which ends with the job."""
    if place is None or not _is_elsewhere(place):
        raise InputError(
            f"{key} is {place or 'not given'}, and a job's own folder ends with it",
            remedy=(
                "give a place "
                "that outlives it, "
                "such as s3://bucket/first or the path of a folder that all nodes see"
            ),
        )
    if storage.is_remote(place):
        storage.check_address(place)
    return place.rstrip("/")


def check_read(key: str, place: str, sent: Mapping[str, Path]) -> None:
    """Refuse what a job could not read: a path of this machine that does not go along."""
    if not _is_elsewhere(place) and not is_sent(place, sent):
        raise InputError(
            f"{key} is {place}, a path in this folder, which the cluster does not see",
            remedy=(
                "send it "
                f"with --send {place}, or "
                "give an address such as s3://bucket/first or a path that all nodes see"
            ),
        )
    if storage.is_remote(place):
        storage.check_address(place)


def _is_elsewhere(place: str) -> bool:
    return storage.is_remote(place) or Path(place).is_absolute()


def environment(address: str, names: Sequence[str]) -> dict[str, str]:
    """What a job gets of this environment: MLflow's address, if it is a server's, and the variables
    in `names`.
    """
    found = {}
    for name in names:
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
    if parts.password is not None:
        raise InputError(
            "MLFLOW_TRACKING_URI holds a password, which a cluster shows to all who see its jobs",
            remedy=(
                "set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD on its nodes, or pass it "
                "all "
                "the same with --env"
            ),
        )
    if parts.hostname in LOOPBACK and urlsplit(address).hostname not in LOOPBACK:
        raise InputError(
            f"MLflow's address {server} is this machine's own, which the cluster cannot reach",
            remedy="give it as nodes see it",
        )
    return {"MLFLOW_TRACKING_URI": server} | found


def _environment(job: Job) -> dict[str, str]:
    own = {
        JOB: job.name,
        JOB_CPUS: str(job.cpus),
        JOB_GPUS: str(job.gpus),
        COMMIT: commit(),
        USER: user(),
    }
    return own | QUIET | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)} | dict(job.environment)


def _pack(job: Job, folder: Path) -> None:
    """All that is sent, as it will lie in the job's working directory."""
    for path in [*PACKAGES, *job.code]:
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
    sizes = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=sizes.__getitem__)
        raise InputError(
            (
                f"the job would be {sum(sizes.values()) / MOST_BYTES:.1f} MiB, at most 1 is sent, "
                "and "
                f"{largest.relative_to(folder)} is the largest of it"
            ),
            remedy=(
                "move data out of your packages, "
                "and send it with "
                "--send or push it with `metatrain data push`"
            ),
        )
    for name, path in job.sent.items():
        target, first = folder / name, Path(name).parts[0]
        if first in {package.name for package in PACKAGES} | job.files.keys():
            raise InputError(
                f"--send {name} has the name of what every job gets, {first}", remedy="rename it"
            )
        if target.exists() and target in sizes and target.read_bytes() == path.read_bytes():
            continue  # data in a package of the user's
        if target.exists() or any(parent.is_file() for parent in target.parents):
            raise InputError(
                f"--send {name} has the name of one of your own modules", remedy="rename it"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


class _Said:
    """What a job has said so far: a log, without the lines with which Ray begins it."""

    def __init__(self, name: str) -> None:
        self.length = 0  # characters of the log that have come
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)  # the last ones
        self._first = f"Running entrypoint for job {name}: "  # the last of Ray's lines
        self._held: str | None = ""  # until that line has come

    def take(self, text: str) -> str:
        """What is to be shown of the text that follows."""
        self.length += len(text)
        if self._held is not None:
            self._held += text
            _, found, rest = self._held.partition(self._first)
            _, whole, text = rest.partition("\n")
            if not (found and whole):
                return self.held() if self._held.count("\n") > RAYS_LINES else ""
            self._held = None
        self.lines.extend(line for line in text.splitlines() if line)
        return text

    def held(self) -> str:
        """What has not been shown, as Ray's line has not come."""
        text, self._held = self._held or "", None
        self.lines.extend(line for line in text.splitlines() if line)
        return text


async def _listen(client: JobSubmissionClient, name: str, said: _Said) -> None:
    """Print a log until it ends, from where the last time broke off."""
    skip = said.length
    async for text in client.tail_job_logs(name):
        print(said.take(text[skip:]), end="", flush=True)
        skip = max(skip - len(text), 0)


def _described(job: Job) -> dict[str, str]:
    """What the cluster knows of a job besides its name: its dashboard shows it."""
    again = re.sub(
        r"(://[^/\s:@']*):[^\s']+@", r"\1:***@", job.again
    )  # a key of the user's may be such an address
    return {"recipe": job.recipe, "output": job.output, "needs": _wanted(job), "again": again}


def _ended(job: Listed) -> str:
    return f"has {job.state}" if job.state in ("succeeded", "failed") else "was stopped"


def _to_go_on(info: JobDetails) -> str:
    """The command that continues a job."""
    metadata = info.metadata or {}
    output = metadata.get("output", "")
    again = (
        metadata.get("again")
        or f"{console.program()} submit ... --set output={shlex.quote(output)} --resume auto"
    )
    return f"to continue in {output}: {again}" if output else "send it again"


def _wanted(job: Job) -> str:
    """What a job's own process needs."""
    needs = ((job.cpus, "CPUs"), (job.gpus, "GPUs"), (job.memory_gb, "GB of memory"))
    return " and ".join(f"{value:g} {what}" for value, what in needs if value) or "the head node"


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
    reason = getattr(error, "reason", None) or "the server at that address is not a Ray dashboard"
    return InputError(
        f"no Ray dashboard answers at {address} ({reason})",
        remedy=("give the head node's, such as http://HEAD:8265"),
    )


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:300]
