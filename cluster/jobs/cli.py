"""Commands that list, follow and stop the jobs of a Ray cluster."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta
from typing import Annotated

import typer

from metatrain import console

app = typer.Typer()

Dashboard = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the Ray cluster: http://HEAD:8265."
    ),
]


@app.command()
def jobs(
    address: Dashboard,
    json: console.AsJson = False,
) -> None:
    """List the jobs of a Ray cluster, newest first.

    Example: metatrain jobs --address http://HEAD:8265
    """
    from rich.table import Table

    from cluster.jobs import client, dashboard
    from metatrain.names import printable

    with console.printing_json(json) as show:
        found = client.listed(dashboard.connect(address))
    if json:
        rows = [
            {
                "name": job.name,
                "state": job.state,
                "submitted": _local(job.submitted_s).isoformat(timespec="seconds"),
                "took_s": round(job.took_s, 1),
                "recipe": job.recipe,
                "output": job.output,
            }
            for job in found
        ]
        show(rows)
        return
    if not found:
        print("no jobs: send one with `metatrain submit`")
        return
    table = Table("name", "state", "submitted", "took", "output")
    for job in found:
        took = str(timedelta(seconds=int(job.took_s)))
        submitted = f"{_local(job.submitted_s):%Y-%m-%d %H:%M:%S}"
        table.add_row(printable(job.name), job.state, submitted, took, printable(job.output))
    console.print_table(table)


@app.command()
def follow(
    address: Dashboard,
    name: Annotated[
        str | None, typer.Argument(help="A job's name. Default: the newest job.")
    ] = None,
) -> None:
    """Show a job's log until it ends, and exit as the job does.

    Ctrl-C stops following the log; the job keeps running.

    Example: metatrain follow demo-20260101-120000 --address http://HEAD:8265
    """
    from cluster.jobs import client, dashboard
    from cluster.jobs.follow import commands, watch

    before = dict(os.environ)
    connected = dashboard.connect(address)
    job = client.find(connected, name)
    if name is None:
        print(f"following {job.name}", file=sys.stderr)
    sys.exit(watch(connected, job.name, commands(address, job.name, before)))


@app.command()
def stop(
    address: Dashboard,
    name: Annotated[
        str | None, typer.Argument(help="A job's name. Default: the newest job under way.")
    ] = None,
) -> None:
    """Stop a job, which saves first, and wait until it has ended.

    Example: metatrain stop demo-20260101-120000 --address http://HEAD:8265
    """
    from cluster.jobs import client, dashboard

    print(client.stop(dashboard.connect(address), name))


def _local(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds).astimezone()
