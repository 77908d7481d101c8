"""What is suggested fits what was asked, and starts from a recipe that there is."""

from __future__ import annotations

import dataclasses
import shlex
from itertools import product
from typing import Any, get_args

import pytest
from pages import ROOT
from typer.testing import CliRunner

from cluster.config import RunConfig
from metatrain import schema
from metatrain.algorithms import BuiltIn
from metatrain.choosing import Choice, suggest
from metatrain.cli import app
from metatrain.core import InputError
from metatrain.methods import METHODS
from metatrain.models import heads

BY_NAME = {method.name: method for method in METHODS}
NEEDS = [
    {"kind": "images", "ways": ways, "shots": shots, "seconds_per_task": seconds}
    for ways, shots, seconds in product((2, 5, 20), (1, 5), (None, 0.01))
] + [
    {"kind": kind, "shots": shots, "seconds_per_task": seconds}
    for kind, shots, seconds in product(("table", "episodes"), (1, 10), (None, 0.001))
]


def started(choice: Choice) -> RunConfig:
    """The recipe of a suggestion, with the keys that it sets."""
    recipe, *arguments = shlex.split(choice.start)
    assert set(arguments[::2]) <= {"--set"}
    return schema.load(RunConfig, ROOT / recipe, arguments[1::2])


def test_the_table_has_every_algorithm_with_keys_and_a_head_that_there_are() -> None:
    kinds = {kind.name: kind for kind in get_args(BuiltIn)}
    assert {method.algorithm["name"] for method in METHODS} == kinds.keys()
    assert len(BY_NAME) == len(METHODS)
    for method in METHODS:
        fields = {field.name for field in dataclasses.fields(kinds[method.algorithm["name"]])}
        assert method.algorithm.keys() <= fields
        assert method.head in {head.name for head in get_args(get_args(heads.Head)[0])}


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: "-".join(map(str, need.values())))
def test_two_or_three_methods_are_suggested_and_start_from_a_recipe(need: dict[str, Any]) -> None:
    found = suggest(**need)
    assert len({choice.method for choice in found}) == len(found) in (2, 3)
    for choice in found:
        settings, method = started(choice), BY_NAME[choice.method]
        algorithm = vars(settings.algorithm)
        assert {key: algorithm[key] for key in method.algorithm} == {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in method.algorithm.items()
        }
        assert settings.model.head.name == method.head
        family = settings.recipe().setting("score").family
        if need["kind"] == "images":
            assert (family.ways, family.shots) == (need["ways"], need["shots"])
        elif need["kind"] == "table":
            assert family.shots == need["shots"]


def names(**need: Any) -> list[str]:
    return [choice.method for choice in suggest(**need)]


def test_time_ways_and_shots_decide() -> None:
    steps = {method.name for method in METHODS if method.family == "optimisation"}
    assert not steps & set(names(kind="images", ways=5, shots=5, seconds_per_task=0.01))
    assert steps & set(names(kind="images", ways=5, shots=1))
    assert "R2-D2" in names(kind="images", shots=5)
    assert "R2-D2" not in names(kind="images", shots=1)
    assert "first-order MAML" in names(kind="images", ways=20)
    assert names(kind="table", shots=5)[0] == "MAML"
    assert not steps & set(names(kind="table", shots=5, seconds_per_task=0.001))
    assert "MAML" not in names(kind="episodes", shots=1)
    assert "MAML" in names(kind="episodes", shots=20)


@pytest.mark.parametrize(
    ("need", "what"),
    [
        ({"kind": "images", "ways": 1}, "ways"),
        ({"kind": "images", "shots": 0}, "shots"),
        ({"kind": "table", "shots": 10**9}, "shots"),
        ({"kind": "table", "ways": 5}, "ways"),
        ({"kind": "images", "seconds_per_task": 0.0}, "seconds-per-task"),
        ({"kind": "images", "seconds_per_task": float("nan")}, "seconds-per-task"),
    ],
)
def test_what_cannot_be_is_refused(need: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError) as error:
        suggest(**need)
    assert error.value.what == what


def test_the_commands_print_the_table_and_the_suggestions() -> None:
    run = CliRunner().invoke
    printed = run(app, ["algorithms"]).output
    assert all(method.name in printed and method.when in printed for method in METHODS)
    printed = run(app, ["suggest", "--images", "--ways", "5", "--shots", "5"]).output
    *lines, own = printed.splitlines()
    assert [line[:3] for line in lines[::2]] == ["1. ", "2. ", "3. "]
    for line, choice in zip(lines[1::2], suggest("images", shots=5), strict=True):
        assert line.endswith(f" train {choice.start}")
        _, _, changes = own.partition(" and add ")
        family = started(choice._replace(start=f"{choice.start} {changes}")).family
        assert (family.data, family.splits, family.invert) == ("mine", None, False)
    printed = run(app, ["suggest", "--table"]).output
    assert "\nrows without groups: recipes/tables_short.yaml" in printed
    refused = run(app, ["suggest", "--table", "--episodes"]).exception
    assert isinstance(refused, InputError)
    assert refused.got == ["table", "episodes"]
