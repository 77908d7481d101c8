"""Classes of the user's own, named "package.module:Class" in a recipe."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import CoreSchema, core_schema

from metatrain.core import InputError

C = TypeVar("C")


class NotImported(InputError):
    """Say that a class cannot be imported here, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"cannot import {name!r} ({reason})",
            remedy="fix it, or run in the folder that holds it",
        )
        self.reason = reason


class OwnClass:
    """Let the name of a component be "package.module:Class": a class with `protocol`'s methods."""

    def __init__(self, protocol: type) -> None:
        self._protocol = protocol

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        built_in = handler(source)
        plain = core_schema.plain_serializer_function_ser_schema(_dump)
        return core_schema.no_info_wrap_validator_function(
            self._validate, built_in, serialization=plain
        )

    def _validate(self, value: Any, built_in: Callable[[Any], Any]) -> Any:
        name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
        if not isinstance(name, str) or not own([name]):
            return built_in(value)
        return construct(_own(name, self._protocol), value) if isinstance(value, dict) else value


def own(names: Iterable[Any]) -> list[str]:
    """Return those of the names that are of a user's own classes."""
    return [name for name in names if isinstance(name, str) and ":" in name]


def imported(name: str) -> Any:
    """Import "package.module:Class" from this folder or from the installed packages."""
    if not re.fullmatch(r"[^\W\d][\w.]*:[^\W\d]\w*", name):
        raise InputError("name", got=name, expected='"package.module:Class"')
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a console script does not look here
    try:
        return getattr(importlib.import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's module may raise anything, such as SystemExit
        raise NotImported(name, _reason(error)) from error


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """Turn whatever a class of the user's raises into an InputError. It may even exit."""
    try:
        yield
    except (KeyboardInterrupt, ValueError):
        raise
    except BaseException as error:
        raise InputError(
            f"{name} cannot be built with these values ({_reason(error)})",
            remedy="fix the values or the class",
        ) from error


@contextmanager
def staying(what: str) -> Iterator[None]:
    """Turn an end of the process that a class of the user's asks for into an InputError."""
    try:
        yield
    except (SystemExit, GeneratorExit) as error:
        raise InputError(
            f"a class of yours ended the process in {what} ({_reason(error)})",
            remedy="raise an exception there",
        ) from error


def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's reader and writer of a dataclass."""
    return _adapter(kind)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Build an adapter once: that takes ten milliseconds."""
    return TypeAdapter(kind)


def construct(kind: type[C], tree: dict[str, Any]) -> C:
    """Build a component from its fields.

    Raises InputError if a field is unknown, which a class of the user's might accept, and
    pydantic's ValidationError if a value does not fit.
    """
    name = str(tree.get("name", kind.__name__))
    fields = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    for key in tree.keys() - fields:
        raise no_key(str(key), name, fields)
    with guarded(name) if own([name]) else nullcontext():
        try:
            component: C = adapter(kind).validate_python(tree)
            return component
        except PydanticUserError as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{name} has a field that cannot be read from YAML ({reason})", remedy="fix it"
            ) from error


def no_key(key: str, owner: str, keys: Iterable[str]) -> InputError:
    """Refuse a key that `owner` does not have, with the nearest one that it has."""
    near = difflib.get_close_matches(key.rpartition(".")[2], keys, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(keys))}"
    return InputError(f"{key} is not a key of {owner}", remedy=remedy)


def _dump(component: Any) -> Any:
    return adapter(type(component)).dump_python(component, mode="json")


def _own(name: str, protocol: type) -> type[Any]:
    """Import a class of the user's, and refuse it if it cannot be a component."""
    kind = imported(name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InputError(
            f"{name!r} is not a dataclass",
            remedy="decorate it with @dataclass(frozen=True, kw_only=True)",
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    if "name" not in fields:
        raise InputError(f"{name!r} has no field for its name", remedy="add `name: str`")
    lacking = [
        method
        for method in vars(protocol)
        if not method.startswith("_") and method not in fields and not hasattr(kind, method)
    ]
    if lacking:
        raise InputError(
            f"{name!r} lacks {', '.join(lacking)}",
            remedy=f"metatrain/core/contracts.py says what a {protocol.__name__} has",
        )
    return kind


def _reason(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception:  # its text may be the user's as well
        return type(error).__name__
