"""Jobs on a Ray cluster: send one, list them, find one, stop one.

here -- code, recipe or sweep, own files --> dashboard --> `metatrain train` on a node: driver
     <- its log, line by line, its exit code --                |
                                           workers (ray_pool) <+--> output, MLflow
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cluster.jobs.package import STOP_S, Job, pack
from metatrain.awaiting import awaiting
from metatrain.console import program
from metatrain.core import InputError

if TYPE_CHECKING:
    # Ray decides about tokens when it is imported: functions import it after `use_token`.
    from ray.job_submission import JobDetails, JobSubmissionClient

POLL_S = 0.5
PENDING_S = 5.0  # a job may wait for a node before that is reported
GONE_S = 60.0  # a cluster may be silent before it counts as gone
# Ray leaves out of a working directory what .gitignore names, and folders such as venv; all files
# of this one are to be sent.
WHOLE = {"RAY_RUNTIME_ENV_IGNORE_GITIGNORE": "1", "RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES": ""}


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

    @property
    def ended(self) -> str:
        """How it ended, as the rest of a sentence."""
        return f"has {self.state}" if self.state in ("succeeded", "failed") else "was stopped"


def submit(client: JobSubmissionClient, job: Job) -> None:
    """Send a job.

    Raises InputError if its name is taken, if another job writes to its output, or if it is too
    large.
    """
    _check_name(client, job)
    with tempfile.TemporaryDirectory() as temporary:
        pack(job, Path(temporary))
        os.environ |= WHOLE
        try:
            client.submit_job(
                submission_id=job.name,
                entrypoint=job.command(),
                runtime_env={"working_dir": temporary, "env_vars": job.variables()},
                metadata=job.metadata(),
                entrypoint_num_cpus=job.cpus or None,
                entrypoint_num_gpus=job.gpus or None,
                entrypoint_memory=int(job.memory_gb * 1e9) or None,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"the cluster refused the job ({last_line(str(error))})") from error


def listed(client: JobSubmissionClient) -> list[Listed]:
    """Return the jobs that `metatrain submit` has sent to a cluster, newest first."""
    found = []
    for info in client.list_jobs():
        metadata = info.metadata or {}
        if info.submission_id and "output" in metadata:
            start_s = (info.start_time or 0) / 1000
            end_s = info.end_time / 1000 if info.end_time else time.time()
            job = Listed(
                info.submission_id,
                info.status.value.lower(),
                start_s,
                max(end_s - start_s, 0.0),
                metadata["output"],
                metadata.get("recipe", ""),
            )
            found.append(job)
    return sorted(found, key=lambda job: job.submitted_s, reverse=True)


def find(client: JobSubmissionClient, name: str | None, *, under_way: bool = False) -> Listed:
    """Return the job of that name; without a name the newest one, or the newest one `under_way`.

    Raises InputError if there is none.
    """
    found = listed(client)
    if not found:
        raise InputError("this cluster has no job", remedy="send one with `metatrain submit`")
    if name is None:
        job = next((job for job in found if job.under_way or not under_way), None)
        if job is None:
            newest = found[0]
            raise InputError(
                f"no job is under way on this cluster; the newest, {newest.name}, {newest.ended}",
                remedy="name a job, or send one with `metatrain submit`",
            )
        return job
    job = next((job for job in found if job.name == name), None)
    if job is None:
        near = difflib.get_close_matches(name, [job.name for job in found], 1)
        other = f"the nearest name is {near[0]}" if near else f"the newest is {found[0].name}"
        raise InputError(
            f"there is no job {name} on this cluster; {other}",
            remedy=f"`{program()} jobs` lists all",
        )
    return job


def stop(client: JobSubmissionClient, name: str | None) -> str:
    """Ask a job to save and end, wait until it has ended, and say how to continue it.

    Raises InputError if it ended before, if it waits for a node, or if it does not end.
    """
    job = find(client, name, under_way=True)
    if not job.under_way:
        raise InputError(
            f"the job {job.name} {job.ended} already",
            remedy=f"`{program()} jobs` lists those under way",
        )
    client.stop_job(job.name)
    with awaiting(f"waiting for {job.name} to save and end"):
        info = _wait_for_end(client, job.name)
    state = info.status.value.lower()
    if state != "stopped":  # it ended by itself just then
        return f"job {job.name} {job._replace(state=state).ended} before it was stopped"
    return f"job {job.name} was stopped\n{to_continue(info)}"


def to_continue(info: JobDetails) -> str:
    """Say which command continues a job."""
    metadata = info.metadata or {}
    output = metadata.get("output", "")
    again = metadata.get("again") or (
        f"{program()} submit ... --set output={shlex.quote(output)} --resume auto"
    )
    return f"to continue in {output}: {again}" if output else "send it again"


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][:300]


def _check_name(client: JobSubmissionClient, job: Job) -> None:
    if not re.fullmatch(r"[\w.-]+", job.name):
        raise InputError(
            f"--name {job.name!r} cannot name a job", remedy="use letters, digits, '_', '-' and '.'"
        )
    for other in client.list_jobs():
        ended = other.status.is_terminal()
        if other.submission_id == job.name:
            state = f"it has ended ({other.status.value.lower()})" if ended else "it is under way"
            raise InputError(
                f"this cluster already has a job {job.name}, {state}", remedy="give another --name"
            )
        if job.output and not ended and (other.metadata or {}).get("output") == job.output:
            raise InputError(
                f"the job {other.submission_id} writes to {job.output}",
                remedy=f"stop it with `{program()} stop {other.submission_id}`, let it end, or "
                "give another output",
            )


def _wait_for_end(client: JobSubmissionClient, name: str) -> JobDetails:
    info, since_s = client.get_job_info(name), time.monotonic()
    while not info.status.is_terminal():
        waited_s = time.monotonic() - since_s
        if info.status.value == "PENDING" and waited_s > PENDING_S:
            needs = (info.metadata or {}).get("needs")
            raise InputError(
                f"the job {name} waits for {needs} to start, and Ray can only stop it then",
                remedy="wait: it ends at once when it starts, or after 15 minutes without starting",
            )
        if waited_s > STOP_S + GONE_S:
            raise InputError(
                f"the job {name} has not ended in {STOP_S + GONE_S:g} s", remedy="look at its node"
            )
        time.sleep(POLL_S)
        info = client.get_job_info(name)
    return info
