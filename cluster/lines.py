"""The lines of metrics.jsonl, one for each outer step, and which of them are damaged."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MOST_STEP = 1 << 53  # beyond it a float does not hold each whole number
MOST_MS = 1 << 43  # since 1970: the year 2248
MOST_METRIC = 250  # characters of a metric's name: MLflow takes no more


def whole_lines(data: bytes) -> Iterator[tuple[int, str]]:
    """Yield (step, line) for each whole line of a metrics.jsonl.

    A process that was killed while writing leaves half a line, and an editor may leave any other.
    """
    for line in data.split(b"\n"):
        try:
            text = line.decode()
            row = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_whole(row):
            yield row["step"], text


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Whether a line has a step, its time if it is known, and numbers or null by their names."""
    at_ms = row.get("at_ms")
    return (
        _is_count(row.get("step"), MOST_STEP)
        and (at_ms is None or _is_count(at_ms, MOST_MS))
        and all(len(name) <= MOST_METRIC and name.isprintable() for name in row)
        and all(value is None or _is_number(value) for value in row.values())
    )


def made(steps: Iterable[int]) -> int:
    """Return how many outer steps lines are of; that of step 0 is a validation before the first."""
    return len(set(steps) - {0})


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _is_number(value: object) -> bool:
    """Whether a value from JSON is a number that a float can hold; NaN and Infinity are none."""
    most = sys.float_info.max
    return isinstance(value, int | float) and type(value) is not bool and -most <= value <= most
