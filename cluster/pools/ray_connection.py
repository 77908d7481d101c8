"""Ray, joined: a cluster that is there, a surrounding job's, or one that is started here."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from cluster.config import OUR_PACKAGES
from cluster.jobs.job import JOB
from metatrain.addresses import hide, without_secrets
from metatrain.awaiting import awaiting
from metatrain.core import InputError
from metatrain.isolation import same_random_numbers

log = logging.getLogger(__name__)

PROBE_S = 15.0  # for somebody to listen at an address
TOO_LATE = "node timed out during startup"  # Ray's words
HEALTH_S = 60.0  # for Ray to say that it is there; its command gives up after 40 by itself


@contextmanager
def connected(address: str | None, code: Sequence[Path] = ()) -> Iterator[bool]:
    """Join the cluster at `address`, or a surrounding job's, or start one on this machine.

    Yields whether it was started here.

    Workers get `code`, files and package folders to import from, and on a cluster these packages,
    so that they compute what this process would; those of a surrounding job have what that job was
    sent with. The caller's random numbers do not depend on Ray's.
    """
    with same_random_numbers(), _connected(address, code) as local:
        yield local


def _check_kind(address: str | None) -> None:
    """Refuse an address that takes jobs, or clients, and no runs."""
    if address is not None and address.startswith("http"):
        raise InputError(
            f"{without_secrets(address)} is a dashboard's address, which takes jobs",
            remedy="use `metatrain submit`",
        )
    if address is not None and address.startswith("ray://"):
        raise InputError(
            f"{without_secrets(address)} is an address of Ray Client, which is not supported",
            remedy="send the run with `metatrain submit --address http://HEAD:8265`, or start it "
            "on a machine of the cluster with --address auto",
        )


@contextmanager
def _connected(address: str | None, code: Sequence[Path]) -> Iterator[bool]:
    _check_kind(address)
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS")
    _check_kind(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    sent = [*code, *(OUR_PACKAGES if address else [])] if JOB not in os.environ else []
    if sent:
        quiet["runtime_env"] = {"py_modules": [str(path) for path in sent]}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        with awaiting("starting Ray"):
            _start_local(quiet)
    else:
        try:
            with awaiting("joining the Ray cluster"):
                _probe(address)
                ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"no Ray cluster answers at {without_secrets(address)} ({hide(reason, address)})",
                remedy="check --address",
            ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there, which ends at once
    try:
        with _without_pages():
            yield address is None
    finally:
        ray.shutdown()


@contextmanager
def _without_pages() -> Iterator[None]:
    """Keep Ray's own page about each process that dies out of the log, which has a sentence.

    Ray has no option for that.
    """
    from ray._private import worker

    printing = worker.print_to_stdstream
    worker.print_to_stdstream = lambda data, *_, **__: log.debug("Ray: %s", data)
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


def this_node() -> str:
    """The node of this process, as people tell it from others."""
    return f"node {ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:6]})"


def _start_local(options: dict[str, Any]) -> None:
    """Start Ray on this machine.

    Raises InputError if it cannot start, such as for a temporary folder that it cannot use.
    """
    names = [name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ]  # Ray takes the first
    folder = os.environ[names[0]] if names else "/tmp"
    reason = (
        "" if Path(folder).is_absolute() else "it is no absolute path"
    )  # Ray would try for half a minute
    reason = reason if folder.isascii() else "Ray takes ASCII letters only"
    if not reason:
        try:
            _init_local(options)
            return
        except Exception as error:
            first = str(error).strip().partition("\n")[0]
            limit = re.search(r"AF_UNIX path length cannot exceed .*", first)  # of its sockets
            file = str(getattr(error, "filename", None))
            if not (limit or file.startswith(folder) or folder.startswith(file)):
                logs = f"{folder}/ray/session_latest/logs"
                raise InputError(
                    f"Ray cannot start on this machine ({first})", remedy=f"see its logs in {logs}"
                ) from error
            reason = limit[0] if limit else first
    source = f"{names[0]}={folder}" if names else folder
    raise InputError(
        f"Ray cannot have its files in {source} ({reason})",
        remedy="set RAY_TMPDIR to a short folder that can be written, such as /tmp",
    )


def _init_local(options: dict[str, Any]) -> None:
    """Start Ray; once more if the machine was too busy for the 30 s that Ray gives a node."""
    try:
        ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:
        if TOO_LATE not in str(error):
            raise
        log.warning("Ray was not there after 30 s: starting it again")
        ray.init(address="local", include_dashboard=False, **options)


def _probe(address: str) -> None:
    """Raise ConnectionError if no Ray answers at HOST:PORT; ray.init would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in host:
        return  # "auto" ends soon by itself
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "health-check",
            "--address",
            address,
        ]
        subprocess.run(command, capture_output=True, check=True, timeout=HEALTH_S)
    except (OSError, subprocess.SubprocessError) as error:
        what = "something else listens there, or it asks for a token: set RAY_AUTH_MODE=token"
        reason = error if isinstance(error, OSError) else what
        raise ConnectionError(str(reason)) from error
