"""YAML files as trees of dataclasses: strict loading, dotted overrides, dumping, explaining."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from metatrain import yaml_reader
from metatrain.bounds import bounds_of
from metatrain.core import InputError
from metatrain.custom import adapter, construct
from metatrain.names import quoted
from metatrain.refusal import refusal

Tree = dict[str, Any]
C = TypeVar("C")


def load(kind: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file as a dataclass, after overrides such as "algorithm.inner_lr=0.1"."""
    return parse(kind, apply_overrides(read(path), overrides), str(path))


def read(path: Path | str) -> Tree:
    """Read the keys and values of a YAML file, here or in a storage, without validating them."""
    return yaml_reader.read(path)


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Set each "dotted.key=value" in the tree. The value is YAML."""
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            expected = "key=value, such as algorithm.inner_lr=0.1"
            raise InputError("--set", got=item, expected=expected)
        try:
            found = yaml_reader.parsed(value, f"the value of --set {quoted(item)}")
        except InputError as error:
            remedy = "write it like --set 'model.hidden=[40, 40]'"
            raise InputError(error.what, expected=error.expected, remedy=remedy) from error
        put(tree, key.strip(), found)
    return tree


def parse(kind: type[C], tree: Any, source: str) -> C:
    """Validate plain data as a dataclass. An InputError says the first thing that is wrong."""
    try:
        config: C = adapter(kind).validate_python(tree)
    except ValidationError as error:
        raise refusal(kind, error, source) from error
    for key, value in flatten(adapter(kind).dump_python(config)):  # as JSON, nan would be null
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{source}: {key}", got=value, expected="a finite number")
    return config


def dump(config: Any) -> Tree:
    """Turn a dataclass into the plain data that `parse` reads back."""
    tree: Tree = adapter(type(config)).dump_python(config, mode="json")
    return tree


def as_yaml(config: Any) -> str:
    """Write a configuration as the text of a YAML file."""
    return yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True)


def explain(config: Any, sources: Mapping[str, str], meanings: bool = False) -> str:
    """Write a configuration as YAML that says where each value comes from.

    sources: dotted key -> the comment after its value, as `origins` gives it; else "default".
    meanings: whether a comment above each key says what the key means.
    """

    def text(value: Any) -> str:
        flow = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
        return flow.removesuffix("\n...\n").strip()

    def lines(tree: Tree, node: Any, prefix: str, indent: str) -> Iterator[str]:
        about = fields_explained(type(node), ranges=True) if meanings else {}
        for key, value in tree.items():
            if key in about:
                yield f"{indent}# {about[key]}"
            if isinstance(value, dict) and value:
                below = node.get(key) if isinstance(node, dict) else getattr(node, key)
                yield f"{indent}{text(key)}:"
                yield from lines(value, below, f"{prefix}{key}.", f"{indent}  ")
            else:
                source = sources.get(f"{prefix}{key}", "default")
                yield f"{f'{indent}{text(key)}: {text(value)}':<48}  # {source}"

    return "\n".join(lines(dump(config), config, "", ""))


def origins(path: Path | str, overrides: Sequence[str], file: str = "recipe") -> dict[str, str]:
    """Say of each dotted key that is not a default whether `file` or --set gave its value."""
    given = dict(flatten(apply_overrides(read(path), overrides)))
    prefixes = [item.partition("=")[0].strip() for item in overrides]

    def is_set(key: str) -> bool:
        return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)

    return {key: "--set" if is_set(key) else file for key in given}


def fields_explained(kind: type, *, ranges: bool = False) -> dict[str, str]:
    """Return the docstring below each field of a dataclass and of those it inherits from.

    ranges: add the values that a number may have.
    """
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        try:
            node = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):  # a class that was typed, not read from a file
            continue
        for line, below in pairwise(node.body if isinstance(node, ast.ClassDef) else []):
            match line, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(text))),
                ):
                    found[name] = " ".join(text.split())
    if ranges and dataclasses.is_dataclass(kind):
        for name in found.keys() & (bounds := bounds_of(kind)).keys():
            found[name] = f"{found[name]} {str(bounds[name]).capitalize()}."
    return found


def override(component: C, changes: Mapping[str, Any], source: str) -> C:
    """Change some fields of a component and validate it again."""
    if not changes:
        return component
    tree = dump(component)
    name = tree.get("name")
    if changes.get("name", name) != name:
        remedy = "train another run for that"
        raise InputError(f"{source} cannot change the name from {name!r}", remedy=remedy)
    for item in dataclasses.fields(component):  # type: ignore[arg-type]
        changed = item.name in changes and changes[item.name] != tree[item.name]
        if changed and item.metadata.get("training_only"):
            raise InputError(
                f"{source}.{item.name} would change nothing: {name} uses it in training only",
                remedy="leave it out, or train another run with it",
            )
    try:
        return construct(type(component), tree | dict(changes))
    except ValidationError as error:
        raise refusal(type(component), error, source) from error
    except ValueError as error:
        raise InputError.at(source, error) from error


def put(tree: Tree, key: str, value: Any) -> None:
    """Set a dotted key."""
    *parents, last = key.split(".")
    if len(parents) > yaml_reader.MOST_DEPTH:
        raise InputError(f"the key {quoted(key)} has {len(parents) + 1} parts")
    for parent in parents:
        if tree.get(parent) is None:  # a group that was left out, such as evaluation.attack
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise InputError(
                f"{key} cannot be set: {parent} is a value, not a group",
                remedy="`metatrain config` shows the keys",
            )
    tree[last] = value


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for each leaf: the keys that `put` sets."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
