"""What `metatrain tune` prints: the plan before, the outcome after."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.closing import print_results
from cluster.progress import duration
from cluster.tracking.place import place_of
from metatrain import console, protocol
from metatrain.awaiting import awaiting
from metatrain.core import Purpose
from metatrain.start import prepare
from tuning.figures import text
from tuning.resources import estimate
from tuning.result import Outcome
from tuning.search import Search
from tuning.trial import folder_of

SHOWN = 10  # trials in the table


def print_plan(search: Search, address: str | None) -> None:
    """Print what a sweep would compute, and how long it would take."""
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
    prepared = prepare(search.base.recipe())
    print(f"  measured on: {protocol.of_score(prepared, Purpose('validate'), each.steps)}")
    print(f"at once: {estimated.at_once} on this cluster, each with {estimated.resources}")
    learnt = search.trials * each.steps * each.tasks_per_step
    print(f"tasks: at most {learnt} to learn from and {estimated.validated} to validate with")
    print(
        f"time: at most about {duration(estimated.seconds)} (minutes:seconds), from "
        f"{estimated.measured}"
    )
    print(f"output: {search.folder}")


def print_outcome(search: Search, outcome: Outcome) -> None:
    """Print the best trials, the winner's scores, and where everything is."""
    some_diverged = any(trial.last and trial.last.diverged_tasks for trial in outcome.trials)
    diverged = ["diverged tasks"] if some_diverged else []
    trials = len(outcome.trials)
    few = f"the {SHOWN} best of {trials}" if trials > SHOWN else f"{trials}"
    order = f"by the last validation{', fewer diverged tasks first' if diverged else ''}"
    table = Table(title=f"{search.sweep.name}: {few} trials {order}; the first is the winner")
    for name in ("trial", search.metric, "95 %", *diverged, "step", "state", *search.space):
        table.add_column(name, justify="left" if name == "state" else "right")
    metric = search.base.family.metric
    for trial in outcome.trials[:SHOWN]:
        last = trial.last
        value = (metric.brief(last.value), f"± {metric.brief(last.ci95)}") if last else ("none", "")
        lost = [str(last.diverged_tasks) if last else "" for _ in diverged]
        values = [text(trial.values[key]) for key in search.space]
        table.add_row(str(trial.number), *value, *lost, str(trial.steps), trial.state, *values)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    folder = _near(str(search.folder))
    print("pictures:", *(_near(name) for name in search.folder.names("figures/*.png")))
    winner = _near(folder_of(search.folder, outcome.winner.number))
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
    """Return a path as it reads from the working directory."""
    return uri.removeprefix(f"{Path.cwd()}/")
