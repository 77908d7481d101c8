"""Says that a command waits: a spinner on a terminal, a line in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

LARGE = 50_000_000  # bytes


@cache
def screen() -> Console:
    """Return the terminal of stderr.

    There is one, so that what moves on it can stand below something else that does.
    """
    from rich.console import Console

    return Console(stderr=True)


def reading(name: str, size: int) -> AbstractContextManager[object]:
    """Say that a file is read, if it has so many bytes that this takes a second or more."""
    return awaiting(f"reading {name}") if size > LARGE else nullcontext()


@contextmanager
def awaiting(what: str) -> Iterator[Callable[[str], None]]:
    """Say what is awaited, such as "starting Ray", until the end of the context.

    On a terminal the context's function shows another text, such as "evaluating: 20 of 600 tasks".
    """
    if not sys.stderr.isatty():
        log.info("%s", what)
        yield lambda text: None
        return
    with screen().status(what) as status:
        yield status.update
