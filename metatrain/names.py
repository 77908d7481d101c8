"""Names of classes and files, in tables, captions of pictures and sentences."""

from __future__ import annotations

import dataclasses
import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any

from rich.cells import cell_len

MARK = "…"


def shortened(names: Iterable[str], most: int) -> dict[str, str]:
    """Return each name in at most `most` columns, such as `very_lon…ere.png`; all look different.

    Names that would look the same are shown from where they differ. If that does not help, they are
    numbered.
    """
    found = {name: _cut(printable(name), most) for name in names}
    for same in _alike(found):
        start = next(i for i, letters in enumerate(zip_longest(*same)) if len(set(letters)) > 1)
        found |= {name: _cut(MARK + printable(name[start:]), most) for name in same}
    for same in _alike(found):
        for number, name in enumerate(same, 1):
            found[name] = _cut(found[name], most - len(f"#{number}")) + f"#{number}"
    return found


def few(names: Sequence[str]) -> str:
    """Return the first five names, for a sentence that cannot list them all."""
    return ", ".join(map(printable, names[:5])) + (", ..." if len(names) > 5 else "")


def first(lines: Sequence[str], most: int = 50) -> list[str]:
    """Return the first lines, and one that says how many more there are."""
    more = len(lines) - most
    return [*lines[:most], *([f"and {more:,} more"] if more > 0 else [])]


def counted(number: int, kind: str) -> str:
    """Return so many of a kind, as in "1 row" and "2 rows"."""
    return f"{number} {kind}{'s' * (number != 1)}"


def printable(name: str) -> str:
    """Return a name without characters that move a terminal's cursor or that no terminal has."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in name
    )


def decoded(name: str) -> str:
    r"""Return the name of a file or folder with \xff for each byte that is no UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def undecoded(names: Iterable[str]) -> list[str]:
    """Return a note about the names that are not UTF-8, such as GBK's, if there are some."""
    odd = [decoded(name) for name in dict.fromkeys(names) if decoded(name) != name]
    if not odd:
        return []
    which = "1 class name is" if len(odd) == 1 else f"{len(odd)} class names are"
    return [f"{which} not UTF-8, and shown with \\x for each such byte: rename {few(odd)}"]


def quoted(name: object, most: int = 42) -> str:
    """Return a name or value for a message: control characters escaped, and cut if it is long."""
    try:
        text = printable(repr(name[:most] if isinstance(name, str) else name))
    except Exception:  # a whole number of 5,000 digits, or a class of the user's
        return f"a value of type {type(name).__name__}"
    is_whole = len(text) <= most and not (isinstance(name, str) and len(name) > most)
    return text if is_whole else f"{text[: most - 2]}…{text[0]}"


def listed(names: Sequence[object]) -> str:
    """Return the first ten names, quoted, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(quoted, names[:10])) + more


def instead(name: str, known: Sequence[object]) -> str:
    """Return what to do about a column that does not exist: the nearest name, or all names."""
    texts = [other for other in known if isinstance(other, str)]
    near = difflib.get_close_matches(name, texts, n=1, cutoff=0.5)
    return f"did you mean {quoted(near[0])}?" if near else f"the columns are {listed(known)}"


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that occurs several times."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _alike(found: dict[str, str]) -> list[list[str]]:
    """Return the groups of names that look the same."""
    groups: dict[str, list[str]] = {}
    for name, text in found.items():
        groups.setdefault(text, []).append(name)
    return [same for same in groups.values() if len(same) > 1]


def _cut(name: str, most: int) -> str:
    """Cut the middle out of a name that is too long. A Chinese character takes two columns."""
    if cell_len(name) <= most:
        return name
    widths = [cell_len(character) for character in name]
    head, tail, taken = 0, len(name), [0, 0]
    while True:
        at_tail = taken[0] > taken[1]
        taken[at_tail] += widths[tail - 1 if at_tail else head]
        if sum(taken) + cell_len(MARK) > most:
            return name[:head] + MARK + name[tail:]
        head, tail = (head, tail - 1) if at_tail else (head + 1, tail)


def described(component: Any, *, adapts: bool = False) -> str:
    """A family, a model or an algorithm by its name and its fields, without those that are off.

    adapts: leave out what an algorithm uses in training only.
    """
    words = [str(component.name)] if hasattr(component, "name") else []
    for item in dataclasses.fields(component):
        value = getattr(component, item.name)
        # By identity: 0 equals False.
        off = value is None or value is False or value in ((), ("*",))
        if item.name == "name" or off or (adapts and item.metadata.get("training_only")):
            continue
        text = f"{value}".replace(" ", "")
        if dataclasses.is_dataclass(value):
            inner = described(value)
            text = f"({inner})" if " " in inner else inner
        words.append(f"{item.name}={text}")
    return " ".join(words)
