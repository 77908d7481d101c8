"""MLflow's pages for the store that a run used."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import util
from typing import IO
from urllib.error import HTTPError

from cluster.tracking.description import VIEW, VIEW_TAG
from cluster.tracking.mlflow_errors import limit_retries, refusal
from cluster.tracking.mlflow_store import check, database
from cluster.tracking.place import TRAINING, Place
from metatrain.addresses import without_secrets
from metatrain.core import InputError

START_S = 120.0  # for a server to start
ANSWER_S = 10.0


@contextmanager
def served(place: Place, port: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield the page of the run, or of the newest runs, and a function that waits for the server.

    A database is served on the loopback interface, on `port` or the next free one, until the end of
    the context. Raises InputError if there is nothing to serve.
    """
    if place.uri.startswith("http"):
        address = place.address()
        if not _answers(f"{address}/health", urllib.request.build_opener()):
            raise InputError(
                f"MLflow does not answer at {address}", remedy="start it, or check the address"
            )
        yield f"{address}{page(place)}", lambda: None
        return
    path = database(place.uri)
    if path is None and "***" in place.uri:
        raise InputError(
            "the store's password is not recorded",
            remedy="give its address in MLFLOW_TRACKING_URI, without a folder",
        )
    if path is not None and not path.exists():
        raise InputError(
            f"there is no MLflow store {place.uri} yet",
            remedy="train first, or name the run's folder",
        )
    if util.find_spec("mlflow") is None:
        raise InputError("mlflow is not installed", remedy="pip install mlflow")
    if path is not None:
        try:
            check(path, "PRAGMA schema_version")
        except (OSError, sqlite3.Error) as error:
            raise refusal(error, place.uri) from error
    address = f"http://127.0.0.1:{_free_port(port)}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", address.rpartition(":")[2]]
    environment = os.environ | {
        # Not an argument: it may hold a password, and `ps` shows arguments.
        "MLFLOW_BACKEND_STORE_URI": place.uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # starts faster
    }
    with tempfile.TemporaryFile() as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            _await_start(server, f"{address}/health", output)
            yield f"{address}{page(place)}", lambda: _await_end(server, output)
        finally:
            server.terminate()
            server.wait()


def page(place: Place) -> str:
    """Return the page of the run or the comparison, else of the experiment that was used last."""
    if place.run_id or util.find_spec("mlflow") is None:
        return place.page()
    limit_retries()
    from mlflow.tracking import MlflowClient

    try:
        client = MlflowClient(place.uri)
        experiments = {
            experiment.experiment_id: experiment for experiment in client.search_experiments()
        }
        newest = client.search_runs(
            list(experiments), max_results=1, order_by=["attributes.start_time DESC"]
        )
        used = experiments[newest[0].info.experiment_id]
    except Exception:  # there is no run yet, or it asks for a password: the browser will as well
        return place.page()
    # MLflow leaves the page if there is no view of this name.
    view = f"viewStateShareKey={VIEW}&" if VIEW_TAG in used.tags else ""
    return f"/#/experiments/{used.experiment_id}/runs?{view}{TRAINING}"


def _answers(url: str, opener: urllib.request.OpenerDirector) -> bool:
    try:
        with opener.open(url, timeout=ANSWER_S):
            return True
    except HTTPError:
        return True  # it asks for a password: the browser will as well
    except OSError:
        return False


def _free_port(wanted: int) -> int:
    """Return the first free port from `wanted` on.

    The server takes seconds to listen there, and the system gives its own ports to anybody.
    """
    for port in range(wanted, 1 << 16):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise InputError(f"no port from {wanted} on is free", remedy="give another --port")


def _await_start(server: subprocess.Popen[bytes], url: str, output: IO[bytes]) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        if _answers(url, direct):
            return
        time.sleep(0.2)
    raise InputError(
        f"MLflow's server did not start ({_last(output)})", remedy="try `mlflow server` yourself"
    )


def _await_end(server: subprocess.Popen[bytes], output: IO[bytes]) -> None:
    server.wait()
    raise InputError(f"MLflow's server ended ({_last(output)})", remedy="start it again")


def _last(output: IO[bytes]) -> str:
    """Return the last line that the server wrote, without a password."""
    output.seek(0)
    line = output.read().decode(errors="replace").strip().rpartition("\n")[2]
    return without_secrets(line)
