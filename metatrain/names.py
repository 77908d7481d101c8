"""Names of classes and files, in tables, captions of pictures and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from rich.cells import cell_len

MARK = "…"


def shortened(names: Iterable[str], most: int) -> dict[str, str]:
    """Each name in at most `most` columns, such as `very_lon…ere.png`. No two names look the same.

    Those that would are shown from where they differ. If that does not help, they are numbered.
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
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def counted(number: int, kind: str) -> str:
    """Return so many of a kind, as in "1 row" and "2 rows"."""
    return f"{number} {kind}{'s' * (number != 1)}"


def printable(name: str) -> str:
    """A name without characters that move a terminal's cursor or that no terminal has."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in name
    )


def _alike(found: dict[str, str]) -> list[list[str]]:
    """The groups of names that look the same."""
    groups: dict[str, list[str]] = {}
    for name, text in found.items():
        groups.setdefault(text, []).append(name)
    return [same for same in groups.values() if len(same) > 1]


def _cut(name: str, most: int) -> str:
    """A name without its middle, if it is too long. A Chinese character takes two columns."""
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
