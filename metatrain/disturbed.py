"""Tasks of an evaluation whose examples were corrupted, or attacked."""

from __future__ import annotations

from collections import deque
from typing import Any

from metatrain.core import (
    Context,
    Corruption,
    InputError,
    Meta,
    Problem,
    Setting,
    attackable,
    chunks,
    joined,
)


def disturbed(
    problem: Problem, setting: Setting, meta: Meta, tasks: Any, context: Context
) -> tuple[Problem, Any]:
    """The tasks as the setting disturbs them, and the problem of such tasks.

    The corruption comes first. An attack then moves support examples, against the network that
    adapted to them as they were, and query examples, against the network that predicts them.
    """
    corruption, attack = setting.corruption, setting.attack
    if corruption is None and attack is None:
        return problem, tasks
    there, tasks = attackable(problem).in_floats(tasks)
    if corruption is not None:
        tasks = _corrupted(corruption, tasks, context)
    if attack is None:
        return there, tasks
    if attack.part != "query":
        moved = []
        for chunk in chunks(there, tasks):
            steps = setting.algorithm.adapt(there, meta, chunk, context)
            (adapted,) = deque(steps, maxlen=1)
            moved.append(there.attack_support(attack, adapted, chunk, context))
        tasks = joined(moved)
    return there if attack.part == "support" else there.attack_queries(attack), tasks


def check_disturbed(setting: Setting, problem: Problem, key: str) -> None:
    """Refuse what cannot disturb the examples of this problem; `key` is the evaluation's."""
    disturbing = {"corruption": setting.corruption, "attack": setting.attack}
    for name in (name for name, given in disturbing.items() if given is not None):
        try:
            there = attackable(problem, "leave it out, or choose tasks of images")
        except InputError as error:
            raise InputError.at(f"{key}.{name}", error) from error
        if name == "corruption" and len(there.inputs) != 3:
            raise InputError(
                f"{key}.{name}: the shape of examples",
                got=list(there.inputs),
                expected="that of images, [channels, height, width]",
            )


def _corrupted(corruption: Corruption, tasks: Any, context: Context) -> Any:
    """The tasks, in floats, with a part of their images corrupted."""
    if corruption.part != "query":
        tasks = tasks._replace(support_x=corruption(tasks.support_x, context.generator))
    if corruption.part != "support":
        tasks = tasks._replace(query_x=corruption(tasks.query_x, context.generator))
    return tasks
