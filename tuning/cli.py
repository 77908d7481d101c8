"""The `metatrain` command: the commands of all layers, and that for sweeps."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from cluster.cli import Address, Set, app, print_results
from metatrain import cli

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from tuning.space import Search, Sweep
    from tuning.sweep import Outcome

SHOWN = 10  # trials in the table


@app.command()
def tune(
    sweep: Annotated[Path, typer.Argument(help="A YAML file such as those in recipes/sweeps/.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the sweep file.")
    ] = None,
    address: Address = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in its folder, if it has begun.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and for how long; start no trial.")
    ] = False,
) -> None:
    """Search a recipe's keys with Ray Tune, and test the winner.

    Example: metatrain tune recipes/sweeps/sinusoid_rates.yaml --set budget.trials=4
    """
    from cluster.requests import Interrupted
    from tuning import space
    from tuning import sweep as sweeps

    search = space.load(sweep, set_ or [])
    if dry_run:
        _print_plan(search, address)
        return
    try:
        outcome = sweeps.start(search, address, resume=resume)
    except Interrupted as stopped:
        print(f"{stopped}; what they reported is kept: the same command with --resume goes on", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_outcome(search, outcome)


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="A recipe or a sweep.")],
    address: Annotated[
        str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="A Ray cluster's dashboard, http://HEAD:8265.")
    ],
    set_: Set = None,
    name: Annotated[str | None, typer.Option(help="The job's name; by default the file's with date and time.")] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A variable of this environment that the job gets, too.")
    ] = None,
    driver_cpus: Annotated[float, typer.Option(help="CPUs for the job's own process; 0: on the head node.")] = 1.0,
    driver_gpus: Annotated[float, typer.Option(help="GPUs for it.")] = 0.0,
    driver_memory: Annotated[float, typer.Option(help="Memory for it in GB.")] = 0.0,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show its log, and end as it ends.")] = True,
) -> None:
    """Run a recipe or a sweep as a job on a Ray cluster, or go on with the one in its output.

    Example: metatrain submit recipes/demo.yaml --address http://HEAD:8265 --set output=s3://bucket/runs/demo
    """
    from cluster import jobs
    from cluster.config import RunConfig
    from metatrain import recipe as recipes

    base: RunConfig
    what: Sweep | RunConfig
    if "space" in recipes.read(file):
        jobs.find_token(address)
        from tuning import space

        what, base = space.read(Path(file), set_ or [])
        arguments, files = ["tune", "sweep.yaml", "--resume"], space.standalone(what, base)
    else:
        what = base = recipes.load(RunConfig, file, set_ or [])
        text = yaml.safe_dump(recipes.dump(base), sort_keys=False)
        arguments, files = ["train", "recipe.yaml", "--resume", "auto"], {"recipe.yaml": text}
    data = getattr(base.family, "data", "")
    given = (
        ("checkpoint.uri", base.checkpoint.uri),
        ("family.data", data if "/" in data else None),
        ("model.weights", getattr(base.model, "weights", None)),
    )
    for key, place in given:
        if place is not None:
            jobs.check_place(key, place)
    job = jobs.Job(
        name or jobs.dated(what.name),
        arguments,
        files,
        recipes.own_code(base, whole=True),
        jobs.environment(address, env or []),
        jobs.check_place("output", what.output),
        driver_cpus,
        driver_gpus,
        driver_memory,
    )
    sys.exit(jobs.run(address, job, follow=follow))


def _print_plan(search: Search, address: str | None) -> None:
    from cluster.evaluation import protocol
    from cluster.progress import duration
    from tuning.resources import estimate

    estimated = estimate(search, address)
    for key, domain in search.space.items():
        print(f"{key}: {domain}")
    each = search.base.outer
    print(f"recipe: {search.base.name}, each trial {each.steps} outer steps of {each.tasks_per_step} tasks")
    print(f"trials: {search.trials} by {search.sweep.search} search, scheduler {search.sweep.scheduler.name}")
    print(f"compared by: {search.mode} {search.metric}, every {search.base.validation.every_steps} outer steps")
    print(f"  measured on: {protocol(search.base.recipe(), 'validate', each.steps)}")
    print(f"at once: {estimated.at_once} on this cluster, each with {estimated.resources}")
    learnt = search.trials * each.steps * each.tasks_per_step
    print(f"tasks: at most {learnt} to learn from and {estimated.validated} to validate with")
    print(f"time: at most about {duration(estimated.seconds)} (minutes:seconds), by {estimated.measured}")
    print(f"output: {search.folder}")


def _print_outcome(search: Search, outcome: Outcome) -> None:
    from rich.console import Console
    from rich.table import Table

    from cluster.progress import show
    from cluster.tracking import place_of
    from tuning.pictures import text
    from tuning.sweep import trial_folder

    table = Table(title=f"{search.sweep.name}: the best of {len(outcome.trials)} trials")
    diverged = ["diverged tasks"] if any(trial.last and trial.last.diverged_tasks for trial in outcome.trials) else []
    for name in ("trial", search.metric, "95 %", *diverged, "step", "state", *search.space):
        table.add_column(name, justify="left" if name == "state" else "right")
    metric = search.base.family.metric
    for trial in outcome.trials[:SHOWN]:
        last = trial.last
        found = (show(metric, last.value), f"± {show(metric, last.ci95)}") if last else ("none", "")
        lost = [str(last.diverged_tasks) if last else "" for _ in diverged]
        values = [text(trial.values[key]) for key in search.space]
        table.add_row(str(trial.number), *found, *lost, str(trial.steps), trial.state, *values)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    folder = _near(str(search.folder))
    print("pictures:", *(_near(name) for name in search.folder.names("figures/*.png")))
    winner = _near(trial_folder(search, outcome.winner))
    if (search.folder / "schedule.json").exists():
        print(f"how the winner's values changed: {folder}/schedule.json")
    elif outcome.winner.state == "completed":
        again = f"{folder}-again-{outcome.winner.number:02d}"
        print(f"the winner again: {cli.program()} train {winner}/config.yaml --set output={again}")
    if outcome.place is not None:
        place = place_of(str(search.folder))
        if place.uri.startswith("http"):
            print(f"side by side: {place.address()}{place.page()}")
        else:
            print(f"side by side: {cli.program()} ui {folder}")
            print(f"  which opens http://127.0.0.1:5000{place.page()}")
    print(f"chosen by: {outcome.protocol}")
    print_results(outcome.scores, f"all else is in {folder}")


def _near(uri: str) -> str:
    """As seen from here."""
    return uri.removeprefix(f"{Path.cwd()}/")


def main() -> None:
    """Entry point of the console script."""
    cli.main(app)


if __name__ == "__main__":
    main()
