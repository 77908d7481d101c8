"""Ctrl-C and SIGTERM as a request to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.jobs.job import stamp


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a request to stop; the second one acts at once."""
    stop = False

    def ask(number: int, frame: object) -> None:
        nonlocal stop
        if stop:
            raise KeyboardInterrupt
        stop = True
        answer = (
            f"{stamp()}stopping: it saves first"
            if stamp()
            else "\nstopping; a second Ctrl-C ends at once"
        )
        os.write(2, f"{answer}\n".encode())  # print() might be what was interrupted

    if threading.current_thread() is not threading.main_thread():
        # Signals belong to the main thread; whoever owns this one stops it otherwise.
        yield lambda: False
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
