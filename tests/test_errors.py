"""What the user gave wrong is one sentence, whose parts stay known to the code that catches it."""

from __future__ import annotations

import math
import pickle
from types import SimpleNamespace

import pytest
from ray import cloudpickle

from metatrain.core import InputError, at_least


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


@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_fields_that_are_too_small_are_refused_by_their_names(value: float) -> None:
    at_least(SimpleNamespace(shots=1, queries=2), shots=1, queries=1)
    with pytest.raises(InputError) as error:
        at_least(SimpleNamespace(shots=1, queries=value), shots=1, queries=1)
    assert (error.value.what, error.value.expected) == ("queries", "at least 1")
    assert error.value.got is value
