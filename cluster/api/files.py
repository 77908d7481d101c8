"""The files that a run leaves: result.json, metrics.jsonl and YAML."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from cluster.lines import whole_lines
from metatrain import storage
from metatrain.core import InputError

if TYPE_CHECKING:
    from metatrain.metrics import Metric

Tree = dict[str, Any]


def read_result(place: str) -> Tree:
    """Read a run's result.json; InputError if there is none yet, or another file of that name."""
    data = read(f"{place}/result.json")
    if data is None:
        raise InputError(
            f"{place} has no result yet",
            remedy="train it to its end, with resume='auto' if it has begun",
        )
    try:
        found: Tree = nan_for_null(json.loads(data))
        whole = bool(found["scores"]) and all(
            {"metric", "mean", "ci95"} <= score.keys() for score in found["scores"]
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{place}/result.json is damaged", remedy="train or evaluate again")
    return found


def scores(result: Tree) -> list[Tree]:
    """Return the scores of a result.json, the result first."""
    found: list[Tree] = result["scores"]
    return found


def metric_of(score: Tree) -> Metric:
    """Return the metric of a recorded score; earlier versions did not record how it is read."""
    from metatrain.metrics import Metric

    return Metric(score["metric"], score.get("better", "max"), score.get("shown", "linear"))


def rows(data: bytes) -> list[dict[str, Any]]:
    """Return the whole lines of metrics.jsonl."""
    return [json.loads(line) for _, line in whole_lines(data)]


def read(uri: str) -> bytes | None:
    """Read a file; None if there is none."""
    return storage.read(uri) if storage.is_file(uri) else None


def read_yaml(uri: str) -> Tree:
    """Read a YAML file; InputError if there is none."""
    from metatrain import schema

    if not storage.is_file(uri):
        raise InputError(f"there is no {uri.rpartition('/')[2]}")
    return schema.read(uri)


def one_line(text: str) -> str:
    """Return a text without control characters, cut after 300 characters."""
    from metatrain.names import printable

    shown = printable(text)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."


def nan_for_null(value: Any) -> Any:
    """Return JSON's data with NaN instead of null: JSON has no number that is none."""
    if isinstance(value, dict):
        return {key: nan_for_null(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nan_for_null(item) for item in value]
    return math.nan if value is None else value
