"""What the user gave wrong is one sentence, whose parts stay known to the code that catches it."""

from __future__ import annotations

import dataclasses
import math
import pickle
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import pytest
from ray import cloudpickle
from test_reference import NAMED

from metatrain.bounds import bounded, bounds_of, check_bounds
from metatrain.core import InputError


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("a label is missing"), "a label is missing"),
        (InputError("a label is missing", remedy="add it"), "a label is missing: add it"),
        (InputError("lr", got=-1, expected="at least 0"), "lr is -1, expected at least 0"),
        (InputError("norm", got="x", expected="y", remedy="z"), "norm is 'x', expected y: z"),
        (InputError("output", got=None, remedy="give a folder"), "output is None: give a folder"),
    ],
)
def test_the_parts_of_an_error_make_one_sentence(error: InputError, sentence: str) -> None:
    assert str(error) == sentence


def test_a_place_goes_before_an_error_and_its_parts_stay() -> None:
    inside = InputError("outer.lr", got=-1, expected="at least 0", remedy="raise it")
    error = InputError.at("my.yaml", inside)
    assert str(error) == "my.yaml: outer.lr is -1, expected at least 0: raise it"
    parts = (error.what, error.got, error.expected, error.remedy)
    assert parts == ("my.yaml: outer.lr", -1, "at least 0", "raise it")
    assert str(InputError.at("my.yaml", ValueError("no"))) == "my.yaml: no"
    assert str(InputError.at("my.yaml", InputError("no"))) == "my.yaml: no"


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_an_error_from_a_worker_keeps_its_parts(pickler: object) -> None:
    for error in (InputError("lr", got=-1, expected="at least 0"), InputError("no")):
        arrived = pickle.loads(pickler.dumps(error))  # type: ignore[attr-defined]
        assert (str(arrived), vars(arrived)) == (str(error), vars(error))


@dataclass(frozen=True, kw_only=True)
class Numbers:
    shots: int = bounded(1, least=1, most=10)
    rate: float = bounded(above=0, most=1e30)
    widths: tuple[int, ...] | None = bounded(None, least=1, most=10**8)

    def __post_init__(self) -> None:
        check_bounds(self)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"shots": 0}, "at least 1"),
        ({"shots": math.nan}, "a finite number"),
        ({"shots": 11}, "at most 10"),
        ({"rate": 0.0}, "above 0"),
        ({"rate": math.inf}, "at most 1e+30"),
        ({"widths": [4, 0]}, "numbers from 1 to 1e+08"),
    ],
)
def test_numbers_outside_their_bounds_are_refused_by_their_names(
    changed: dict[str, Any], expected: str
) -> None:
    Numbers(**{"rate": 1e30, "shots": 10, "widths": (1, 10**8)})
    (name, value), *_ = changed.items()
    with pytest.raises(InputError) as error:
        Numbers(**{"rate": 1.0, **changed})
    assert (error.value.what, error.value.expected) == (name, expected)
    assert error.value.got is value or error.value.got == value


@pytest.mark.parametrize("kind", NAMED)
def test_every_number_in_a_file_has_its_least_and_most_value(kind: Any) -> None:
    hints = get_type_hints(kind)
    numbers = {
        field.name
        for field in dataclasses.fields(kind)
        if {int, float} & {hints[field.name], *get_args(hints[field.name])}
        or hints[field.name] in (tuple[int, ...], tuple[float, ...])
    }
    assert numbers - bounds_of(kind).keys() <= {"splits"}  # which sum to one
    assert not bounds_of(kind) or hasattr(kind, "__post_init__")


@pytest.mark.parametrize(
    "value",
    ["\x1b[31m", "x" * 5000, [["x" * 5000] * 50] * 50, 10**5000],
    ids=["escape", "text", "list", "number"],
)
def test_what_is_quoted_is_escaped_and_cut(value: object) -> None:
    text = str(InputError("a \x1b\n", got=value, expected="\x07", remedy="y" * 10_000))
    assert text.isprintable()
    assert len(text) < 2000
