"""Scores by a pool: asks score tickets and summarises them in ticket order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

from torch import Tensor

from cluster import ensembles
from cluster.collector import Requests
from cluster.pools.pool import Snapshot
from metatrain import evaluate, protocol
from metatrain.awaiting import awaiting
from metatrain.core import Norm, Purpose, Scores, Setting
from metatrain.evaluate import Score
from metatrain.start import Prepared


class Baseline(NamedTuple):
    """The network without meta-learning, as it was measured on the tasks of an evaluation."""

    values: Sequence[Tensor]  # the metric [T] after adaptation, of each ticket
    steps: int | None  # inner steps; None: it adapts without steps
    protocol: str


Baselines = Mapping[str, Baseline]  # by name


def evaluate_all(
    prepared: Prepared,
    requests: Requests,
    version: int,
    baselines: Baselines | None = None,
    snapshots: Sequence[Snapshot] = (),
) -> list[Score]:
    """The scores of the recipe's evaluation, the result first, then of its further evaluations.

    baselines: those that the result is compared with, besides the family's own.
    snapshots: for an ensemble of checkpoints the published parameters, then the earlier ones.
    """
    return [
        dataclasses.replace(score, evaluation=purpose.variant)
        for purpose in prepared.settings
        if purpose.work == "score"
        for score in evaluate_for(
            prepared, requests, purpose, version, None if purpose.variant else baselines, snapshots
        )
    ]


def evaluate_for(
    prepared: Prepared,
    requests: Requests,
    purpose: Purpose,
    version: int,
    baselines: Baselines | None = None,
    snapshots: Sequence[Snapshot] = (),
) -> list[Score]:
    """Score the published parameters on a purpose's fixed tasks: one score for each norm.

    version: the outer steps that these parameters were trained for.
    baselines, snapshots: as `evaluate_all` has them.
    """

    def ask(setting: Setting, snapshot: Snapshot | None = None) -> list[Scores]:
        name = f" of {purpose.variant}" if purpose.variant else ""
        what = f"evaluating on {setting.tasks} {setting.split} tasks{name}"
        if snapshot is not None:
            requests.publish(snapshot)
        what = what if purpose.work == "score" else ""
        found = collected(setting, requests, snapshot.version if snapshot else version, what)
        if snapshot is not None:
            requests.publish(snapshots[0])
        return found

    setting = prepared.settings[purpose]
    if setting.ensemble is None:
        parts = ask(setting)
        by_norm = dict.fromkeys(parts[0].curves, parts)
    else:
        by_norm = ensembles.mixed(prepared, purpose, ask, snapshots[1:])
    others = baselines or {}
    for name, other in others.items():
        by_norm = {
            norm: [
                part._replace(baselines=part.baselines | {name: value})
                for part, value in zip(parts, other.values, strict=True)
            ]
            for norm, parts in by_norm.items()
        }
    steps = {name: other.steps for name, other in others.items() if other.steps is not None}
    protocols = {name: other.protocol for name, other in others.items()}

    def of_single(norm: Norm) -> dict[str, str]:
        if setting.ensemble is None:
            return {}
        return {"single": protocol.of_score(prepared, purpose, version, norm, single=True)}

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
            baseline_protocols=of_single(norm) | protocols,
        )
        for norm, parts in by_norm.items()
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
