"""The command `metatrain ui`."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from contextlib import suppress
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def ui(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's folder. Default: the store that runs started here use."),
    ] = None,
    port: Annotated[
        int,
        typer.Option(
            help="Port on this machine. If it is taken, the next free one.", min=0, max=65535
        ),
    ] = 5000,
) -> None:
    """Open MLflow's pages of a run. Example: metatrain ui runs/first"""
    from cluster.tracking.pages import served
    from cluster.tracking.place import place_of

    # SIGTERM ends this command as Ctrl-C does, so that the server ends with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), served(place_of(run), port) as (page, wait):
        print(f"MLflow: {page}", flush=True)
        display = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
        if sys.stdout.isatty() and display:
            webbrowser.open(page)
        wait()
