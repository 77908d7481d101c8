"""Ensembles by a pool: workers send the predictions of members, and the driver mixes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cluster import checkpoint
from cluster.config import RunConfig
from cluster.pools.pool import Snapshot
from metatrain import ensembles
from metatrain.core import InputError, Norm, Problem, Purpose, Scores, Setting
from metatrain.ensembles import Convex, Snapshots
from metatrain.evaluate import without_diverged
from metatrain.recipe import Recipe
from metatrain.start import Prepared, verified

Ask = Callable[[Setting, Snapshot | None], list[Scores]]  # the answers to all tickets, in order


def mixed(
    prepared: Prepared, purpose: Purpose, ask: Ask, earlier: Sequence[Snapshot]
) -> dict[Norm, list[Scores]]:
    """What an ensemble gives on all tickets of a purpose, by norm.

    Its baseline "single" is the network without it, on the same tasks.

    ask: has a setting's tickets computed, on the parameters of a checkpoint or of the result.
    earlier: the checkpoints before the result, the newest first.
    """
    setting, problem = prepared.settings[purpose], prepared.problems[purpose]
    weights: dict[Norm, Tensor] = {}
    if isinstance(setting.ensemble, Convex):
        weights = _fitted(prepared.settings[ensembles.purpose_of_fit(purpose)], ask)
    # The oldest first: a late answer to a ticket is then known by its version, and counts no more.
    others = [ask(setting, each) for each in reversed(_wanted(setting, earlier))]
    parts = ask(setting, None)
    members = [_joined(each) for each in zip(parts, *reversed(others), strict=True)]
    tasks = [setting.sample(ticket) for ticket in setting.tickets()]
    name = setting.family.metric.name
    return {
        norm: [
            _judged(problem, task, part, found[norm], norm, weights.get(norm))._replace(
                baselines=part.baselines | {"single": part.curves[norm][name][:, -1]}
            )
            for part, found, task in zip(parts, members, tasks, strict=True)
        ]
        for norm in parts[0].curves
    }


def earlier(recipe: Recipe, uri: str, result: Snapshot) -> list[Snapshot]:
    """The checkpoints that a recipe's ensembles need besides the result, the newest first.

    uri: the folder of a run, or of its checkpoints.

    Raises InputError if there are not as many.
    """
    wanted = _checkpoints(recipe) - 1
    if wanted < 1:
        return []
    found = checkpoint.before(checkpoint.root_of(uri), result.version, wanted)
    if len(found) < wanted:
        raise InputError(
            "evaluation.ensemble.members of snapshots",
            got=wanted + 1,
            expected=f"at most {len(found) + 1}, as {uri} has no more checkpoints",
        )
    return [
        Snapshot(
            saved.version,
            verified(saved.config.recipe(), saved.meta().flat(), saved.uri),
            averaged=result.averaged,
        )
        for saved in found
    ]


def check_checkpoints(config: RunConfig) -> None:
    """Raise InputError if a run will not leave the checkpoints that its ensembles need."""
    wanted = _checkpoints(config)
    if wanted < 2:
        return
    if config.takes_best:
        raise InputError(
            "evaluation.ensemble.name",
            got="snapshots",
            expected="another one with a result that is the best validation's",
            remedy="set evaluation.of to last, without validation.patience",
        )
    kept, every = config.checkpoint.keep, config.checkpoint.every_steps
    if kept < wanted:
        raise InputError(
            "checkpoint.keep", got=kept, expected=f"at least evaluation.ensemble.members, {wanted}"
        )
    if every * (wanted - 1) >= config.outer.steps:
        raise InputError(
            "checkpoint.every_steps",
            got=every,
            expected=f"so few that {wanted} checkpoints fit into outer.steps, {config.outer.steps}",
        )


def _checkpoints(recipe: Recipe) -> int:
    """How many checkpoints the ensembles of a recipe's evaluations need; 0 if they need none."""
    found = [recipe.evaluation.ensemble, *(each.ensemble for each in recipe.evaluations.values())]
    return max((each.members for each in found if isinstance(each, Snapshots)), default=0)


def _wanted(setting: Setting, earlier: Sequence[Snapshot]) -> Sequence[Snapshot]:
    """The checkpoints besides the result that an ensemble's members start from."""
    if not isinstance(setting.ensemble, Snapshots):
        return ()
    wanted = setting.ensemble.members - 1
    if len(earlier) < wanted:
        raise InputError(
            "an ensemble of snapshots needs a run's checkpoints, which are not at hand",
            remedy="evaluate the run's folder",
        )
    return earlier[:wanted]


def _joined(parts: Sequence[Scores]) -> dict[Norm, dict[str, Tensor]]:
    """The members of several answers to one ticket, by norm."""
    return {
        norm: {name: torch.cat([part.members[norm][name] for part in parts], 1) for name in found}
        for norm, found in parts[0].members.items()
    }


def _judged(
    problem: Problem,
    task: Any,
    part: Scores,
    members: dict[str, Tensor],
    norm: Norm,
    weights: Tensor | None,
) -> Scores:
    """The scores of the mixture on the tasks of a ticket, by one norm."""
    classes = bool(getattr(problem, "classes", False))
    prediction = ensembles.mixture(members, weights, classes=classes)
    judged = without_diverged(problem.judge(prediction, task))
    curves = {norm: {name: value[:, None] for name, value in judged.items()}}
    pooled = {norm: {name: each.pool(prediction, task) for name, each in problem.measures.items()}}
    return part._replace(steps=part.steps[-1:], curves=curves, pooled=pooled, members={})


def _fitted(setting: Setting, ask: Ask) -> dict[Norm, Tensor]:
    """[K] of each norm: the weights with the least loss on the validation tasks."""
    parts = ask(setting, None)
    labels = [setting.sample(ticket).query_y for ticket in setting.tickets()]
    return {
        norm: ensembles.fitted(
            torch.cat(
                [
                    ensembles.right(part.members[norm], y)
                    for part, y in zip(parts, labels, strict=True)
                ]
            )
        )
        for norm in parts[0].members
    }
