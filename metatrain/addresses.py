"""Addresses without their secrets: as messages, records and pages show them."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
# An address, up to a space, which only a password may hold. Its user and password end at the last
# @: they may hold /, # and ?. A path that is made of it has one slash.
# A match begins at the start of a word, so that it takes linear time in any text.
SCHEME = r"(?<![a-zA-Z0-9_+.-])(?P<scheme>[a-zA-Z0-9_+.-]+):(?P<mark>//?|\\+)"
SPACED = r"[^\s/@:'\"]*:(?!\d{1,5}(?:[\s/?#'\"),\]]|$))[^'\"@]{0,200}@"  # no port and a later @
# Without a scheme: a user with a password, the options of a host with a port, or named options.
PASSWORD = r"(?<![\w.+%~-])[\w.+%~-]*:(?!/)[^\s'\"]{0,2000}@"
HOST = r"(?<![\w.-])[\w.-]+:\d+/?(?=[?#])"
NAMED = r"(?=\?[^\s'\"?&;=]+=)"
ADDRESS = re.compile(
    rf"{SCHEME}(?P<rest>(?:{SPACED})?\S*)|{PASSWORD}(?P<place>\S*)|(?P<host>{HOST}|{NAMED})\S+"
)
BEFORE_PASSWORD = re.compile(r"(?://|\\\\)?[^/@\\]*:[^@]*@")  # an address without a scheme
# A value after ?, & or ;, or a part of a query that has no name. A quotation mark ends it.
VALUE = re.compile(r"(?P<name>[?&;](?:[^=&;\s'\"]*=)?)[^&;\s'\"]+")
# MLflow's own pages are what follows #/ in their addresses.
FRAGMENT = re.compile(r"(?P<name>#)(?!/)[^\s'\"]+")
IPV6 = re.compile(r"\[[\da-fA-F:.]+(?:%\w+)?\]")
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
    found = re.match(SCHEME, uri)
    if found is None:
        return BEFORE_PASSWORD.match(uri) is not None
    user, _, place = uri[found.end() :].rpartition("@")
    if _is_page(found["scheme"]) and FRAGMENT.search(place):
        return True
    return ":" in unquote(user) or "@" in user or "?" in place


def misread(uri: str) -> bool:
    """Whether HTTP would take a part of the user or the password for the host or the path."""
    if not uri.startswith(("http://", "https://")):
        return False
    return "@" in uri and "@" not in re.split("[/?#]", uri.partition("://")[2])[0]


def hide(text: str, uri: str) -> str:
    """Return somebody else's text about an address without any part of the address's secrets.

    uri: the address, also without a scheme, or an argument such as --set=KEY=ADDRESS.
    """
    text = text.replace(uri, without_secrets(uri))
    parts = {piece for secret in _secrets(uri) for piece in (secret, *_pieces(secret))}
    parts |= {unquote(part) for part in parts}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= SHORTEST:
            text = text.replace(part, HIDDEN)
    return without_secrets(text)


def _secrets(uri: str) -> list[str]:
    found = re.search(SCHEME, uri)
    if found is not None:
        scheme, rest = found["scheme"], uri[found.end() :]
        user, _, place = _divided(scheme, rest)
        secrets = [user.partition(":")[2] or user]
    else:
        scheme, (user, _, place) = "", uri.rpartition("@")
        secrets = [user.partition(":")[2]]
        if not re.search(f"{HOST}|{NAMED}", place):
            return secrets
    if _is_sqlite(f"{scheme}://"):
        return secrets
    options = re.split("[?&;]|#(?!/)", place)[1:]
    return secrets + [option.partition("=")[2] or option for option in options]


def _pieces(secret: str) -> list[str]:
    return re.split(r"[/#?@:&=\s]", f"{secret}@{unquote(secret)}")


def _shown(found: re.Match[str]) -> str:
    if found["host"] is not None:
        return _without_values(found[0])
    if found["place"] is not None:
        return f"{HIDDEN}@{_without_values(found['place'])}"
    scheme, rest = found["scheme"], found["rest"]
    if _is_sqlite(f"{scheme}://"):
        return found[0]
    _, mark, place = _divided(scheme, rest)
    if place.startswith("[") and not IPV6.match(place):
        place = HIDDEN  # no host
    shown = _without_values(place) if _is_page(scheme) else VALUE.sub(_hidden, place)
    return f"{scheme}:{found['mark']}{HIDDEN + mark if mark else ''}{shown}"


def _without_values(place: str) -> str:
    return FRAGMENT.sub(_hidden, VALUE.sub(_hidden, place))


def _divided(scheme: str, rest: str) -> tuple[str, str, str]:
    """Return the user with the password, an @ and the place of what follows a scheme."""
    user, mark, place = rest.rpartition("@")
    if not _is_page(scheme) and "/" in user and ":" not in user:
        return "", "", rest  # a path with an @, such as s3://bucket/run@2
    return user, mark, place


def _hidden(found: re.Match[str]) -> str:
    return f"{found['name']}{HIDDEN}"


def _is_page(scheme: str) -> bool:
    return scheme.endswith(("http", "https"))


def _is_sqlite(uri: str) -> bool:
    return uri.startswith(("sqlite://", "sqlite+pysqlite://"))
