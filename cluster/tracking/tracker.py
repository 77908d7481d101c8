"""Where the numbers of a run go besides its folder: to MLflow, or nowhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cluster.config import Tracking
from cluster.jobs.job import JOB
from cluster.tracking.mlflow_store import database
from cluster.tracking.place import Place, store_uri
from metatrain.addresses import without_secrets
from metatrain.awaiting import awaiting
from metatrain.core import InputError

if TYPE_CHECKING:
    from metatrain.core import Setting

log = logging.getLogger(__name__)

RunParameters = Iterable[tuple[str, Any]]  # (dotted key, value)


class Tracker(Protocol):
    """Records one run."""

    def params(self, params: RunParameters) -> None:
        """Record values that never change."""
        ...

    def inputs(self, settings: Iterable[Setting]) -> None:
        """Record the data sets of training, validation and evaluation."""
        ...

    def complete(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Record what MLflow lacks of the lines of metrics.jsonl; call it before `log`."""
        ...

    def log(self, step: int, metrics: Mapping[str, float], at_ms: int | None = None) -> None:
        """Record metrics of an outer step, each step of a metric once.

        at_ms: when it was made, in milliseconds since 1970; None: now.
        """
        ...

    def flush(self) -> None:
        """Send now all that waits, unless nobody answers."""
        ...

    def artifact(self, path: Path) -> None:
        """Record a file or a folder."""
        ...

    def model(self, bundle: Path, step: int) -> str:
        """Record a bundle as a model that predicts, and tie the scores logged from now on to it.

        Returns the address that MLflow loads it by, or "" if the bundle cannot be such a model.
        """
        ...

    def describe(self, text: str) -> None:
        """Replace the run's description, which is Markdown."""
        ...

    def place(self) -> Place | None:
        """Return where the run can be looked at, and continued after a crash."""
        ...

    def finish(self, status: str, at_ms: int | None = None) -> bool:
        """Wait for what is still under way, and record FINISHED, KILLED or FAILED.

        at_ms: when the run ended, in milliseconds since 1970; None: now.

        Returns whether all of the run is recorded.
        """
        ...


class NoTracker:
    """Records nothing."""

    def params(self, params: RunParameters) -> None: ...

    def inputs(self, settings: Iterable[Setting]) -> None: ...

    def complete(self, rows: Iterable[Mapping[str, Any]]) -> None: ...

    def log(self, step: int, metrics: Mapping[str, float], at_ms: int | None = None) -> None: ...

    def flush(self) -> None: ...

    def artifact(self, path: Path) -> None: ...

    def model(self, bundle: Path, step: int) -> str:
        return ""

    def describe(self, text: str) -> None: ...

    def place(self) -> Place | None:
        return None

    def finish(self, status: str, at_ms: int | None = None) -> bool:
        return True


def start_tracker(
    tracking: Tracking,
    name: str,
    params: RunParameters,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    step: int = 0,
    about: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    mend: str = "",
) -> Tracker:
    """Start a run in MLflow, or continue one after `step` steps.

    run_id, tags: the run to continue is the one of this id, or the one that has all these tags.
    about: tags that a new run gets besides.
    columns: metrics that MLflow's table of runs shows.
    mend: the command that sends what MLflow lacks at the end.

    Raises InputError if the server does not answer or the store cannot be used.
    """
    if tracking.uri == "none":
        return NoTracker()
    if JOB in os.environ and not (tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")):
        log.warning(
            "no MLflow server is named: metrics go to metrics.jsonl only; set MLFLOW_TRACKING_URI"
        )
        return NoTracker()  # a database here would end with the job's folder
    if util.find_spec("mlflow") is None:
        if tracking.uri is not None:
            raise InputError(
                f"tracking.uri is {without_secrets(tracking.uri)} but mlflow is not installed",
                remedy="pip install mlflow",
            )
        log.warning("mlflow is not installed: metrics go to metrics.jsonl only")
        return NoTracker()
    from cluster.tracking.mlflow_tracker import MLflowTracker

    uri = store_uri(tracking)
    server = database(uri) is None  # which may accept a connection and never answer
    what = f"connecting to MLflow at {without_secrets(uri)}"
    with awaiting(what) if server else nullcontext():
        return MLflowTracker(
            tracking, name, params, run_id, tags or {}, step, about or {}, columns, mend
        )
