"""Scores by a pool: asks score tickets and summarises them in ticket order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from torch import Tensor

from cluster.collector import Requests
from metatrain import evaluate, protocol
from metatrain.awaiting import awaiting
from metatrain.core import Purpose, Scores, Setting
from metatrain.evaluate import Score
from metatrain.start import Prepared


class Baseline(NamedTuple):
    """The network without meta-learning, as it was measured on the tasks of an evaluation."""

    values: Sequence[Tensor]  # the metric [T] after adaptation, of each ticket
    steps: int | None  # inner steps; None: it adapts without steps
    protocol: str


Baselines = Mapping[str, Baseline]  # by name


def evaluate_all(
    prepared: Prepared, requests: Requests, version: int, baselines: Baselines | None = None
) -> list[Score]:
    """The scores of the recipe's evaluation, the result first, then of its further evaluations.

    baselines: those that the result is compared with, besides the family's own.
    """
    return [
        dataclasses.replace(score, evaluation=purpose.variant)
        for purpose in prepared.settings
        if purpose.work == "score"
        for score in evaluate_for(
            prepared, requests, purpose, version, None if purpose.variant else baselines
        )
    ]


def evaluate_for(
    prepared: Prepared,
    requests: Requests,
    purpose: Purpose,
    version: int,
    baselines: Baselines | None = None,
) -> list[Score]:
    """Score the published parameters on a purpose's fixed tasks: one score for each norm.

    version: the outer steps that these parameters were trained for.
    """
    setting = prepared.settings[purpose]
    name = f" of {purpose.variant}" if purpose.variant else ""
    what = f"evaluating on {setting.tasks} {setting.split} tasks{name}"
    parts = collected(setting, requests, version, what if purpose.work == "score" else "")
    others = baselines or {}
    for name, other in others.items():
        parts = [
            part._replace(baselines=part.baselines | {name: value})
            for part, value in zip(parts, other.values, strict=True)
        ]
    steps = {name: other.steps for name, other in others.items() if other.steps is not None}
    protocols = {name: other.protocol for name, other in others.items()}
    return [
        dataclasses.replace(
            evaluate.summarise(
                parts,
                setting.family.metric,
                prepared.problems[purpose].measures,
                norm,
                protocol.of_score(prepared, purpose, version, norm),
            ),
            baseline_steps=steps,
            baseline_protocols=protocols,
        )
        for norm in parts[0].curves
    ]


def collected(setting: Setting, requests: Requests, version: int, what: str) -> list[Scores]:
    """Ask for all tickets of a setting; the answers in their order.

    what: the text that says what is awaited; empty: say nothing.
    """
    tickets = setting.tickets()
    requests.ask(tickets)
    parts: list[Scores] = []
    with awaiting(what) if what else nullcontext(lambda text: None) as say:
        for ticket in tickets:
            parts += requests.collect_scores([ticket], version)
            say(f"{what}: {min(len(parts) * setting.tasks_per_ticket, setting.tasks)} done")
    return parts
