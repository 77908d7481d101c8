"""One sentence for the first thing that pydantic finds wrong in a file."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Annotated, Any

from pydantic import ValidationError

from metatrain.core import InputError
from metatrain.custom import OwnClass


def refusal(kind: Any, error: ValidationError, source: str) -> InputError:
    # A misspelt key is also a missing one: name the one that is there.
    found = sorted(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
    return InputError(f"{source}", remedy=f"{_sentence(kind, found[0])}")


def _sentence(kind: Any, error: Any) -> str:
    """What is wrong, what was expected, what to do: from the first of pydantic's errors."""
    path: list[str] = []
    here: Any = kind
    for part in error["loc"]:
        options = _dataclasses_of(here)
        tagged = [option for option in options if getattr(option, "name", None) == part]
        if len(options) > 1 and tagged:
            here = tagged[0]  # pydantic names the union's chosen member; the file does not
            continue
        if not options and not isinstance(part, int):
            break  # pydantic names the members of a plain union, too
        path.append(str(part))
        fields = typing.get_type_hints(options[0], include_extras=True) if len(options) == 1 else {}
        here = fields.get(part)
        if here is None and error["type"] == "unexpected_keyword_argument":
            near = difflib.get_close_matches(str(part), fields, n=1, cutoff=0.5)
            hint = (
                f"did you mean {near[0]!r}?"
                if near
                else f"choose one of {', '.join(sorted(fields))}"
            )
            file = getattr(kind, "FILE", kind.__name__.lower())
            return f"{'.'.join(path)} is not a key of a {file}; {hint}"
    where = ".".join(path) or "the file"
    value = error["input"]
    if error["type"] == "missing":
        return f"{where} is missing; give it a value"
    if error["type"] == "union_tag_not_found":
        return f"{where} needs a name: one of {_names(here)}"
    if error["type"] == "union_tag_invalid":
        given = value.get("name") if isinstance(value, dict) else value
        near = difflib.get_close_matches(str(given), _names(here).split(", "), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        open_ = any(isinstance(mark, OwnClass) for mark in getattr(here, "__metadata__", ()))
        own = ', or a class of yours as "package.module:Class"' if open_ else ""
        return f"{where}.name is {given!r}, expected one of {_names(here)}{own}{hint}"
    if error["type"] == "value_error":
        return f"{where}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    expected = error["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
    return f"{where} is {value!r}, expected {expected}"


def _dataclasses_of(hint: Any) -> list[Any]:
    if typing.get_origin(hint) is Annotated:
        return _dataclasses_of(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [found for option in typing.get_args(hint) for found in _dataclasses_of(option)]
    return [hint] if dataclasses.is_dataclass(hint) else []


def _names(hint: Any) -> str:
    return ", ".join(
        str(getattr(option, "name", option.__name__)) for option in _dataclasses_of(hint)
    )
