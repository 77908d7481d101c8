"""The `metatrain` command: the commands of all layers, and those for sweeps."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cluster.cli import Address, Set, app
from cluster.jobs import cli as jobs_cli
from cluster.jobs.job import JOB
from metatrain import console

app.add_typer(jobs_cli.app)
metrics = typer.Typer(no_args_is_help=True, help="Compare MLflow's record with a run's folder.")
app.add_typer(metrics, name="metrics")


@app.command()
def tune(
    sweep: Annotated[str, typer.Argument(help="A YAML file such as those in recipes/sweeps/.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the sweep file."),
    ] = None,
    address: Address = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|auto", help="Resume a sweep: its folder, or the one in the output."
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
    from tuning import summary
    from tuning import sweep as sweeps

    search = searches.load(sweep, set_ or [], resume)
    if dry_run:
        if resume is not None:
            sweeps.check_folder(search, resume)
        summary.print_plan(search, address)
        return
    try:
        outcome = sweeps.start(search, address, resume=resume)
    except Interrupted as stopped:
        print(f"{stopped}; what they reported is kept", file=sys.stderr)
        if JOB not in os.environ:  # another job resumes a job
            again = console.again(sys.argv[1:], "--resume", resume or "auto")
            print(f"to continue: {again}", file=sys.stderr)
        raise typer.Exit(130) from None
    summary.print_outcome(search, outcome)


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="A recipe or a sweep.")],
    address: jobs_cli.Dashboard,
    set_: Set = None,
    pretrain: Annotated[
        bool, typer.Option("--pretrain", help="Pre-train the recipe's network; see pretrain.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|auto",
            help="Resume a run or a sweep: its folder, or the one in the output.",
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
    retries: Annotated[
        int,
        typer.Option(
            min=0,
            max=100,
            help="How often the driver starts again if it is killed or breaks off.",
        ),
    ] = 0,
    follow: Annotated[
        bool,
        typer.Option("--follow/--no-follow", help="Show the job's log, and exit as the job does."),
    ] = True,
) -> None:
    """Run a recipe or a sweep as a job on a Ray cluster.

    Example: metatrain submit recipes/demo.yaml --address http://HEAD:8265 --set
    output=s3://bucket/runs/demo
    """
    from cluster.jobs import follow as following
    from cluster.jobs.package import Job, dated, environment
    from cluster.jobs.places import check_read, check_written
    from cluster.jobs.sent import sent_files
    from metatrain.recipe import own_code
    from tuning import submission

    folder = resume if resume not in (None, "auto") else None
    what = submission.read(file, set_ or [], resume, pretrain=pretrain)
    if what.base.checkpoint.uri is not None:
        check_written("checkpoint.uri", what.base.checkpoint.uri)
    if folder is not None:
        check_written("--resume", folder)
    if retries:
        submission.check_retries(what, resume)
    sent = sent_files(send or [])
    for key, place in submission.places_read(what.base, what.ranges):
        check_read(key, place, sent)
    job = Job(
        name or dated(what.name),
        [*what.arguments, *(["--resume", resume] if resume is not None else [])],
        what.files,
        own_code(what.base, whole=True),
        environment(address, env or []),
        check_written("output", what.output),
        driver_cpus,
        driver_gpus,
        driver_memory,
        file,
        console.again(
            sys.argv[1:], "--resume", folder if folder and what.output == folder else "auto"
        ),
        sent,
        retries,
    )
    sys.exit(following.run(address, job, follow=follow))


@metrics.command("sync")
def sync_(
    run: Annotated[str, typer.Argument(help="The folder of a run or a sweep that has ended.")],
) -> None:
    """Send MLflow what it lacks of a run or a sweep. Example: metatrain metrics sync runs/first"""
    from metatrain import storage

    if storage.is_file(f"{run.rstrip('/')}/sweep.yaml"):
        from tuning import sync as sweeps

        print(sweeps.sync(run).sentence(run))
        return
    from cluster.tracking.sync import sync

    print(sync(run).sentence(run))


def main() -> None:
    """Entry point of the console script, and of jobs."""
    if JOB in os.environ:
        console.main(_in_job, "%(asctime)s %(message)s")
    else:
        console.main(app)


def _in_job() -> None:
    """Run the command; if the node lacks a file or a module, say in one sentence what to do."""
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
