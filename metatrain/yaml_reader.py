"""YAML from anywhere as plain data: bounded in size, nodes and depth, and never unpickled."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from metatrain import files, storage
from metatrain.core import InputError
from metatrain.names import printable, quoted

MOST_BYTES = 2**18  # PyYAML reads so much in two seconds
MOST_NODES = 20_000  # values and keys, each as often as anchors repeat it
MOST_DEPTH = 40  # Python's own limit is near 1,000 calls
MOST_DIGITS = 400  # of a whole number
TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")

KEY_TAGS = [f"tag:yaml.org,2002:{name}" for name in ("str", "int", "merge")]


class _Loader(yaml.SafeLoader):
    """Read plain data in which no key is there twice. Dates stay text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._nodes = self._depth = 0
        self._sizes: dict[int, int] = {}  # id of a finished node -> nodes in it

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark, before = self.peek_event().start_mark, self._nodes  # type: ignore[no-untyped-call]
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ConstructorError(None, None, f"more than {MOST_DEPTH} levels", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise ConstructorError(None, None, "an anchor that refers to itself", mark)
        self._nodes += self._sizes[id(node)] if is_alias else 1
        if self._nodes > MOST_NODES:
            problem = f"more than {MOST_NODES:,} values and keys, with those that anchors repeat"
            raise ConstructorError(None, None, problem, mark)
        self._sizes.setdefault(id(node), self._nodes - before)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in KEY_TAGS:
                raise ConstructorError(None, None, "a key that is no text", key.start_mark)
            if key.value in seen:
                problem = f"duplicate key {quoted(key.value)}"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        mark = node.start_mark
        if tag in ("int", "float") and ":" in str(node.value):
            raise ConstructorError(None, None, f"{quoted(node.value)} as {tag}", mark)
        if tag not in TAGS or node.tag == tag:
            raise ConstructorError(None, None, f"the tag {quoted(node.tag)}", mark)
        if tag == "int" and len(str(node.value)) > MOST_DIGITS:
            raise ConstructorError(None, None, "a number of too many digits", mark)
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            raise ConstructorError(None, None, f"{quoted(node.value)} as {tag}", mark) from None
        if isinstance(value, str) and (wrong := _unwritable(value)):
            raise ConstructorError(None, None, f"text that holds {wrong}", mark)
        return value


# Without dates, and without numbers to the base of 60: only text looks like them, as 60:30 does.
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(f"(?![^:]*:)(?:{pattern.pattern})", pattern.flags))
        if tag.endswith((":int", ":float"))
        else (tag, pattern)
        for tag, pattern in resolvers
        if not tag.endswith(":timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parsed(text: str | bytes, source: str) -> Any:
    """Read a text of YAML, in UTF-8 whatever the locale.

    source: the name of the text in errors.

    Raises InputError if it is not YAML, or more than a configuration can be.
    """
    if len(text) > MOST_BYTES:
        raise InputError(
            f"{source} has {len(text):,} bytes", expected=f"at most {MOST_BYTES:,} of YAML"
        )
    try:
        return yaml.load(text if isinstance(text, str) else text.decode(), _Loader)
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not text in UTF-8", remedy="save it as UTF-8") from error
    except yaml.YAMLError as error:
        reason = _reason(error)
        raise InputError(f"{source} is not YAML ({reason})", remedy="fix it there") from error


def read(path: Path | str) -> dict[str, Any]:
    """Read the keys and values of a YAML file, here or in a storage."""
    try:
        place = storage.checked(str(path))
        source = storage if storage.is_remote(place) else files
        data = source.read(place, MOST_BYTES)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot read {path} ({reason})", remedy="give a YAML file such as those in recipes/"
        ) from error
    return keys(data, str(path))


def keys(text: str | bytes, source: str) -> dict[str, Any]:
    """Read the keys and values of a text of YAML that is called `source` in errors."""
    tree = parsed(text, source)
    if not isinstance(tree, dict):
        raise InputError(f"{source} has no keys", remedy="give some, such as `name: my-run`")
    return tree


def is_text(value: str) -> bool:
    """Whether a file that holds a name as it is, without quotes, means that text."""
    try:
        return bool(parsed(value, "it") == value)
    except InputError:
        return False


def _reason(error: yaml.YAMLError) -> str:
    """Say what is wrong with a text, and at which line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    said = (getattr(error, name, None) for name in ("context", "problem"))
    return f"line {mark.line + 1}: {': '.join(filter(None, said))}"


def _unwritable(text: str) -> str | None:
    """Return the first character that no name or path may have, escaped; None without one."""
    found = next((c for c in text if (ord(c) < 32 and c not in "\t\n\r") or _no_text(c)), None)
    return None if found is None else printable(found)


def _no_text(c: str) -> bool:
    """Whether a character is half of a pair, which UTF-8 cannot have, or moves the cursor."""
    return "\ud800" <= c <= "\udfff" or "\x7f" <= c <= "\x9f"
