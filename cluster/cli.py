"""Commands that train and evaluate, in process or on Ray."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from metatrain import cli

app = typer.Typer(
    help=cli.app.info.help,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli.app)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to join, instead of a local one.")]


@app.command()
def train(
    recipe: Path,
    set_: Set = None,
    address: Address = None,
    resume: Annotated[
        str | None, typer.Option(metavar="DIR|auto", help="Continue a run: its folder, or the newest of this recipe.")
    ] = None,
) -> None:
    """Meta-train a recipe and evaluate it. Example: metatrain train recipes/demo.yaml --set outer.steps=100"""
    from cluster import run
    from cluster.config import RunConfig
    from cluster.requests import Interrupted, WorkersLost
    from metatrain import recipe as recipes
    from metatrain.core import InputError
    from metatrain.learner import Diverged

    config = recipes.load(RunConfig, recipe, set_ or [])
    try:
        folder, scores = run.train(config, address, resume)
    except Interrupted:
        print("stopped; a checkpoint is saved: continue with --resume auto", file=sys.stderr)
        raise typer.Exit(130) from None
    except (Diverged, WorkersLost) as error:
        raise InputError(f"{error}; the last whole step is saved") from error
    score = scores[0]
    print(f"before adaptation: {_show(score.metric, score.curve[0])}")
    for name, value in score.baselines.items():
        print(f"{name.replace('_', ' ')} on pixels: {_show(score.metric, value)}")
    print("pictures:", *sorted(str(path) for path in (folder / "figures").glob("*.png")))
    if (folder / "mlflow.json").exists():
        print(f"compare runs: {cli.program()} ui {folder}")
    for score in scores[1:] + scores[:1]:
        print(score.line())


@app.command()
def evaluate(checkpoint: str, set_: Set = None, address: Address = None) -> None:
    """Score a run, checkpoint or bundle. Example: metatrain evaluate runs/demo/20261121-101500"""
    from cluster import run

    scores = run.evaluate(checkpoint, set_ or [], address)
    for score in scores[1:] + scores[:1]:
        print(score.line())


@app.command()
def config(recipe: Path, set_: Set = None) -> None:
    """Print a recipe with all its values, and where each comes from: default, recipe or --set.

    Example: metatrain config recipes/demo.yaml --set outer.lr=0.01
    """
    from cluster.config import RunConfig
    from metatrain import recipe as recipes

    print(recipes.explain(recipes.load(RunConfig, recipe, set_ or []), recipe, set_ or []))


@app.command()
def ui(
    run: Annotated[Path | None, typer.Argument(help="A run's folder; by default where runs here log to.")] = None,
    port: Annotated[
        int, typer.Option(help="Port on this machine; another one where it is taken.", min=0, max=65535)
    ] = 5000,
) -> None:
    """Open the MLflow store that a run used. Example: metatrain ui runs/first"""
    from cluster import tracking
    from cluster.ui import served

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the server ends with this command
    with suppress(KeyboardInterrupt), served(tracking.place_of(run), port) as (page, wait):
        print(f"MLflow: {page}", flush=True)
        if sys.stdout.isatty() and (sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")):
            webbrowser.open(page)
        wait()


def _show(metric: str, value: float) -> str:
    return f"{100 * value:.2f}%" if metric == "accuracy" else f"{value:.4f}"
