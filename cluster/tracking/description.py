"""What MLflow shows of a run besides its numbers: its experiment, where it comes from, its columns,
its description.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cluster.jobs.job import COMMIT, JOB, USER
from metatrain import storage
from metatrain.plain import finite

if TYPE_CHECKING:
    from metatrain.evaluate import Score

PACKAGES = ("ray-metatrain", "torch", "ray", "mlflow")
JOB_TAG = "metatrain.job"
NOTE = "mlflow.note.content"
END = "[//]: # (metatrain writes what is above this line)"  # Markdown shows no such line
VIEW = "results"  # the key of the view of an experiment's runs that shows their results
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
PRIMARY_TAG = "mlflow.experiment.primaryMetric.name"


def experiment(family: Any) -> str:
    """The experiment of a task family and its data: "fewshot omniglot", "sinusoid", "table
    houses".
    """
    name = str(family.name)
    if ":" in name:  # a class of the user's own
        return name.rpartition(":")[2]
    data = PurePosixPath(str(getattr(family, "data", ""))).stem
    return f"{name} {data}".strip()


def dated(name: str) -> str:
    """The name of a new run, which tells it apart from others of its recipe."""
    return f"{name} {time.strftime('%Y-%m-%d %H:%M')}"


def tags(folder: str, name: str, file: str | None) -> dict[str, str]:
    """Who made a run, from which code and recipe (its `file`, or its `name`), and in which `folder`
    it is.
    """
    recipe = file if file and JOB not in os.environ else name  # a job gets a copy
    found = {
        "metatrain.output": whole(folder),
        "metatrain.recipe": recipe,
        "mlflow.source.name": recipe,
        "mlflow.source.type": "JOB" if JOB in os.environ else "LOCAL",
        "mlflow.user": user(),
        "mlflow.source.git.commit": commit(),
        JOB_TAG: os.environ.get(JOB, ""),
    }
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[f"version.{package}"] = metadata.version(package)
    return {name: value for name, value in found.items() if value}


def whole(folder: str) -> str:
    """A folder as it is found from any other."""
    return folder if storage.is_remote(folder) else str(Path(folder).absolute())


def user() -> str:
    """Who runs this, or sent the job that does; "" if this system does not say."""
    if USER in os.environ:
        return os.environ[USER]
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user may have no name
        return ""


def commit() -> str:
    """The commit of this checkout, with "-dirty" if it has changes, or that of the sent job's; ""
    if there is none.
    """
    if COMMIT in os.environ:
        return os.environ[COMMIT]
    here = Path(__file__).resolve().parents[2]
    try:
        if Path(_git(here, "rev-parse", "--show-toplevel")).resolve() != here:
            return ""  # installed in a folder of somebody else's checkout
        return _git(here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def view(known: str, metrics: Sequence[str]) -> str:
    """The state of MLflow's table of runs in which these metrics come first, after those of the
    state that is `known`.

    Without one, the table shows no metric until somebody chooses it.
    """
    name, created = "attributes.`Run Name`", "runDateAndNestInfo"
    try:
        before = json.loads(known)["selectedColumns"] if known else []
        shown = [column for column in before if column.startswith("metrics.")]
    except (ValueError, KeyError, TypeError, AttributeError):  # somebody else's
        shown = []
    shown = list(dict.fromkeys([*shown, *(f"metrics.`{metric}`" for metric in metrics)]))
    state = {
        "selectedColumns": [
            *shown,
            "attributes.`Dataset`",
            "attributes.`Source`",
            "attributes.`User`",
        ],
        "columnOrder": [name, created, *shown, "duration"],
        "columnWidths": {name: 270, created: 130} | dict.fromkeys(shown, 130),
    }
    return json.dumps(state)


def note(protocol: str, load: Sequence[str], scores: Sequence[Score] = ()) -> str:
    """A run's description in Markdown: its result, if there is one, by which protocol, and how to
    load what it learned.

    `load` are blocks of code, each with its language before the first line.
    """
    parts = [_result(score) for score in scores] or ["There is no result yet."]
    parts += [f"**Protocol:** {protocol}", *(f"```{block}\n```" for block in load), END]
    return "\n\n".join(parts)


def merged(note: str, known: str) -> str:
    """A description that takes the place of the one that is `known`, with what people wrote below
    that.
    """
    own = (known.partition(END)[2] if END in known else known).strip()
    return f"{note}\n\n{own}" if own else note


def _result(score: Score) -> str:
    """A score as a table: before adaptation, after it, and what learns nothing."""
    value = f"{score.metric.text(score.mean)} ± {score.metric.width(score.ci95)}"
    if score.diverged:
        value = (
            f"median {score.metric.text(score.median)}, {score.diverged} of {score.tasks} tasks diverged"
        )
    names = {0: "before adaptation"}
    on_the_way = [(score.steps[i], score.curve[i]) for i in score.table_steps()[:-1]]
    rows = [(names.get(step, f"after step {step}"), score.metric.text(mean)) for step, mean in on_the_way]
    rows.append((f"**result**, {score.tasks} tasks", f"**{value}**"))
    rows += [(name.replace("_", " "), score.metric.text(mean)) for name, mean in score.baselines.items()]
    lines = [f"| {label} | {shown} |" for label, shown in rows]
    norm = "" if score.norm == "none" else f" (norm {score.norm})"
    return "\n".join([f"| {score.metric.name}{norm} | |", "|---|---|", *lines])


def as_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """The scores as MLflow has them: test/accuracy, test/accuracy_ci95, then
    test/support_plus_1/accuracy and so on.
    """
    found: dict[str, float] = {}
    for prefix, score in _named(scores):
        name = f"test/{prefix}{score.metric.name}"
        found |= {name: score.mean, f"{name}_ci95": score.ci95}
        found |= {f"{name}_before": value for value in score.curve[:-1][:1]}
        if score.diverged:
            found |= {f"{name}_median": score.median, f"{name}_diverged_tasks": score.diverged}
        found |= {f"test/{baseline}": value for baseline, value in score.baselines.items()}
    return finite(found)


def adaptation(scores: Sequence[Score]) -> dict[int, dict[str, float]]:
    """The scores over the inner steps, as metrics by inner step; {} if adapting takes none."""
    found: dict[int, dict[str, float]] = {}
    for prefix, score in _named(scores):
        for step, mean in zip(score.steps, score.curve, strict=True):
            found.setdefault(step, {})[f"adaptation/{prefix}{score.metric.name}"] = mean
    return {step: finite(metrics) for step, metrics in found.items()} if len(found) > 1 else {}


def _named(scores: Sequence[Score]) -> list[tuple[str, Score]]:
    """Each score with what stands before its metric's name: of a further norm its own name, as
    "support_plus_1/".
    """
    return [
        ("" if i == 0 else f"{score.norm.replace('+', '_plus_')}/", score)
        for i, score in enumerate(scores)
    ]
