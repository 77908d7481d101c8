"""The range of a searched key: what a sweep file may write, and how values are drawn from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from optuna.distributions import BaseDistribution
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain as TuneDomain

from metatrain.bounds import RATE
from metatrain.core import InputError

Values = dict[str, Any]  # dotted key -> value: what a trial has of its own

Kind = Literal["uniform", "loguniform", "quantised", "integers", "choice", "grid"]
LISTED = ("choice", "grid")
BOUNDS = {"uniform": "[low, high]", "loguniform": "[low, high]", "integers": "[low, high]"}
BOUNDS |= {"quantised": "[low, high, step]", "choice": "[a, b, ...]", "grid": "[a, b, ...]"}
MOST_VALUES = 200  # that are listed: each is tried out before a sweep starts
MOST_INTEGER = 2**53  # above it floats skip some


class Domain(NamedTuple):
    """What a key may be."""

    kind: Kind
    values: tuple[Any, ...]  # the bounds (both included), or all that is listed

    @property
    def is_listed(self) -> bool:
        return self.kind in LISTED

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.values)

    def samples(self) -> Sequence[Any]:
        """Both ends of a range and a value between, or all listed values, to be tried out.

        If these are valid, all values are.
        """
        if self.is_listed:
            return self.values
        between = self.for_tune().sample(random_state=np.random.RandomState(0))
        return (*self.values[:2], plain(between))

    def for_tune(self) -> TuneDomain:
        """Return the range as Tune has it."""
        low, high, *step = self.values if not self.is_listed else (None, None)
        match self.kind:
            case "uniform":
                return tune.uniform(low, high)
            case "loguniform":
                return tune.loguniform(low, high)
            case "quantised":
                return tune.quniform(low, high, *step)
            case "integers":
                return tune.randint(low, high + 1)
            case _:
                return tune.choice(list(self.values))

    def for_optuna(self) -> BaseDistribution:
        """Return the range as Optuna has it."""
        return OptunaSearch.convert_search_space({"key": self.for_tune()})["key"]

    def clip(self, value: Any) -> Any:
        """Return a value moved into the range."""
        return value if self.is_listed else min(max(value, self.values[0]), self.values[1])

    def __str__(self) -> str:
        return f"{self.kind} {list(self.values)}"


def read_domain(key: str, given: Any) -> Domain:
    """Read what a sweep file gives for a key, such as {uniform: [0, 1]}."""
    kinds = get_args(Kind)
    if not (isinstance(given, dict) and len(given) == 1 and next(iter(given)) in kinds):
        raise InputError(
            f"space.{key}",
            got=given,
            expected=f"one of {', '.join(kinds)}, such as {{uniform: [0, 1]}}",
        )
    (kind, values), *_ = given.items()

    def refused(condition: str = "") -> InputError:
        return InputError(f"space.{key}.{kind}", got=values, expected=BOUNDS[kind] + condition)

    if not isinstance(values, list) or not values:
        raise refused()
    if len(values) > MOST_VALUES:
        raise refused(f" of at most {MOST_VALUES} values")
    if kind in LISTED:
        return Domain(kind, tuple(values))
    try:
        numbers = [float(v) for v in values]  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        raise refused() from None
    if len(numbers) != BOUNDS[kind].count(",") + 1 or not all(map(math.isfinite, numbers)):
        raise refused()
    if max(map(abs, numbers)) > (MOST_INTEGER if kind == "integers" else RATE):
        most = "2^53" if kind == "integers" else f"{RATE:g}"
        raise refused(f" of numbers up to {most}")
    if not numbers[0] < numbers[1]:
        raise refused(" with low < high")
    if kind == "loguniform" and numbers[0] <= 0:
        raise refused(" with low above 0")
    if kind == "quantised" and numbers[2] <= 0:
        raise refused(" with step above 0")
    if kind == "integers":
        if not all(number.is_integer() for number in numbers):
            raise refused(" of whole numbers")
        return Domain(kind, tuple(map(int, numbers)))
    made = Domain(kind, tuple(numbers))
    try:
        made.for_tune()
    except (ValueError, ArithmeticError) as error:
        raise refused(" with low and high that are multiples of step") from error
    return made


def fitted(seed: int) -> int:
    """Return the seed, or 32 bits of its hash if it is above what numpy and Optuna take."""
    if seed < 2**32:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")


def plain(value: Any) -> Any:
    """Return a number of numpy's as one of Python's, and any other value as it is."""
    return value.item() if isinstance(value, np.generic) else value
