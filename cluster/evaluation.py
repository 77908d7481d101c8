"""Scores by a pool: asks score tickets and summarises them in ticket order."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

from cluster.collector import Requests
from metatrain import evaluate, protocol
from metatrain.awaiting import awaiting
from metatrain.core import Purpose, Scores
from metatrain.evaluate import Score
from metatrain.start import Prepared


def evaluate_all(prepared: Prepared, requests: Requests, version: int) -> list[Score]:
    """The scores of the recipe's evaluation, the result first, then of its further evaluations."""
    return [
        dataclasses.replace(score, evaluation=purpose.variant)
        for purpose in prepared.settings
        if purpose.work == "score"
        for score in evaluate_for(prepared, requests, purpose, version)
    ]


def evaluate_for(
    prepared: Prepared, requests: Requests, purpose: Purpose, version: int
) -> list[Score]:
    """Score the published parameters on a purpose's fixed tasks: one score for each norm.

    version: the outer steps that these parameters were trained for.
    """
    setting = prepared.settings[purpose]
    tickets = setting.tickets()
    requests.ask(tickets)
    parts: list[Scores] = []
    name = f" of {purpose.variant}" if purpose.variant else ""
    what = f"evaluating on {setting.tasks} {setting.split} tasks{name}"
    with awaiting(what) if purpose.work == "score" else nullcontext(lambda text: None) as say:
        for ticket in tickets:
            parts += requests.collect_scores([ticket], version)
            say(f"{what}: {min(len(parts) * setting.tasks_per_ticket, setting.tasks)} done")
    return [
        evaluate.summarise(
            parts,
            setting.family.metric,
            prepared.problems[purpose].measures,
            norm,
            protocol.of_score(prepared, purpose, version, norm),
        )
        for norm in parts[0].curves
    ]
