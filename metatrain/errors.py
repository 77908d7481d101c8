"""Errors that are one sentence for the user."""

from __future__ import annotations

from metatrain.addresses import without_secrets
from metatrain.names import printable, quoted

MOST_QUOTED = 200  # characters of a wrong value in a message
MOST_SAID = 1500  # of each other part of it


class Sentence(Exception):
    """An error whose message says all: a notebook shows that alone, and no traceback."""

    run: str | None = None  # the folder of the run that it ended
    saved = False  # whether that run has a checkpoint

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}", *getattr(self, "__notes__", ())]


class InputError(Sentence, ValueError):
    """Refuse what the user gave, in one sentence: "WHAT is GOT, expected EXPECTED: REMEDY".

    what: the key or the file that is wrong. Without `got` it is a clause, such as "a label is
        missing".
    got: the wrong value itself; None is a value, too.
    expected: the values that are right, such as "at least 1".
    remedy: what to do next, such as "give a folder".
    """

    def __init__(
        self, what: str, *, got: object = ..., expected: str = "", remedy: str = ""
    ) -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        what, expected, remedy = (_shown(part) for part in (what, expected, remedy))
        is_got = "" if got is ... else f" is {without_secrets(quoted(got, MOST_QUOTED))}"
        wanted = f", expected {expected}" if expected else ""
        super().__init__(f"{what}{is_got}{wanted}" + (f": {remedy}" if remedy else ""))

    @classmethod
    def at(cls, place: str, error: Exception) -> InputError:
        """Put a place, such as a file, before an error about something in it."""
        if not isinstance(error, InputError):
            return cls(f"{place}: {error}")
        what = f"{place}: {error.what}"
        return cls(what, got=error.got, expected=error.expected, remedy=error.remedy)


def _shown(text: str) -> str:
    """Return a part of a message without secrets and control characters, cut if it is long."""
    text = without_secrets(printable(text))
    return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}…"
