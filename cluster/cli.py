"""Commands that train and evaluate, in process or on Ray."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metatrain import cli

if TYPE_CHECKING:
    from metatrain.evaluate import Score

app = typer.Typer(
    help=cli.app.info.help,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(cli.app)

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe.")]
RecipeFile = Annotated[str, typer.Argument(help="A YAML file such as those in recipes/.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster to join, instead of a local one.")]


@app.command()
def train(
    recipe: RecipeFile,
    set_: Set = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="RUN|FILE", help="Start from the weights of a run or a safetensors file (model.weights)."),
    ] = None,
    address: Address = None,
    resume: Annotated[
        str | None, typer.Option(metavar="DIR|auto", help="Continue a run: its folder, or the newest of this recipe.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate memory and time, from a few tasks.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option(metavar="FILE", help="Only compute one outer step, and write a trace of it.")
    ] = None,
) -> None:
    """Meta-train a recipe and evaluate it. Example: metatrain train recipes/demo.yaml --set outer.steps=100"""
    from cluster import run, tracking
    from cluster.config import RunConfig
    from cluster.requests import Interrupted, WorkersLost
    from metatrain import recipe as recipes
    from metatrain.core import InputError
    from metatrain.learner import Diverged
    from metatrain.start import check_data

    config = recipes.load(RunConfig, recipe, [*(set_ or []), *([f"model.weights={init}"] if init else [])])
    if dry_run or profile:
        from cluster import probe

        check_data(config.recipe())
        if dry_run:
            print(*probe.estimate(config).lines(config), sep="\n")
        if profile:
            print(probe.trace(config, Path(profile)), f"trace: {profile}; open it at https://ui.perfetto.dev", sep="\n")
        return
    try:
        folder, scores = run.train(config, address, resume)
    except Interrupted as stopped:
        again = "run the same command again to go on" if resume == "auto" else "continue with --resume auto"
        print(f"{stopped}; {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (Diverged, WorkersLost) as error:
        raise InputError(f"{error}; the last whole step is saved") from error
    score = scores[0]
    if len(score.curve) > 1:
        print(f"before adaptation: {score.text(score.curve[0])}")
    for name, value in score.baselines.items():
        print(f"{name.replace('_', ' ')}: {score.text(value)}{_paired(score, name)}")
    print("pictures:", *folder.names("figures/*.png"))
    if (folder / "mlflow.json").exists():
        place = tracking.place_of(str(folder))
        page = f"{place.address()}{place.page()}" if place.uri.startswith("http") else f"{cli.program()} ui {folder}"
        print(f"compare runs: {page}")
    print_results(scores, f"all else is in {folder}")


@app.command()
def evaluate(
    trained: Annotated[str, typer.Argument(help="A run's folder, one of its checkpoints, or a bundle.")],
    set_: Set = None,
    address: Address = None,
) -> None:
    """Score what was trained on its evaluation tasks.

    Example: metatrain evaluate runs/first --set evaluation.tasks=1000
    """
    from cluster import run
    from cluster.requests import Interrupted

    try:
        scores = run.evaluate(trained, set_ or [], address)
    except Interrupted:
        print("stopped; nothing is kept of an evaluation that did not end", file=sys.stderr)
        raise typer.Exit(130) from None
    print_results(scores)


@app.command()
def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help="A Ray cluster: http://HEAD:8265, HOST:PORT or auto; without, this machine.",
        ),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Where results would go: whether it can be written to.")] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME", help="As for submit.")] = None,
) -> None:
    """Look at what a run would need: on this machine, and on every node of a cluster.

    Example: metatrain doctor --address http://HEAD:8265 --output s3://bucket/runs
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cluster import doctor as look

    if address is not None and address.startswith("http"):
        from cluster import jobs

        if output is not None:
            jobs.check_place("output", output)
        job = jobs.Job(
            jobs.dated("doctor"),
            ["doctor", "--address", "auto", *(["--output", output] if output else [])],
            {},
            [],
            jobs.environment(address, env or []),
        )
        sys.exit(jobs.run(address, job))
    lines = look.grouped(look.examine(address, output))
    table = Table(title="What a run would find")
    for name in ("where", "what", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line), style="red" if line.remedy else None)
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    bad = [line for line in lines if line.remedy]
    for line in bad:
        print(f"{line.place}: {line.what}: {line.found}: {line.remedy}", file=sys.stderr)
    if bad:
        print(f"error: {len(bad)} of these are to be mended", file=sys.stderr)
        raise typer.Exit(1)
    print("nothing is wrong")


@app.command()
def config(recipe: RecipeFile, set_: Set = None) -> None:
    """Print a recipe with all its values, and where each comes from: default, recipe or --set.

    Example: metatrain config recipes/demo.yaml --set outer.lr=0.01
    """
    from cluster.config import RunConfig
    from metatrain import recipe as recipes

    print(recipes.explain(recipes.load(RunConfig, recipe, set_ or []), recipe, set_ or []))


@app.command()
def ui(
    run: Annotated[str | None, typer.Argument(help="A run's folder; by default where runs here log to.")] = None,
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


def print_results(scores: Sequence[Score], kept: str = "") -> None:
    """The closing lines of a command, the result last; InputError if that is of no use."""
    from metatrain.core import InputError

    for score in [*scores[1:], scores[0]]:
        if score.usable:
            print(score.line())
    if not scores[0].usable:
        left = scores[0].tasks - scores[0].diverged
        raise InputError(
            f"there is no result, as {left} of {scores[0].tasks} tasks did not diverge: lower the inner rate, or the "
            f"number of inner steps, of the evaluation's algorithm{kept and f'; {kept}'}"
        )


def _paired(score: Score, baseline: str) -> str:
    """By how much the result differs from a baseline on the same tasks."""
    difference, width = score.differences[baseline]
    shown = [score.text(value).removesuffix("%") for value in (difference, width)]
    return f" (the result less it, on the same tasks: {shown[0]} ± {shown[1]})"
