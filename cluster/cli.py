"""Commands that train and evaluate, in process or on Ray."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

import cluster.doctor.cli
import cluster.pretraining.cli
import cluster.tracking.cli
import metatrain.cli
from cluster.closing import is_saved, print_next, print_results, print_spread, to_continue
from cluster.jobs.job import SAVED
from metatrain import console

app = typer.Typer(
    cls=console.Commands,
    help=metatrain.cli.app.info.help,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for room in (metatrain.cli, cluster.pretraining.cli, cluster.doctor.cli, cluster.tracking.cli):
    app.add_typer(room.app)

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
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,2", help="Train from each of these seeds in turn, not from the recipe's."
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
    """Meta-train a recipe and evaluate it.

    Example: metatrain train recipes/demo.yaml --set outer.steps=100
    """
    from cluster import recipe_file, run, tables
    from cluster import seeds as several
    from cluster.collector import Interrupted
    from cluster.pools.pool import WorkersLost
    from cluster.tracking.place import place_of
    from metatrain.core import InputError
    from metatrain.learner import Diverged

    numbers = several.parse(seeds) if seeds is not None else []
    # A run's config.yaml records which weights it started from: these are others.
    warm_start = [f"model.weights={init}", "started_from=null"] if init is not None else []
    config = recipe_file.read(recipe, [*(set_ or []), *warm_start])
    if numbers and (dry_run or profile):
        raise InputError(
            "--seeds is not taken by --dry-run and --profile",
            remedy="leave it out: each seed takes as much as one run",
        )
    if dry_run or profile:
        from cluster import checkpoint
        from cluster.dry_run import estimate, trace
        from metatrain.first_look import check_data
        from metatrain.start import prepare
        from metatrain.storage import local
        from metatrain.weights import warm

        if resume not in (None, "auto"):
            checkpoint.load(str(resume))
        prepared = prepare(config.recipe())
        check_data(prepared)
        warm(prepared.recipe, prepared.meta)
        if dry_run:
            print(*estimate(config, prepared).lines(config), sep="\n")
        if profile:
            print(trace(config, prepared, local(profile, "--profile")))
            print(f"trace: {profile}; open it at https://ui.perfetto.dev")
        return

    try:
        if numbers:
            folder, spreads = several.train(config, numbers, address, resume, source=recipe)
        else:
            folder, scores = run.train(config, address, resume, source=recipe)
    except Interrupted as stopped:
        print(stopped, *to_continue(stopped, config, resume), sep="\n", file=sys.stderr)
        raise typer.Exit(130) from None
    except (Diverged, WorkersLost) as error:
        said = f"{error}; {SAVED}" if error.saved else str(error)
        how = to_continue(error, config, resume)
        print(f"error: {InputError(said)}", *how, sep="\n", file=sys.stderr)
        raise typer.Exit(2) from None
    except Exception as error:
        if is_saved(error):
            error.add_note("\n".join(to_continue(error, config, resume) or [SAVED]))
        raise
    shown = map(tables.of_seeds, spreads) if numbers else [tables.of_scores(scores)]
    for table in shown:
        console.print_table(table)
    print(f"folder: {folder}")
    print("pictures:", *folder.names("figures/*.png"))
    if (folder / "mlflow.json").exists():
        place = place_of(str(folder))
        page = f"{place.address()}{place.page()}"
        ui = shlex.join([console.program(), "ui", str(folder)])
        print(f"compare runs: {page if place.uri.startswith('http') else ui}")
    kept = f"all else is in {folder}"
    if numbers:
        print_spread(spreads[0], kept)
    else:
        print_next(config.recipe(), str(folder))
        print_results(scores[:1], kept)


@app.command()
def evaluate(
    trained: Annotated[
        str, typer.Argument(help="A run's folder, one of its checkpoints, or a bundle.")
    ],
    set_: Set = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Compare with the network without meta-learning."),
    ] = False,
    pretrained: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Add baselines that start from this pre-training; see pretrain."
        ),
    ] = None,
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
            scores = run.evaluate(
                trained,
                set_ or [],
                address,
                baselines=baselines or pretrained is not None,
                pretrained=pretrained,
            )
        except Interrupted:
            print("stopped: an interrupted evaluation has no result", file=sys.stderr)
            raise typer.Exit(130) from None
        if json:
            show({"scores": [score.record() for score in scores]})
        else:
            console.print_table(tables.of_scores(scores))
        print_results(scores[:1])


@app.command()
def runs(
    folder: Annotated[
        str, typer.Argument(help="A folder, or an address such as s3://bucket/runs.")
    ] = "runs",
    json: console.AsJson = False,
) -> None:
    """List the runs and sweeps below a folder with their results, newest first.

    Example: metatrain runs
    """
    from cluster import tables
    from cluster.api.listing import runs as listed
    from metatrain import storage
    from metatrain.core import InputError

    with console.printing_json(json) as show:
        if storage.is_file(folder):
            raise InputError(f"{folder} is a file", remedy="give a folder")
        exists = storage.is_remote(folder) or Path(folder).is_dir()
        if not exists and folder != "runs":
            raise InputError(f"there is no folder {folder}", remedy="give one that holds runs")
        found = listed(folder) if exists else None
        filled = None if found is None else found.astype(object).where(found.notna(), None)
        rows = [] if filled is None else filled.to_dict("records")
        if json:
            show([row | {"when": row["when"] and row["when"].isoformat()} for row in rows])
        elif rows:
            console.print_table(tables.of_runs(rows))
        else:
            print(f"there are no runs in {folder}: train one with {console.program()} train RECIPE")


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Runs' folders or bundles; the first counts.")],
    unpaired: Annotated[
        bool,
        typer.Option(
            "--unpaired", help="Compare means also of runs that were tested on other tasks."
        ),
    ] = False,
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for comparison.json and comparison.png.")
    ] = "compared",
) -> None:
    """Compare runs on the same tasks: each run's difference from the first, with its interval.

    Example: metatrain compare runs/first runs/anil
    """
    from cluster import comparison, tables
    from metatrain.core import InputError
    from metatrain.storage import local

    if len(runs) < 2:
        raise InputError("runs to compare", got=len(runs), expected="two or more")
    folder = local(output, "--output")
    comparison.check_free(folder, runs)
    found = comparison.compare(runs[0], runs[1:], unpaired=unpaired)
    console.print_table(tables.of_comparisons(found))
    print(f'{found[0].first}: protocol="{found[0].first_protocol}"')
    for each in found:
        print(f'{each.second}: protocol="{each.second_protocol}"')
    print("written:", *comparison.leave(found, folder))


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
    from cluster import recipe_file
    from metatrain import schema

    held = recipe_file.held(recipe)
    file, origin = (f"{recipe}/{held[1]}", held[0]) if held else (recipe, "recipe")
    sources = schema.origins(file, set_ or [], origin)
    print(schema.explain(recipe_file.read(file, set_ or []), sources, explain))
