"""The command `metatrain doctor`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            envvar="RAY_API_SERVER_ADDRESS",
            help="Ray cluster to check: http://HEAD:8265, HOST:PORT or auto. "
            "Default: this machine only.",
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

    from cluster.doctor.examine import examine
    from cluster.doctor.findings import grouped

    if address is not None and address.startswith("http"):
        sys.exit(_as_job(address, output, env or []))
    lines = grouped(examine(address, output))
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


def _as_job(address: str, output: str | None, env: list[str]) -> int:
    """Run this command on the cluster whose dashboard is at `address`; return its exit code."""
    from cluster.jobs import follow
    from cluster.jobs.package import Job, dated, environment
    from cluster.jobs.places import check_written

    if output is not None:
        check_written("output", output)
    arguments = ["doctor", "--address", "auto", *(["--output", output] if output else [])]
    job = Job(dated("doctor"), arguments, {}, [], environment(address, env))
    return follow.run(address, job)
