"""YAML files as trees of dataclasses: strict loading, dotted overrides, dumping and explaining."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from metatrain import storage
from metatrain.core import InputError
from metatrain.custom import adapter, construct
from metatrain.refusal import refusal

Tree = dict[str, Any]
C = TypeVar("C")


class _Loader(yaml.SafeLoader):
    """YAML that says a key once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice} is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load(kind: type[C], path: Path | str, overrides: Sequence[str] = ()) -> C:
    """Read a YAML file as a dataclass tree, after overrides such as "algorithm.inner_lr=0.1"."""
    return parse(kind, apply_overrides(read(path), overrides), str(path))


def read(path: Path | str) -> Tree:
    """A YAML file of keys and values, not yet validated; that of a run may lie in a storage, as its
    output does.
    """
    try:
        tree = yaml.load(
            storage.read(str(path)).decode()
            if storage.is_remote(str(path))
            else Path(path).read_text(),
            _Loader,
        )
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read recipe {path}",
            remedy=f"{reason}; give a YAML file such as those in recipes/",
        ) from error
    except yaml.YAMLError as error:
        raise InputError(
            f"{path} is not YAML", remedy=f"{' '.join(str(error).split())}; correct it there"
        ) from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold keys and values, such as `name", remedy="my-run`")
    return tree


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Set each "dotted.key=value" in the tree, the value being YAML."""
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"--set takes key=value, such as algorithm.inner_lr=0.1; got {item!r}")
        try:
            put(tree, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise InputError(
                f"the value of --set {item!r} is not YAML",
                remedy=("write it like --set 'model.hidden=[40, 40]'"),
            ) from error
    return tree


def parse(kind: type[C], tree: Any, source: str) -> C:
    """Validate plain data as a dataclass; the first thing wrong is the error's sentence."""
    try:
        found: C = adapter(kind).validate_python(tree)
    except ValidationError as error:
        raise refusal(kind, error, source) from error
    for key, value in flatten(adapter(kind).dump_python(found)):  # as JSON, nan would be null
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{source}", remedy=f"{key} is {value}, expected a finite number")
    return found


def dump(config: Any) -> Tree:
    """The dataclass tree as plain data that `parse` reads back."""
    found: Tree = adapter(type(config)).dump_python(config, mode="json")
    return found


def as_yaml(config: Any) -> str:
    """A configuration as the text of a YAML file."""
    return yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True)


def explain(config: Any, path: Path | str, overrides: Sequence[str], origin: str = "recipe") -> str:
    """The configuration as YAML, with a comment for each value: default, --set, or the file, called
    `origin`.
    """
    given = {key for key, _ in flatten(apply_overrides(read(path), overrides))}
    prefixes = [item.partition("=")[0].strip() for item in overrides]

    def source(key: str) -> str:
        if key not in given:
            return "default"
        return "--set" if any(key == p or key.startswith(f"{p}.") for p in prefixes) else origin

    def text(value: Any) -> str:
        flow = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
        return flow.removesuffix("\n...\n").strip()

    def lines(tree: Tree, prefix: str, indent: str) -> Iterator[str]:
        for key, value in tree.items():
            if isinstance(value, dict) and value:
                yield f"{indent}{text(key)}:"
                yield from lines(value, f"{prefix}{key}.", f"{indent}  ")
            else:
                yield f"{f'{indent}{text(key)}: {text(value)}':<48}  # {source(f'{prefix}{key}')}"

    return "\n".join(lines(dump(config), "", ""))


def override(component: C, changes: Mapping[str, Any], source: str) -> C:
    """A component with some of its fields changed, validated again."""
    if not changes:
        return component
    tree = dump(component)
    if changes.get("name", tree.get("name")) != tree.get("name"):
        raise InputError(
            f"{source} cannot change the name from {tree['name']!r}",
            remedy="train another run for that",
        )
    for item in dataclasses.fields(component):  # type: ignore[arg-type]
        if (
            item.name in changes
            and item.metadata.get("training_only")
            and changes[item.name] != tree[item.name]
        ):
            raise InputError(
                f"{source}.{item.name} would change nothing",
                remedy=(
                    f"{tree['name']} uses it in training "
                    "only; leave it out, or "
                    "train another run with it"
                ),
            )
    try:
        return construct(type(component), tree | dict(changes))
    except ValidationError as error:
        raise refusal(type(component), error, source) from error
    except ValueError as error:
        raise InputError(f"{source}", remedy=f"{error}") from error


def put(tree: Tree, key: str, value: Any) -> None:
    """Set a dotted key."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise InputError(
                f"{key!r} cannot be set",
                remedy=(f"{parent!r} is a value, not a group; `metatrain config` shows the keys"),
            )
    tree[last] = value


def flatten(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) for each leaf: the keys that `put` sets."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
