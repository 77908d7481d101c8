"""Shared parts of all commands: errors in one sentence, signals, tables and JSON on stdout."""

from __future__ import annotations

import io
import logging
import os
import platform
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from metatrain.addresses import hide, without_secrets
from metatrain.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

OPTIONAL = ("ray", "optuna")  # what a machine without a cluster may lack
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout, and everything else on stderr.")
]


class Commands(TyperGroup):
    """Commands whose errors repeat an argument as typed, but no password of an address in it."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with _hidden():
            return super().make_context(*args, **extra)

    def invoke(self, *args: Any, **extra: Any) -> Any:
        with _hidden():
            return super().invoke(*args, **extra)


class _Messages(logging.Handler):
    """Log lines on stderr as it is at that moment: above a spinner, if one stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody reads it any more
            self.handleError(record)


def main(app: Callable[[], object], log_format: str = "%(message)s") -> None:
    """Run a command: an error of the user's is one sentence and exit code 2, Ctrl-C is code 130."""
    signal.signal(signal.SIGINT, _stop)
    _repair_streams()
    logging.basicConfig(
        level=logging.INFO, format=log_format, datefmt="%H:%M:%S", handlers=[_Messages()]
    )
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    empty = next((given for given in sys.argv[1:] if re.fullmatch(r"(--[\w-]+=)?", given)), None)
    if empty is not None:
        _refuse(f"the argument {empty!r} is empty: give a value, or leave it out")
    try:
        app()
    except InputError as error:
        _refuse(str(error), *notes(error))
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        _refuse(f"{error.name} is not installed: pip install 'ray[default,tune,train]' optuna")
    except OSError as error:  # a full disk, a folder that cannot be written
        logging.getLogger(__name__).debug("the operating system refused", exc_info=True)
        _refuse(f"{error.strerror or error}: {error.filename or 'see --help'}", *notes(error))


def notes(error: Exception) -> list[str]:
    """Return the lines that follow an error's sentence, such as the command that continues."""
    return list(getattr(error, "__notes__", ()))


def _refuse(sentence: str, *after: str) -> NoReturn:
    print(_shown("\n".join([f"error: {InputError(sentence)}", *after])), file=sys.stderr)
    sys.exit(2)


@contextmanager
def _hidden() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "format_message"):  # typer exports no class of all its usage errors
            error.message = _shown(str(getattr(error, "message", "")))  # type: ignore[attr-defined]
        raise


def _shown(text: str) -> str:
    """Return a text about the arguments without the secrets of their addresses."""
    for given in sys.argv[1:]:
        text = hide(text, given)
    return text


def _stop(number: int, frame: FrameType | None) -> None:
    """Handle Ctrl-C."""
    os.write(2, b"stopped\n")  # print() might be what was interrupted
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(130)  # C extensions swallow an exception in their import, or abort on it
        frame = frame.f_back
    raise KeyboardInterrupt


def _repair_streams() -> None:
    """Make stdout and stderr take every character, also if the caller closed them."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # A name may have characters that the terminal lacks.
            stream.reconfigure(errors="backslashreplace")


def program() -> str:
    """Return what to type for this command: its name, or the path as typed if PATH lacks it."""
    typed = sys.argv[0]
    is_found = Path(typed).name == "metatrain" and shutil.which("metatrain") != typed
    return typed if is_found else "metatrain"


def again(arguments: Sequence[str], *way: str) -> str:
    """Return the command with these arguments, its --name and --resume replaced by `way`.

    Passwords of addresses in it are not repeated: the line goes to logs and to a cluster.
    """
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument in ("--name", "--resume"):
            next(rest, None)
        elif not argument.startswith(("--name=", "--resume=")):
            kept.append(argument)
    return shlex.join([program(), *map(without_secrets, kept), *way])


def version() -> str:
    """Return the versions that a bug report names, without an import of the packages."""
    from metatrain import __version__

    found = [f"Python {platform.python_version()}"]
    for name in ("torch", "ray", "mlflow"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return f"metatrain {__version__} ({', '.join(found)})"


def print_table(table: Table) -> None:
    """Print a table; if stdout is no terminal, without lines and colours and as wide as it is."""
    from rich.console import Console

    console = Console(
        width=None if sys.stdout.isatty() else 10_000, markup=False, emoji=False, highlight=False
    )
    if sys.stdout.isatty():
        console.print(table)
        return
    table.box, table.pad_edge = None, False
    with console.capture() as printed:
        console.print(table)
    print(*map(str.rstrip, printed.get().splitlines()), sep="\n")


@contextmanager
def printing_json(alone: bool) -> Iterator[Callable[[object], None]]:
    """Yield a function that prints JSON on stdout; with `alone` all else goes to stderr."""
    from metatrain.plain import to_json

    stdout = sys.stdout

    def show(value: object) -> None:
        print(to_json(value, indent=1), file=stdout)

    with redirect_stdout(sys.stderr if alone else stdout):
        yield show
