"""Commands that train and evaluate, in process or on Ray."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.jobs.job import JOB
from metatrain import cli, console

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from metatrain.core import Sentence
    from metatrain.evaluate import Score
    from metatrain.recipe import Recipe

app = typer.Typer(help=cli.app.info.help, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(cli.app)

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe."),
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join. Default: start one on this machine.")
]


def _version(wanted: bool) -> None:
    if wanted:
        print(console.version())
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the versions and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file such as those in recipes/.")],
    set_: Set = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FILE", help="Start from the weights of a run or of a safetensors file."
        ),
    ] = None,
    address: Address = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|auto",
            help="Continue a run: its folder, or auto: that in the output, or the newest.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate memory and time, from a few tasks.")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Only compute one outer step, and write its trace to this file."
        ),
    ] = None,
) -> None:
    """Meta-train a recipe and evaluate it. Example: metatrain train recipes/demo.yaml --set
    outer.steps=100
    """
    from cluster import run, tables
    from cluster.collector import Interrupted, WorkersLost
    from cluster.tracking.place import place_of
    from metatrain.core import InputError
    from metatrain.learner import Diverged
    from metatrain.start import check_data

    config = _recipe(recipe, [*(set_ or []), *([f"model.weights={init}"] if init else [])])
    if dry_run or profile:
        from cluster import dry_run as probe

        check_data(config.recipe())
        if dry_run:
            print(*probe.estimate(config).lines(config), sep="\n")
        if profile:
            print(
                probe.trace(config, Path(profile)),
                f"trace: {profile}; open it at https://ui.perfetto.dev",
                sep="\n",
            )
        return

    def again(ended: Sentence) -> str:
        """The command that continues the run that has ended, on a line of its own."""
        if JOB in os.environ:
            return ""  # who sent the job is told how to send it again
        way = ["--resume", "auto"] if config.output is not None else []
        if not ended.saved:
            way = ["--resume", resume] if resume else way
        elif config.output is None and config.checkpoint.uri is None:
            way = ["--resume", str(ended.run)]
        elif (
            config.output is None
        ):  # the folder does not hold the checkpoints, but says where they are
            way = ["--set", f"output={ended.run}", "--resume", "auto"]
        what = "continue" if ended.saved else "start again"
        return f"\nto {what}: {console.again(sys.argv[1:], *way)}"

    try:
        folder, scores = run.train(config, address, resume, source=str(recipe))
    except Interrupted as stopped:
        print(f"{stopped}{again(stopped)}", file=sys.stderr)
        raise typer.Exit(130) from None
    except (Diverged, WorkersLost) as error:
        saved = "; the last whole step is saved" if error.saved else ""
        raise InputError(f"{error}{saved}{again(error)}") from error
    console.print_table(tables.of_scores(scores))
    print(f"folder: {folder}")
    print("pictures:", *folder.names("figures/*.png"))
    if (folder / "mlflow.json").exists():
        place = place_of(str(folder))
        ui = shlex.join([console.program(), "ui", str(folder)])
        print(
            "compare runs: "
            f"{f'{place.address()}{place.page()}' if place.uri.startswith('http') else ui}"
        )
    print_next(config.recipe(), str(folder))
    print_results(scores[:1], f"all else is in {folder}")


@app.command()
def evaluate(
    trained: Annotated[
        str, typer.Argument(help="A run's folder, one of its checkpoints, or a bundle.")
    ],
    set_: Set = None,
    address: Address = None,
    json: console.AsJson = False,
) -> None:
    """Measure a trained run on the tasks of its evaluation.

    Example: metatrain evaluate runs/first --set evaluation.tasks=1000
    """
    from cluster import run, tables
    from cluster.collector import Interrupted

    with console.printing_json(json) as show:
        try:
            scores = run.evaluate(trained, set_ or [], address)
        except Interrupted:
            print("stopped: an evaluation that does not end leaves no result", file=sys.stderr)
            raise typer.Exit(130) from None
        if json:
            show({"scores": [score.record() for score in scores]})
        else:
            console.print_table(tables.of_scores(scores))
        print_results(scores[:1])


@app.command()
def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help=(
                "Ray cluster to check: http://HEAD:8265, HOST:PORT or auto. Default: this "
                "machine only."
            ),
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="Output location to test for write access.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Environment variable to pass to the job."),
    ] = None,
) -> None:
    """Check what a run needs: on this machine, and on every node of a cluster.

    Example: metatrain doctor --address http://HEAD:8265 --output s3://bucket/runs
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from cluster import doctor as look

    if address is not None and address.startswith("http"):
        from cluster.jobs import follow
        from cluster.jobs.package import Job, dated, environment
        from cluster.jobs.places import check_written

        if output is not None:
            check_written("output", output)
        job = Job(
            dated("doctor"),
            ["doctor", "--address", "auto", *(["--output", output] if output else [])],
            {},
            [],
            environment(address, env or []),
        )
        sys.exit(follow.run(address, job))
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
        print(f"error: {len(bad)} problem{'s' * (len(bad) > 1)} found (see above)", file=sys.stderr)
        raise typer.Exit(1)
    print("no problems found")


@app.command()
def runs(
    folder: Annotated[
        str, typer.Argument(help="A folder, or an address such as s3://bucket/runs.")
    ] = "runs",
    json: console.AsJson = False,
) -> None:
    """List the runs and sweeps below a folder with their results, newest first. Example: metatrain
    runs
    """
    from cluster import api, tables
    from metatrain import storage
    from metatrain.core import InputError

    with console.printing_json(json) as show:
        if storage.is_file(folder):
            raise InputError(f"{folder} is a file", remedy="give a folder")
        exists = storage.is_remote(folder) or Path(folder).is_dir()
        if not exists and folder != "runs":
            raise InputError(f"there is no folder {folder}", remedy="give one that holds runs")
        found = api.runs(folder) if exists else None
        rows = (
            []
            if found is None
            else found.astype(object).where(found.notna(), None).to_dict("records")
        )
        if json:
            show([row | {"when": row["when"] and row["when"].isoformat()} for row in rows])
        elif rows:
            console.print_table(tables.of_runs(rows))
        else:
            print(f"there are no runs in {folder}: train one with {console.program()} train RECIPE")


@app.command()
def config(
    recipe: Annotated[
        str,
        typer.Argument(help="A YAML file such as those in recipes/, a run's folder or a bundle."),
    ],
    set_: Set = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print above each key what it means.")
    ] = False,
) -> None:
    """Print a recipe with all its values, and where each comes from: default, recipe or --set.

    Example: metatrain config recipes/demo.yaml --set outer.lr=0.01
    """
    from metatrain import schema

    held = _held(recipe)
    file, origin = (f"{recipe}/{held[1]}", held[0]) if held else (recipe, "recipe")
    sources = schema.origins(file, set_ or [], origin)
    print(schema.explain(_recipe(file, set_ or []), sources, explain))


@app.command()
def ui(
    run: Annotated[
        str | None,
        typer.Argument(help="A run's folder. Default: the store that runs started here use."),
    ] = None,
    port: Annotated[
        int,
        typer.Option(help="Port on this machine. If it is taken, another one.", min=0, max=65535),
    ] = 5000,
) -> None:
    """Open MLflow's pages of a run. Example: metatrain ui runs/first"""
    from cluster.tracking.place import place_of
    from cluster.ui import served

    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # either way the server ends with this command
    with suppress(KeyboardInterrupt), served(place_of(run), port) as (page, wait):
        print(f"MLflow: {page}", flush=True)
        if sys.stdout.isatty() and (
            sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY")
        ):
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
            f"there is no result, as {left} of {scores[0].tasks} tasks did not diverge",
            remedy=(
                "lower the "
                "inner rate, or the "
                f"number of inner steps, of the evaluation's algorithm{kept and f'; {kept}'}"
            ),
        )


def print_next(recipe: Recipe, folder: str) -> None:
    """What to do with a run that has ended: predict own examples if it learned from examples."""
    from metatrain.problems.supervised import Supervised
    from metatrain.tasks.fewshot import FewShot

    setting = recipe.setting("score")
    if isinstance(setting.family, FewShot):
        words = ["adapt", folder, "--support", "few", "--query", "new"]
        about = "few: one folder of images per class; new: images to classify"
    elif isinstance(setting.family.bind(recipe.model, setting.norm, "reference"), Supervised):
        words = ["adapt", folder, "--support", "few.csv", "--query", "new.csv"]
        about = "few.csv: rows with their targets; new.csv: rows to predict"
    else:
        words, about = ["evaluate", folder, "--set", "evaluation.tasks=1000"], ""
    print(
        f"next: {shlex.join([console.program(), *words])}",
        *([f"  {about}"] if about else []),
        sep="\n",
    )


def _recipe(path: str, overrides: Sequence[str]) -> RunConfig:
    """Read a recipe. If it is something else, say which command takes it."""
    from cluster.config import RunConfig
    from metatrain import schema
    from metatrain.core import InputError
    from metatrain.recipe import is_sweep

    held, quoted = _held(path), shlex.quote(path)
    if held is not None:
        what, file = held
        train = f"{console.program()} train {shlex.quote(f'{path}/{file}')}"
        new = f"train its recipe again with {train} --set output=NEW"
        resumed = (
            f"continue it with {train} --resume {quoted}, or " if file == "config.yaml" else ""
        )
        raise InputError(f"{path} is a {what}", remedy=f"{resumed}{new}")
    tree = schema.read(path)
    if is_sweep(tree):
        raise InputError(f"{path} is a sweep", remedy=f"{console.program()} tune {quoted}")
    return schema.parse(RunConfig, schema.apply_overrides(tree, overrides), path)


def _held(path: str) -> tuple[str, str] | None:
    """What the folder of a run or a bundle is called, and the recipe in it; InputError if it is a
    sweep's.
    """
    from metatrain import storage
    from metatrain.core import InputError

    if not storage.is_remote(path) and not Path(path).is_dir():
        return None
    if storage.is_file(f"{path}/sweep.yaml"):
        raise InputError(
            f"{path} is a sweep's folder",
            remedy=f"give that of one of its trials, such as {path}/trials/00",
        )
    kinds = (("run's folder", "config.yaml"), ("bundle", "recipe.yaml"))
    return next(((what, name) for what, name in kinds if storage.is_file(f"{path}/{name}")), None)
