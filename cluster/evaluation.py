"""Scores by a pool: asks score tickets and summarises them in ticket order."""

from __future__ import annotations

from cluster.requests import Requests
from metatrain import evaluate
from metatrain.core import Algorithm, Norm, Scores, Split, Ticket
from metatrain.evaluate import Score
from metatrain.recipe import Recipe

NOTHING = (None, False, (), ("*",))  # values that say nothing in a protocol line


def evaluate_split(recipe: Recipe, requests: Requests, split: Split, version: int) -> list[Score]:
    """Score the published parameters, which are those of `version`, on a split's fixed tasks: one score per norm."""
    setting = recipe.setting(split)
    tickets = [Ticket("score", split, 0, part) for part in range(-(-setting.tasks // setting.tasks_per_ticket))]
    requests.ask(tickets)
    contributions = requests.collect(tickets, oldest_version=version)
    parts = [c.result for c in contributions if isinstance(c.result, Scores)]
    found = []
    for i, norm in enumerate(parts[0].norms):
        name = setting.family.metric + (f"[{norm}]" if i else "")
        found.append(evaluate.summarise(parts, name, norm, _protocol(recipe, split, norm, version)))
    return found


def _protocol(recipe: Recipe, split: Split, norm: Norm, version: int) -> str:
    setting = recipe.setting(split)
    trained = f"{recipe.family.describe()}, bn={recipe.norm}, {_describe(recipe.algorithm)}"
    return (
        f"{setting.family.describe()}, {split} split, bn={norm}, {_describe(setting.algorithm)}, "
        f"{setting.tasks} tasks of seed {setting.seed}; trained {version} steps of {recipe.outer.tasks_per_step} tasks "
        f"({trained}), seed {recipe.seed}; losses are means"
    )


def _describe(algorithm: Algorithm) -> str:
    fields = dict(vars(algorithm))
    name = fields.pop("name")
    return " ".join([name, *(f"{k}={v}" for k, v in fields.items() if v not in NOTHING)])
