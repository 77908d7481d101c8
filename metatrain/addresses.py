"""Addresses without their secrets: as messages, records and pages show them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
# An address, up to a space. Its user and password end at the last @: they may hold /, # and ?.
# A path that is made of it has one slash.
ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)(?P<mark>://?)(?P<rest>\S*)")
# A value after ?, & or ;, or a part of a query that has no name. A quotation mark ends it.
VALUE = re.compile(r"(?P<name>[?&;](?:[^=&;\s'\"]*=)?)[^&;\s'\"]+")
SHORTEST = 3  # characters of a secret's part that is looked for in other texts


def without_secrets(text: str) -> str:
    """Return a text with asterisks for the users, passwords and query values of its addresses.

    The path of a SQLite store holds no secret, so its options stay.
    """
    return ADDRESS.sub(_shown, text)


def tree_without_secrets(value: Any) -> Any:
    """Return plain data with asterisks for the secrets of all addresses in it."""
    if isinstance(value, dict):
        return {key: tree_without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tree_without_secrets(item) for item in value]
    return without_secrets(value) if isinstance(value, str) else value


def holds_secret(uri: str) -> bool:
    """Whether an address has a password, or options, which may be one; a user's name is none."""
    if _is_sqlite(uri):
        return False
    user, _, place = uri.partition("://")[2].rpartition("@")
    return ":" in user or "@" in user or "?" in place


def misread(uri: str) -> bool:
    """Whether HTTP would take a part of the user or the password for the host or the path."""
    if not uri.startswith(("http://", "https://")):
        return False
    return "@" in uri and "@" not in re.split("[/?#]", uri.partition("://")[2])[0]


def hide(text: str, uri: str) -> str:
    """Return somebody else's text about an address without any part of the address's secrets."""
    text = text.replace(uri, without_secrets(uri))
    before, _, rest = uri.partition(":/")
    scheme = before.rpartition("=")[2]  # an argument may be --set=KEY=ADDRESS
    user, _, place = _divided(scheme, rest.removeprefix("/"))
    secrets = [user.partition(":")[2] or user]
    if not _is_sqlite(f"{scheme}://"):
        secrets += [part.partition("=")[2] for part in re.split("[?&;]", place)[1:]]
    parts = {piece for secret in secrets for piece in (secret, *re.split(r"[/#?@:&=]", secret))}
    parts |= {unquote(part) for part in parts}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST:
            text = text.replace(part, HIDDEN)
    return without_secrets(text)


def _shown(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    if _is_sqlite(f"{scheme}://"):
        return found[0]
    _, mark, place = _divided(scheme, rest)
    return f"{scheme}{found['mark']}{HIDDEN + mark if mark else ''}{VALUE.sub(_hidden, place)}"


def _divided(scheme: str, rest: str) -> tuple[str, str, str]:
    """Return the user with the password, an @ and the place of what follows a scheme."""
    user, mark, place = rest.rpartition("@")
    if not scheme.startswith("http") and "/" in user and ":" not in user:
        return "", "", rest  # a path with an @, such as s3://bucket/run@2
    return user, mark, place


def _hidden(found: re.Match[str]) -> str:
    return f"{found['name']}{HIDDEN}"


def _is_sqlite(uri: str) -> bool:
    return uri.startswith(("sqlite://", "sqlite+pysqlite://"))
