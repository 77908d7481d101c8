"""The least and the most value of each number in a file, written where its field is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from metatrain.errors import InputError

RATE = 1e30  # above it a step overflows float32
STEPS = 10**9
TASKS = 100_000
EXAMPLES = 10_000
SEED = 10**308


class Bounds(NamedTuple):
    """The values that a number may have; of a list, those that each number in it may have."""

    least: float
    most: float
    above: bool  # the least one is not among them

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        least, most = _shown(self.least), _shown(self.most)
        return f"above {least}, at most {most}" if self.above else f"{least} to {most}"


def bounded(
    default: Any = dataclasses.MISSING,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """Return the field of a dataclass whose `__post_init__` is `check_bounds`.

    Its value is a number, None, or a tuple of numbers. Without a default it must be given.

    least: the smallest value.
    above: a bound that the value must exceed, instead of `least`.
    metadata: more of the field's, such as TRAINING_ONLY.
    """
    lowest = above if least is None else least
    if lowest is None:
        raise TypeError("give least or above")
    bounds = Bounds(lowest, most, least is None)
    found = dataclasses.field(metadata={**(metadata or {}), "bounds": bounds})
    found.default = default
    return found


def bounds_of(kind: Any) -> dict[str, Bounds]:
    """Return the bounds of each field of a dataclass that has some."""
    return {
        field.name: field.metadata["bounds"]
        for field in dataclasses.fields(kind)
        if "bounds" in field.metadata
    }


def check_bounds(config: Any) -> None:
    """Refuse numbers that are outside their bounds."""
    for name, bounds in bounds_of(config).items():
        value = getattr(config, name)
        several = isinstance(value, list | tuple)
        if value is None or all(each in bounds for each in (value if several else [value])):
            continue
        expected = f"numbers from {bounds}" if several else _expected(value, bounds)
        raise InputError(name, got=list(value) if several else value, expected=expected)


def _expected(value: Any, bounds: Bounds) -> str:
    """Say the bound that a value passed: at its other side there may be none to speak of."""
    if value != value:  # nan
        return "a finite number"
    if isinstance(value, int | float) and value > bounds.most:
        return f"at most {_shown(bounds.most)}"
    return f"{'above' if bounds.above else 'at least'} {_shown(bounds.least)}"


def _shown(number: float) -> str:
    return f"{number:g}" if abs(number) >= 10**7 else f"{number:,}"
