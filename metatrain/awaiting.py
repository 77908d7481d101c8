"""What a command waits for: a spinner on a terminal, a line in a log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


@contextmanager
def awaiting(what: str) -> Iterator[None]:
    """Say what is awaited, such as "starting Ray", until the end of the context."""
    if not sys.stderr.isatty():
        log.info("%s", what)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
