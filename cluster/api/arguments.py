"""Recipes and overrides of Python callers, as the plain data that a YAML file would hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from cluster.api.files import Tree, one_line
from metatrain.core import InputError


def as_tree(given: Any, what: str) -> tuple[Tree, str]:
    """Return a recipe or a sweep as plain data of its own, and its name in errors.

    given: a YAML file's path, a dict or the dataclass; what: "recipe" or "sweep".
    """
    from metatrain import schema

    if isinstance(given, str | PurePath):
        return schema.read(str(given)), str(given)
    if isinstance(given, Mapping) or _is_dataclass(given):
        tree: Tree = plain(given)
        return tree, f"the {what}"
    raise InputError(
        f"the {what} is {one_line(repr(given))}",
        expected="a YAML file's path, a dict or the dataclass",
    )


def plain(value: Any) -> Any:
    """Turn arrays, paths and dataclasses into dicts, lists, numbers and strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | range):
        return [plain(item) for item in value]
    if _is_dataclass(value):
        fields = (field.name for field in dataclasses.fields(value) if field.init)
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, PurePath):
        return str(value)
    return value.tolist() if hasattr(value, "tolist") else value  # numpy's and torch's


def change(tree: Tree, overrides: Mapping[str, Any]) -> None:
    """Set dotted keys, and merge dicts into the groups that they are given for."""
    from metatrain import schema

    for key, value in plain(overrides).items():
        if "." in key:
            schema.put(tree, key, value)
        else:
            _merge(tree, {key: value})


def _merge(tree: Tree, changes: Tree) -> None:
    for key, value in changes.items():
        before = tree.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            if "name" in value and value["name"] != before.get("name"):
                tree[key] = value  # another algorithm has other keys
            else:
                _merge(before, value)
        else:
            tree[key] = value


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
