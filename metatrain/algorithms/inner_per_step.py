"""Parameters and running statistics that have a value of their own at each inner step.

Those of step 0 are in `Meta` under their own names. Of a later step k, `Meta.algorithm` has
differences of parameters from step 0, as step.k.NAME, and `Meta.state` has statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch

from metatrain.algorithms import inner_loop
from metatrain.core import OWN, InputError, Meta, Params, Problem


def adapting(model: Params, adapts: Sequence[str], per_step: Sequence[str]) -> list[str]:
    """The parameters that adapt, and so have no value for each step.

    Raises InputError if a pattern matches none, or if none adapts.
    """
    own = inner_loop.adapting([*model], per_step, "per_step") if per_step else []
    names = [name for name in inner_loop.adapting([*model], adapts) if name not in own]
    if not names:
        raise InputError(
            "per_step", got=list(per_step), expected="patterns that leave a parameter to adapt"
        )
    return names


def init(model: Params, state: Params, patterns: Sequence[str], steps: int) -> Meta:
    """What `steps` further steps start from: the values of step 0."""
    later = range(1, steps + 1)
    names = [name for name in model if _matches(name, patterns)]
    held = [name for name in state if _matches(name, patterns)]
    return Meta(
        model,
        {f"step.{k}.{name}": torch.zeros_like(model[name]) for name in names for k in later},
        state | {f"{OWN}{k}.{name}": state[name].clone() for name in held for k in later},
    )


def at(meta: Meta, step: int, tasks: int) -> Params:
    """[T, *shape] each: the parameters and statistics of a step from 1 on."""
    differences = _of(meta.algorithm, f"step.{step}.")
    theta = {name: meta.model[name] + p for name, p in differences.items()}
    return inner_loop.expand(theta | _of(meta.state, f"{OWN}{step}."), tasks)


@torch.no_grad()
def tracked(problem: Problem, meta: Meta, tasks: Any, adapted: Iterable[Params]) -> Params:
    """The statistics of the steps from 1 on, moved towards those of the tasks.

    adapted: the tasks' parameters at the steps 0, 1, ...
    """
    found: Params = {}
    if any(name.startswith(OWN) for name in meta.state):
        for k, phi in enumerate(adapted):
            held = _of(meta.state, f"{OWN}{k}.")
            seen = problem.statistics(phi, tasks) if held else {}
            for name, p in held.items():
                found[f"{OWN}{k}.{name}"] = torch.lerp(p, seen[name], inner_loop.MOMENTUM)
    return found


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _of(params: Params, prefix: str) -> Params:
    """Those whose names begin with it, without it."""
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}
