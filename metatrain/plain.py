"""JSON that every reader accepts: numbers that are not finite are null."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(value: Any, indent: int | None = None) -> str:
    """Return numbers, text, lists, tuples and mappings as JSON."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_key(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _key(key: Any) -> Any:
    """Return a key that JSON has: a class may be the number infinity."""
    return str(key) if isinstance(key, float) and not math.isfinite(key) else key


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return those metrics that are finite numbers."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
