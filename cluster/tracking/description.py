"""A run on MLflow's pages: its description, its scores as metrics, the columns of its table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from metatrain.plain import finite

if TYPE_CHECKING:
    from metatrain.evaluate import Score

NOTE = "mlflow.note.content"
END = "[//]: # (metatrain writes what is above this line)"  # Markdown shows no such line
NO_RESULT = "There is no result yet."
VIEW = "results"  # the key of the view of an experiment's runs that shows their results
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
PRIMARY_TAG = "mlflow.experiment.primaryMetric.name"


class Measured(Protocol):
    """A score of a run, or of several."""

    @property
    def evaluation(self) -> str: ...

    @property
    def norm(self) -> str: ...


S = TypeVar("S", bound=Measured)


def view(known: str, metrics: Sequence[str]) -> str:
    """Return the state of MLflow's table of runs that shows these metrics after the `known` ones.

    Without a state, the table shows no metric until somebody chooses it.
    """
    name, created = "attributes.`Run Name`", "runDateAndNestInfo"
    try:
        before = json.loads(known)["selectedColumns"] if known else []
        shown = [column for column in before if column.startswith("metrics.")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # somebody else's
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
    """Return a run's description in Markdown: its result, its protocol, and how to load it.

    load: blocks of code, each with its language before the first line.
    """
    parts = [_result(score) for score in scores] or [NO_RESULT]
    parts += [f"**Protocol:** {protocol}", *(f"```{block}\n```" for block in load), END]
    return "\n\n".join(parts)


def of_pretraining(trained: str, use: str) -> str:
    """Return a pre-training's description in Markdown: how it trains, and what it is for.

    use: a block of code with its language before the first line.
    """
    return "\n\n".join([f"**Pre-training:** {trained}", f"```{use}\n```", END])


def with_results(known: str, scores: Sequence[Score]) -> str:
    """Return the known description with results, if it says that there are none."""
    return known.replace(NO_RESULT, "\n\n".join(_result(score) for score in scores), 1)


def merged(note: str, known: str) -> str:
    """Return the note with what people wrote below the `known` one."""
    own = (known.partition(END)[2] if END in known else known).strip()
    return f"{note}\n\n{own}" if own else note


def _result(score: Score) -> str:
    """Return a score as a table: before adaptation, after it, and the baselines."""
    text = score.metric.text
    value = f"{text(score.mean)} ± {score.metric.width(score.ci95)}"
    if score.diverged:
        lost = f"{score.diverged} of {score.tasks} tasks diverged"
        value = f"median {text(score.median)}, {lost}"
    names = {0: "before adaptation"}
    on_the_way = [(score.steps[i], score.curve[i]) for i in score.table_steps()[:-1]]
    rows = [(names.get(step, f"after step {step}"), text(mean)) for step, mean in on_the_way]
    rows.append((f"**result**, {score.tasks} tasks", f"**{value}**"))
    rows += [(name.replace("_", " "), text(mean)) for name, mean in score.baselines.items()]
    lines = [f"| {label} | {shown} |" for label, shown in rows]
    norm = "" if score.norm == "none" else f" (norm {score.norm})"
    other = f"{score.evaluation}: " if score.evaluation else ""
    return "\n".join([f"| {other}{score.metric.name}{norm} | |", "|---|---|", *lines])


def as_metrics(scores: Sequence[Score]) -> dict[str, float]:
    """Return the scores under their names in MLflow: test/accuracy, test/accuracy_ci95 and so on.

    Those of a further norm or evaluation have its name, such as test/support_plus_1/accuracy.
    """
    found: dict[str, float] = {}
    for prefix, score in named(scores):
        name = f"test/{prefix}{score.metric.name}"
        found |= {name: score.mean, f"{name}_ci95": score.ci95}
        found |= {f"{name}_before": value for value in score.curve[:-1][:1]}
        if score.diverged:
            found |= {f"{name}_median": score.median, f"{name}_diverged_tasks": score.diverged}
        found |= {f"test/{prefix}{measure}": value for measure, value in score.measures.items()}
        own = f"test/{score.evaluation}/".replace("//", "/")
        found |= {f"{own}{baseline}": value for baseline, value in score.baselines.items()}
    return finite(found)


def adaptation(scores: Sequence[Score]) -> dict[int, dict[str, float]]:
    """Return the scores as metrics by inner step; {} if adapting takes no steps."""
    found: dict[int, dict[str, float]] = {}
    for prefix, score in named(scores):
        for step, mean in zip(score.steps, score.curve, strict=True):
            found.setdefault(step, {})[f"adaptation/{prefix}{score.metric.name}"] = mean
    return {step: finite(metrics) for step, metrics in found.items()} if len(found) > 1 else {}


def named(scores: Sequence[S]) -> list[tuple[str, S]]:
    """Return each score with the prefix of its metrics, such as "support_plus_1/" or "ways10/"."""
    found, seen = [], set()
    for score in scores:
        names = [score.evaluation] if score.evaluation else []
        if score.evaluation in seen:  # by a further norm
            names.append(score.norm.replace("+", "_plus_"))
        seen.add(score.evaluation)
        found.append(("".join(f"{name}/" for name in names), score))
    return found
