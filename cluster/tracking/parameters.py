"""A run's parameters as MLflow has them, and which of them a resumed run changed."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from functools import cache

from cluster.tracking.tracker import RunParameters
from metatrain.addresses import without_secrets

# MLflow's rule for names: the pattern of an outer group loses its asterisk.
NOT_IN_NAMES = re.compile(r"[^\w\-. :/]", re.ASCII)
NOT_IN_METRICS = re.compile(r"[^\w\-. :/]")  # these may have letters of any language
# The name of a parameter's new value in a resumed run.
CHANGED = re.compile(r"(.+) from step (\d+)(?: attempt (\d+))?")
NOT_SET = "not set"  # the value of a key that a resumed run leaves out


def as_text(params: RunParameters) -> dict[str, str]:
    """Return parameters without secrets, with the names and lengths that MLflow takes."""
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    return {
        NOT_IN_NAMES.sub("_", key): without_secrets(str(value))[:MAX_PARAM_VAL_LENGTH]
        for key, value in params
    }


@cache
def metric_name(name: str) -> str:
    """Return a metric's name as MLflow takes it, which refuses all metrics that come with another.

    A name is a path in MLflow's store, such as val/mse_after.
    """
    return posixpath.normpath(NOT_IN_METRICS.sub("_", name)).lstrip("/.") or "_"


def changes(recorded: Mapping[str, str], now: Mapping[str, str], step: int) -> dict[str, str]:
    """Return the parameters to add so that MLflow says which values a run has from `step` on.

    MLflow never changes a parameter. A new value of outer.lr goes beside it, as "outer.lr from step
    400", and as "outer.lr from step 300 attempt 2" if the run resumes before a step from which
    another value held: the last attempt counts.
    """
    past: dict[str, list[tuple[int, int, str]]] = {}
    for name, value in recorded.items():
        found = CHANGED.fullmatch(name)
        if found:
            past.setdefault(found[1], []).append((int(found[3] or 1), int(found[2]), value))
    groups = {key.partition(".")[0] for key in now}
    known = [key for key in recorded.keys() | past.keys() if not CHANGED.fullmatch(key)]
    gone = {key: NOT_SET for key in sorted(known) if key.partition(".")[0] in groups}
    added = {}
    for key, value in {**gone, **now}.items():
        # (first step, value) of the values that held
        course = [(-1, recorded.get(key, NOT_SET))]
        attempts = sorted(past.get(key, []))
        for _, start, changed in attempts:
            course = [point for point in course if point[0] < start] + [(start, changed)]
        held = [changed for start, changed in course if start <= step][-1]
        undone = [changed for start, changed in course[1:] if start >= step]
        if {held, *undone} != {value}:
            attempt = (attempts[-1][0] if attempts else 1) + bool(undone)
            again = f" attempt {attempt}" if attempt > 1 else ""
            added[f"{key} from step {step}{again}"] = value
    return added
