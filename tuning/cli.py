"""The `metatrain` command: the commands of all layers, and that for sweeps."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli import Address, Set, app, print_results
from cluster.jobs import cli as jobs_cli
from cluster.jobs.job import JOB
from metatrain import console
from metatrain.awaiting import awaiting

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from tuning.config import Sweep
    from tuning.search import Search
    from tuning.sweep import Outcome

SHOWN = 10  # trials in the table

app.add_typer(jobs_cli.app)


@app.command()
def tune(
    sweep: Annotated[Path, typer.Argument(help="A YAML file such as those in recipes/sweeps/.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the sweep file."),
    ] = None,
    address: Address = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|auto", help="Continue a sweep: its folder, or the one in the output."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only estimate time and resources; start no trial.")
    ] = False,
) -> None:
    """Search a recipe's keys with Ray Tune, and test the winner.

    Example: metatrain tune recipes/sweeps/sinusoid_rates.yaml --set budget.trials=4
    """
    from cluster.collector import Interrupted
    from tuning import search as searches
    from tuning import sweep as sweeps

    search = searches.load(sweep, set_ or [], resume)
    if dry_run:
        _print_plan(search, address)
        return
    try:
        outcome = sweeps.start(search, address, resume=resume)
    except Interrupted as stopped:
        print(f"{stopped}; what they reported is kept", file=sys.stderr)
        if JOB not in os.environ:  # a job is continued by another one
            again = console.again(sys.argv[1:], "--resume", resume or "auto")
            print(f"to continue: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_outcome(search, outcome)


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="A recipe or a sweep.")],
    address: jobs_cli.Dashboard,
    set_: Set = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|auto",
            help="Continue a run or a sweep: its folder, or the one in the output.",
        ),
    ] = None,
    send: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="File or folder below this one that the job reads, at the same path.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The job's name. Default: the recipe's with date and time.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Environment variable to pass to the job."),
    ] = None,
    driver_cpus: Annotated[
        float,
        typer.Option(
            help="CPUs for the driver, the job's own process; 0 puts it on the head node."
        ),
    ] = 1.0,
    driver_gpus: Annotated[float, typer.Option(help="GPUs for the driver.")] = 0.0,
    driver_memory: Annotated[float, typer.Option(help="Memory for the driver in GB.")] = 0.0,
    follow: Annotated[
        bool,
        typer.Option("--follow/--no-follow", help="Show the job's log, and exit as the job does."),
    ] = True,
) -> None:
    """Run a recipe or a sweep as a job on a Ray cluster.

    Example: metatrain submit recipes/demo.yaml --address http://HEAD:8265 --set
    output=s3://bucket/runs/demo
    """
    from cluster.config import RunConfig
    from cluster.jobs import follow as following
    from cluster.jobs.dashboard import use_token
    from cluster.jobs.package import Job, dated, environment
    from cluster.jobs.places import check_read, check_written
    from cluster.jobs.sent import sent_files
    from metatrain import schema
    from metatrain.recipe import is_sweep, own_code

    base: RunConfig
    what: Sweep | RunConfig
    folder = resume if resume not in (None, "auto") else None
    ranges: Mapping[str, Any] = {}
    if is_sweep(schema.read(file)):
        use_token(address)
        from tuning import config

        what, base = config.read(Path(file), set_ or [])
        what = config.in_folder(what, resume, set_ or [])
        arguments, files = ["tune", "sweep.yaml"], config.as_files(what, base)
        output, ranges = what.output, dict(config.searched(what.space))
    else:
        what = base = schema.load(RunConfig, file, set_ or [])
        arguments, files = ["train", "recipe.yaml"], {"recipe.yaml": schema.as_yaml(base)}
        output = what.output or (folder and re.sub(r"/checkpoints(/[^/]+)?/?$", "", folder))
    if base.checkpoint.uri is not None:
        check_written("checkpoint.uri", base.checkpoint.uri)
    if folder is not None:
        check_written("--resume", folder)
    sent = sent_files(send or [])
    for key, place in _read(base, ranges):
        check_read(key, place, sent)
    job = Job(
        name or dated(what.name),
        [*arguments, *(["--resume", resume] if resume is not None else [])],
        files,
        own_code(base, whole=True),
        environment(address, env or []),
        check_written("output", output),
        driver_cpus,
        driver_gpus,
        driver_memory,
        file,
        console.again(
            sys.argv[1:], "--resume", folder if folder is not None and output == folder else "auto"
        ),
        sent,
    )
    sys.exit(following.run(address, job, follow=follow))


def _read(base: RunConfig, ranges: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The paths and addresses that a recipe reads, or one of a sweep's trials, with the key of
    each.
    """
    from metatrain import schema

    families = [base.family, *(base.setting(work).family for work in ("validate", "score"))]
    data = [getattr(family, "data", None) for family in families]
    weights = [getattr(base.model, "weights", None)]
    for key, places in (("family.data", data), ("model.weights", weights)):
        places += [value for values in ranges.get(key, {}).values() for value in values]
    named = [
        place
        for place in data
        if isinstance(place, str) and ("/" in place or base.family.name == "table")
    ]
    found = [("family.data", place) for place in named]
    if ":" in base.family.name:  # what an own family calls a file of this folder
        given = [
            (f"family.{key}", value) for key, value in schema.flatten(schema.dump(base.family))
        ]
        found += [
            (key, value) for key, value in given if isinstance(value, str) and Path(value).is_file()
        ]
    return found + [("model.weights", place) for place in weights if isinstance(place, str)]


def _print_plan(search: Search, address: str | None) -> None:
    from cluster.evaluation import protocol
    from cluster.progress import duration
    from tuning.resources import estimate

    with awaiting("measuring a ticket of each kind"):
        estimated = estimate(search, address)
    for key, domain in search.space.items():
        print(f"{key}: {domain}")
    each = search.base.outer
    print(
        f"recipe: {search.base.name}, each trial {each.steps} outer steps of {each.tasks_per_step} "
        "tasks"
    )
    print(
        f"trials: {search.trials} by {search.sweep.search} search, scheduler "
        f"{search.sweep.scheduler.name}"
    )
    print(
        f"compared by: {search.mode} {search.metric}, every {search.base.validation.every_steps} "
        "outer steps"
    )
    print(f"  measured on: {protocol(search.base.recipe(), 'validate', each.steps)}")
    print(f"at once: {estimated.at_once} on this cluster, each with {estimated.resources}")
    learnt = search.trials * each.steps * each.tasks_per_step
    print(f"tasks: at most {learnt} to learn from and {estimated.validated} to validate with")
    print(
        f"time: at most about {duration(estimated.seconds)} (minutes:seconds), from "
        f"{estimated.measured}"
    )
    print(f"output: {search.folder}")


def _print_outcome(search: Search, outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    from cluster.tracking.tracker import place_of
    from tuning.figures import text
    from tuning.sweep import trial_folder

    diverged = (
        ["diverged tasks"]
        if any(trial.last and trial.last.diverged_tasks for trial in outcome.trials)
        else []
    )
    few = (
        f"the {SHOWN} best of {len(outcome.trials)}"
        if len(outcome.trials) > SHOWN
        else f"{len(outcome.trials)}"
    )
    order = f"by the last validation{', fewer diverged tasks first' if diverged else ''}"
    table = Table(title=f"{search.sweep.name}: {few} trials {order}; the first is the winner")
    for name in ("trial", search.metric, "95 %", *diverged, "step", "state", *search.space):
        table.add_column(name, justify="left" if name == "state" else "right")
    metric = search.base.family.metric
    for trial in outcome.trials[:SHOWN]:
        last = trial.last
        found = (metric.brief(last.value), f"± {metric.brief(last.ci95)}") if last else ("none", "")
        lost = [str(last.diverged_tasks) if last else "" for _ in diverged]
        values = [text(trial.values[key]) for key in search.space]
        table.add_row(str(trial.number), *found, *lost, str(trial.steps), trial.state, *values)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    folder = _near(str(search.folder))
    print("pictures:", *(_near(name) for name in search.folder.names("figures/*.png")))
    winner = _near(trial_folder(search, outcome.winner))
    if (search.folder / "schedule.json").exists():
        print(f"schedule of the winner's values: {folder}/schedule.json")
    elif outcome.winner.state == "completed":
        again = f"{folder}-again-{outcome.winner.number:02d}"
        print(
            f"to train the winner again: {console.program()} train {winner}/config.yaml --set "
            f"output={again}"
        )
    if outcome.place is not None:
        place = place_of(str(search.folder))
        if place.uri.startswith("http"):
            print(f"side by side: {place.address()}{place.page()}")
        else:
            print(f"side by side: {console.program()} ui {folder}")
            print(f"  which opens http://127.0.0.1:5000{place.page()}")
    print(f"chosen by: {outcome.protocol}")
    print_results(outcome.scores, f"all else is in {folder}")


def _near(uri: str) -> str:
    """As seen from here."""
    return uri.removeprefix(f"{Path.cwd()}/")


def main() -> None:
    """Entry point of the console script, and of jobs."""
    if JOB in os.environ:
        console.main(_in_job, "%(asctime)s %(message)s")
    else:
        console.main(app)


def _in_job() -> None:
    """Run the command; if the node lacks a file or a module, one sentence says what to do about
    it.
    """
    try:
        app()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        from cluster.jobs.places import absent
        from metatrain.core import InputError

        lacks = absent(error, "the driver's node")
        if lacks is None:
            raise
        raise InputError(lacks) from error


if __name__ == "__main__":
    main()
