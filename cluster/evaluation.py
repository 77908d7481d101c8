"""Scores by a pool: asks score tickets and summarises them in ticket order."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from typing import Any

from cluster.collector import Requests
from metatrain import evaluate
from metatrain.awaiting import awaiting
from metatrain.core import Norm, Scores, Work
from metatrain.evaluate import Score
from metatrain.recipe import Recipe


def evaluate_work(recipe: Recipe, requests: Requests, work: Work, version: int) -> list[Score]:
    """Score the published parameters, which are those of `version`, on fixed tasks: one score per
    norm.

    `work` is "score" for the evaluation and "validate" for the validation.
    """
    setting = recipe.setting(work)
    tickets = setting.tickets(work)
    requests.ask(tickets)
    parts: list[Scores] = []
    what = f"evaluating on {setting.tasks} {setting.split} tasks"
    with awaiting(what) if work == "score" else nullcontext(lambda text: None) as say:
        for ticket in tickets:
            parts += [
                c.result
                for c in requests.collect([ticket], version)
                if isinstance(c.result, Scores)
            ]
            say(f"{what}: {min(len(parts) * setting.tasks_per_ticket, setting.tasks)} done")
    return [
        evaluate.summarise(
            parts, setting.family.metric, norm, protocol(recipe, work, version, norm)
        )
        for norm in parts[0].curves
    ]


def protocol(recipe: Recipe, work: Work, version: int, norm: Norm | None = None) -> str:
    """All that a score depends on, in a line; `norm` is one that it is measured with, by default
    the first.
    """
    setting, training = recipe.setting(work), recipe.setting("update")
    norm = norm or setting.family.bind(recipe.model, setting.norm, "reference").norm[0]
    trained_norm = (
        "none" if norm == "none" else recipe.norm
    )  # a network without batch statistics has none in training
    trained = f"{recipe.family.describe()}, bn={trained_norm}, {described(training.algorithm)}"
    return (
        f"{setting.family.describe()}, {setting.split} split, bn={norm}, "
        f"{described(recipe.model)}, "
        f"{described(setting.algorithm, adapts=True)}, {setting.tasks} tasks of seed "
        f"{setting.seed}; trained {version} "
        f"steps of {recipe.outer.tasks_per_step} tasks ({trained}), seed {recipe.seed}; losses are "
        "means"
    )


def described(component: Any, *, adapts: bool = False) -> str:
    """A model or an algorithm by its name and its fields, without those that are off.

    With `adapts` it is the algorithm as it adapts: without what it uses in training only.
    """
    said = [str(component.name)]
    for item in dataclasses.fields(component):
        value = getattr(component, item.name)
        off = value is None or value is False or value in ((), ("*",))
        if item.name != "name" and not off and not (adapts and item.metadata.get("training_only")):
            text = f"{value}".replace(" ", "")
            if dataclasses.is_dataclass(value):
                inner = described(value)
                text = f"({inner})" if " " in inner else inner
            said.append(f"{item.name}={text}")
    return " ".join(said)
