"""One sentence for the first thing that pydantic finds wrong in a file."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from typing import Annotated, Any

from pydantic import ValidationError

from metatrain.core import InputError
from metatrain.custom import OwnClass, no_key

# Keys and names of earlier versions, and what to do with them now.
FORMER = {
    "model.classifier": "leave it out if it is linear, or write head: {name: cosine}",
    "model.name rnn": "write {name: mlp, head: {name: memory}}, whose head has `cell` and `hidden`",
    "mode": "leave it out, the family's metric says which way is better",
}


def refusal(kind: Any, error: ValidationError, source: str) -> InputError:
    """Say the first thing that is wrong in a file, called `source`, that is read as `kind`."""
    # A misspelt key is also a missing one: name the one that is there.
    first = min(error.errors(), key=lambda found: found["type"] != "unexpected_keyword_argument")
    return InputError.at(source, _refusal(kind, first))


def _refusal(kind: Any, error: Any) -> InputError:
    path: list[str] = []
    here: Any = kind
    for part in error["loc"]:
        options = _dataclasses_of(here)
        tagged = [option for option in options if getattr(option, "name", None) == part]
        if len(options) > 1 and tagged:
            here = tagged[0]  # pydantic names the union's chosen member; the file does not
            continue
        if typing.get_origin(here) is dict and part != "[key]":
            path.append(str(part))
            here = typing.get_args(here)[1]
            continue
        if part == "[key]" or (not options and not isinstance(part, int)):
            break  # pydantic names the members of a plain union, too
        path.append(str(part))
        fields = _fields(options[0]) if len(options) == 1 else {}
        here = fields.get(part)
        if here is None and error["type"] == "unexpected_keyword_argument":
            file = getattr(kind, "FILE", kind.__name__.lower())
            key = ".".join(path)
            if key in FORMER:
                return InputError(f"{key} is no longer a key of a {file}", remedy=FORMER[key])
            return no_key(key, f"a {file}", fields)
    key = ".".join(path) or "the file"
    value = error["input"]
    match error["type"]:
        case "missing":
            return InputError(f"{key} is missing", remedy="give it a value")
        case "union_tag_not_found":
            return InputError(f"{key}.name is missing", expected=f"one of {_names(here)}")
        case "union_tag_invalid":
            given = value.get("name") if isinstance(value, dict) else value
            if (former := f"{key}.name {given}") in FORMER:
                return InputError(f"{former} is no longer there", remedy=FORMER[former])
            near = difflib.get_close_matches(str(given), _names(here).split(", "), n=1)
            is_open = any(isinstance(mark, OwnClass) for mark in getattr(here, "__metadata__", ()))
            own = ', or a class of yours as "package.module:Class"' if is_open else ""
            return InputError(
                f"{key}.name",
                got=given,
                expected=f"one of {_names(here)}{own}",
                remedy=f"did you mean {near[0]!r}?" if near else "",
            )
        case "value_error":
            return _inside(".".join(path), error["ctx"]["error"])
        case "model_attributes_type":
            first = _names(here).partition(",")[0]
            return InputError(key, got=value, expected=f"keys, such as {{name: {first}}}")
        case "dataclass_type" | "dict_type":
            return InputError(key, got=value, expected="keys with their values")
    expected = error["msg"].removeprefix("Input should be ").partition(", unable to parse")[0]
    return InputError(key, got=value, expected=expected)


def _inside(path: str, error: Exception) -> InputError:
    """Put the path of a component before an error about it or about one of its fields."""
    if not isinstance(error, InputError):
        return InputError.at(path, error) if path else InputError(str(error))
    is_field = error.got is not ...
    what = (f"{path}." if is_field else f"{path}: ") + error.what if path else error.what
    return InputError(what, got=error.got, expected=error.expected, remedy=error.remedy)


def _fields(kind: type) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


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
