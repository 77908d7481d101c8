"""YAML from others: one sentence for what is wrong, soon, and nothing but plain data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from metatrain import schema, yaml_reader
from metatrain.core import InputError

LAUGHS = "\n".join(
    [f"a0: &a0 [{', '.join('x' * 10)}]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS, "more than 20,000 values and keys"),
        ("a: &a {b: *a}", "an anchor that refers to itself"),
        ("a: " + "[" * 5000, "more than 40 levels"),
        ("- " * 5000, "more than 40 levels"),
        (f"a: [{'1, ' * 30_000}]", "more than 20,000 values and keys"),
        ("a: {b: 1, b: 2}", "line 1: duplicate key 'b'"),
        ("a: 0x_", "line 1: '0x_' as int"),
        ("\na: 0b_", "line 2: '0b_' as int"),
        ("a: !!int 1:30", "line 1: '1:30' as int"),
        ("a: !!bool maybe", "'maybe' as bool"),
        ("a: !!timestamp x", "the tag 'tag:yaml.org,2002:timestamp'"),
        ("a: !!python/object:os.system x", "the tag 'tag:yaml.org,2002:python/object"),
        ("a: !mine x", "the tag '!mine'"),
        ("a: 0x" + "f" * 5000, "a number of too many digits"),
        ('a: "\\ud800"', r"text that holds \ud800"),
        ('"\\e[31mred": 1', r"text that holds \x1b"),
        ("? [a]\n: b", "a key that is no text"),
        ("on: 1", "a key that is no text"),
        ("<<: 3", "expected a mapping"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("\x1b", "special characters are not allowed"),
    ],
)
def test_what_is_no_configuration_is_refused_in_one_sentence(text: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        yaml_reader.parsed(text, "it")
    assert reason in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


def test_a_text_that_is_too_large_or_not_utf_8_is_refused() -> None:
    with pytest.raises(InputError, match="it has 300,000 bytes"):
        yaml_reader.parsed("x" * 300_000, "it")
    with pytest.raises(InputError, match="not text in UTF-8"):
        yaml_reader.parsed(b"a: \xff", "it")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 2001-99-99", {"a": "2001-99-99"}),  # as text, which a name may be
        ("[1:30, 60:30.5, -1:30]", ["1:30", "60:30.5", "-1:30"]),  # text, too
        ("[90, -1.5, 0x10, 1_000, 1.0e-3]", [90, -1.5, 16, 1000, 0.001]),
        ("b: &b {x: 1, y: 2}\nc: {<<: *b, y: 3}", {"b": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}}),
        ("a: &a [1]\nb: [*a, *a]", {"a": [1], "b": [[1], [1]]}),
        ("{1: a, b: .inf}", {1: "a", "b": float("inf")}),
    ],
)
def test_what_people_write_is_read(text: str, value: Any) -> None:
    assert yaml_reader.parsed(text, "it") == value


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("model={name: mlp, name: conv4}", "duplicate key 'name'"),
        (f"model={LAUGHS}", "more than 20,000 values"),
        ("seed=0x_", "'0x_' as int"),
        (f"{'a.' * 5000}b=1", "has 5001 parts"),
    ],
)
def test_overrides_are_read_as_strictly_as_files(item: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        schema.apply_overrides({}, [item])
    assert reason in str(error.value)
    assert len(str(error.value)) < 400


def test_a_pipe_is_no_recipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(InputError, match="no regular file"):
        schema.read(tmp_path / "recipe.yaml")


def test_yaml_is_loaded_in_one_place_only() -> None:
    root = Path(__file__).parent.parent
    files = [
        path for room in ("metatrain", "cluster", "tuning") for path in (root / room).rglob("*.py")
    ]
    loading = {
        path.name
        for path in files
        if "yaml.safe_load" in path.read_text() or "yaml.load" in path.read_text()
    }
    assert loading == {"yaml_reader.py"}
