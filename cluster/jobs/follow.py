"""Follow a job: print its log as it comes, and end as the job ends."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from cluster.jobs.client import GONE_S, PENDING_S, POLL_S, last_line, submit, to_continue
from cluster.jobs.dashboard import connect
from cluster.jobs.job import SAVED
from cluster.jobs.package import Job
from metatrain.awaiting import awaiting
from metatrain.console import program
from metatrain.core import InputError

if TYPE_CHECKING:
    # Ray decides about tokens when it is imported: functions import it after `use_token`.
    from ray.job_submission import JobDetails, JobSubmissionClient

ENDED_S = 5.0  # of trying to read the log of a job that has ended
KEPT_LINES = 50  # of a job's log, to say why it failed
RAYS_LINES = 20  # with which a job's log may begin


def run(address: str, job: Job, *, follow: bool = True) -> int:
    """Send a job, `follow` it if asked, and return its exit code."""
    before = dict(os.environ)
    client = connect(address)
    with awaiting(f"sending the job {job.name}"):
        submit(client, job)
    said = commands(address, job.name, before)
    print(f"submitted {job.name}", said, sep="\n", flush=True)
    return watch(client, job.name, said) if follow else 0


def watch(client: JobSubmissionClient, name: str, commands: str) -> int:
    """Follow a job until it ends, and return its exit code.

    Ctrl-C stops following, not the job: it prints the `commands` for the job, and returns 130.
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


def commands(address: str, name: str, shell: Mapping[str, str]) -> str:
    """Return the commands for a job, a line each, for a shell with these variables."""
    address = address.rstrip("/")
    known = shell.get("RAY_API_SERVER_ADDRESS", "").rstrip("/") == address
    there = "" if known else f" --address {shlex.quote(address)}"
    named = {"follow": f" {shlex.quote(name)}", "stop": f" {shlex.quote(name)}", "jobs": ""}
    return "\n".join(
        f"{what + ':':7} {program()} {what}{which}{there}" for what, which in named.items()
    )


def listen(client: JobSubmissionClient, name: str) -> int:
    """Print a job's log until it ends, say how it ended, and return its exit code.

    Raises InputError if the cluster does not answer for a minute.
    """
    from aiohttp import ClientError

    log, sent_s, waits = _Log(name), time.monotonic(), ""
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
                    asyncio.run(_print_log(client, name, log))
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
                    break  # there is no log: the job never started, or its node is gone
                if time.monotonic() - failing_s > GONE_S:
                    raise InputError(
                        f"the cluster has not answered for {GONE_S:g} s ({last_line(str(error))}); "
                        f"the job {name} may keep running",
                        remedy=f"see `{program()} follow {name}`",
                    ) from error
            time.sleep(POLL_S)
    if info.driver_exit_code is not None:
        print(log.release(), end="", flush=True)
    return _report_end(info, name, log)


def _report_end(info: JobDetails, name: str, log: _Log) -> int:
    """Say on stderr how a job ended, and return its exit code."""
    if info.status.value == "SUCCEEDED":
        return 0
    if info.status.value == "STOPPED":
        print(f"job {name} was stopped\n{to_continue(info)}", file=sys.stderr)
        return 130
    errors = (line for line in reversed(log.lines) if line.startswith("error: "))
    cause = next(errors, last_line(info.message or ""))
    print(f"error: job {name} failed: {cause.removeprefix('error: ')}", file=sys.stderr)
    saved = any(line.endswith(SAVED) for line in log.lines)
    if saved or info.driver_exit_code not in (1, 2):  # its process died
        print(to_continue(info), file=sys.stderr)
    return info.driver_exit_code or 1


class _Log:
    """The log of a job as far as it has come, without the lines with which Ray begins it."""

    def __init__(self, name: str) -> None:
        self.length = 0  # characters of the log that have come
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)  # the last ones
        self._first = f"Running entrypoint for job {name}: "  # the last of Ray's lines
        self._held: str | None = ""  # until that line has come

    def take(self, text: str) -> str:
        """Add the text that follows, and return the part of it that is to be shown."""
        self.length += len(text)
        if self._held is not None:
            self._held += text
            _, found, rest = self._held.partition(self._first)
            _, whole, text = rest.partition("\n")
            if not (found and whole):
                return self.release() if self._held.count("\n") > RAYS_LINES else ""
            self._held = None
        self.lines.extend(line for line in text.splitlines() if line)
        return text

    def release(self) -> str:
        """Return the text that was held back because Ray's last line has not come."""
        text, self._held = self._held or "", None
        self.lines.extend(line for line in text.splitlines() if line)
        return text


async def _print_log(client: JobSubmissionClient, name: str, log: _Log) -> None:
    """Print a log until it ends, from where the last time broke off."""
    skip = log.length
    async for text in client.tail_job_logs(name):
        print(log.take(text[skip:]), end="", flush=True)
        skip = max(skip - len(text), 0)
