"""Classes of the user's own, named "package.module:Class" in a recipe."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import GetCoreSchemaHandler, TypeAdapter
from pydantic.errors import PydanticUserError
from pydantic_core import CoreSchema, core_schema

C = TypeVar("C")


class NotImported(ValueError):
    """A class that cannot be imported here."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"cannot import {name!r} ({reason}): correct it, or run in the folder that holds it"
        )
        self.reason = reason


class OwnClass:
    """Lets a name be "package.module:Class": a class of the user's that does what `protocol`
    says.
    """

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
        if not isinstance(name, str) or ":" not in name:
            return built_in(value)
        return construct(_own(name, self._protocol), value) if isinstance(value, dict) else value


def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's reader and writer of a dataclass."""
    return _adapter(kind)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Make it once: that takes ten milliseconds."""
    return TypeAdapter(kind)


def _dump(config: Any) -> Any:
    return adapter(type(config)).dump_python(config, mode="json")


def construct(kind: type[C], tree: dict[str, Any]) -> C:
    """A dataclass from its fields; ValueError where one is unknown, which a class of the user's
    might let pass.
    """
    fields = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    for key in tree.keys() - fields:
        near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(sorted(fields))}"
        )
        raise ValueError(f"{key} is not a key of {tree.get('name', kind.__name__)}; {hint}")
    name = str(tree.get("name"))
    with guarded(name) if ":" in name else nullcontext():
        try:
            found: C = adapter(kind).validate_python(tree)
            return found
        except PydanticUserError as error:
            reason = str(error).splitlines()[0]
            sentence = (
                f"{tree['name']} has a field that cannot be read from YAML ({reason}): correct it"
            )
            raise ValueError(sentence) from error


def imported(name: str) -> Any:
    """What "package.module:Class" names, imported from this folder or from what is installed."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # a console script does not look here
    try:
        return getattr(importlib.import_module(module), attribute)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the user's module raises, sys.exit among it
        raise NotImported(name, _reason(error)) from error


@contextmanager
def guarded(name: str) -> Iterator[None]:
    """Whatever a class of the user's raises as ValueError; it may even exit."""
    try:
        yield
    except (KeyboardInterrupt, ValueError):
        raise
    except BaseException as error:
        raise ValueError(
            f"{name} cannot be made of these values ({_reason(error)}): correct them, or it"
        ) from error


def own(names: Iterable[Any]) -> list[str]:
    """Those of the names that are of a user's own classes."""
    return [name for name in names if isinstance(name, str) and ":" in name]


def _own(name: str, protocol: type) -> type[Any]:
    """The class of the user's that "package.module:Class" names."""
    kind = imported(name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(
            f"{name!r} is no dataclass: decorate it with @dataclass(frozen=True, kw_only=True)"
        )
    fields = {field.name for field in dataclasses.fields(kind)}
    if "name" not in fields:
        raise ValueError(f"{name!r} has no field for its name: give it one, `name: str`")
    lacking = [
        n
        for n in vars(protocol)
        if not n.startswith("_") and n not in fields and not hasattr(kind, n)
    ]
    if lacking:
        raise ValueError(
            f"{name!r} is no {protocol.__name__}, it lacks {', '.join(lacking)}: see "
            "metatrain/core.py"
        )
    return kind


def _reason(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception:  # its text may be the user's as well
        return type(error).__name__
