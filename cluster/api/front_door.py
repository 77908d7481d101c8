"""The front door of functions for Python callers: messages, errors and random numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.api.files import one_line
from metatrain.core import InputError


@contextmanager
def front_door(again: str) -> Iterator[None]:
    """Show messages as the command line does, and raise errors that speak of Python's arguments.

    again: the call that continues a run which is interrupted or fails.
    """
    from cluster.collector import Interrupted
    from cluster.pools.pool import WorkersLost
    from metatrain.console import OPTIONAL
    from metatrain.isolation import same_random_numbers
    from metatrain.learner import Diverged

    try:
        with same_random_numbers(), _messages_shown():
            yield
    except InputError as error:
        what, expected, remedy = map(_in_python, (error.what, error.expected, error.remedy))
        refused = InputError(what, got=error.got, expected=expected, remedy=remedy)
        if error.saved:
            refused.add_note(f"{again} continues")
        raise refused from None
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}; {again} continues") from None
    except (Diverged, WorkersLost) as error:
        saved = "; the last whole step is saved" if error.saved else ""
        raise type(error)(f"{error}{saved}; {again} continues") from error
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        raise InputError(
            f"{error.name} is not installed", remedy="pip install 'ray[default,tune,train]' optuna"
        ) from error
    except OSError as error:  # a full disk, a folder that cannot be written
        place = f"{error.filename}: " if error.filename else ""
        reason = f"{place}{error.strerror or error}"
        raise InputError(reason, remedy="give another output") from error


def check_argument(name: str, given: Any, kind: Any, expected: str) -> None:
    """Refuse an argument of another type, which a command could not be given."""
    if not isinstance(given, kind):
        raise InputError(f"{name} is {one_line(repr(given))}", expected=expected)


def _in_python(text: str) -> str:
    """Replace a command's options by the arguments of these functions."""
    for option, argument in (
        ("--resume auto", "resume='auto'"),
        ("--resume", "resume"),
        ("--address", "address"),
        ("--seeds", "seeds"),
    ):
        text = text.replace(option, argument)
    return text


@contextmanager
def _messages_shown() -> Iterator[None]:
    """Show what our modules log, unless the caller has configured their logging."""
    ours = [logging.getLogger(name) for name in ("metatrain", "cluster", "tuning")]
    quiet = [logger for logger in ours if logger.level == logging.NOTSET]
    silent = [logger for logger in ours if not logger.hasHandlers()]
    handler = logging.StreamHandler()
    for logger in quiet:
        logger.setLevel(logging.INFO)
    for logger in silent:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in quiet:
            logger.setLevel(logging.NOTSET)
        for logger in silent:
            logger.removeHandler(handler)
