"""A first look at a recipe's tasks, before a run starts: it refuses those that would end it."""

from __future__ import annotations

import torch
from torch import Tensor

from metatrain.core import ComputePath, InputError, Purpose, Ticketed, generator_for
from metatrain.custom import staying
from metatrain.disturbed import check_disturbed
from metatrain.ensembles import check_ensemble
from metatrain.metrics import Metric
from metatrain.problems.functional import trying
from metatrain.start import Prepared

TASKS = 7  # of a first look: so many that they are not taken for the examples of a task


def check_data(prepared: Prepared) -> None:
    """Refuse tasks that the data cannot give, or that do not fit the network or the algorithm."""
    algorithm, tickets = prepared.recipe.algorithm, prepared.recipe.outer.tickets()
    if isinstance(algorithm, Ticketed) and algorithm.tickets != tickets:
        raise InputError(
            "algorithm.tickets",
            got=algorithm.tickets,
            expected=f"{tickets}, as many as outer.tasks_per_step in outer.tasks_per_ticket make",
        )
    for setting in prepared.used():
        check_setting(prepared, setting.purpose)


def check_setting(prepared: Prepared, purpose: Purpose) -> None:
    """The same for the tasks of one purpose."""
    setting = prepared.settings[purpose]
    try:
        with staying("`check`"):
            setting.family.check(setting.split)
    except InputError as error:
        if not purpose.variant:
            raise
        fits = purpose.work == "validate"
        place = purpose.variant if fits else f"evaluations.{purpose.variant}"
        raise InputError.at(place, error) from error
    key = "evaluation" + (f"s.{purpose.variant}" if purpose.variant else "")
    check_disturbed(setting, prepared.problems[purpose], key)
    check_ensemble(setting, prepared.problems[purpose], key)
    check_sample(prepared, purpose, "reference")


def check_sample(prepared: Prepared, purpose: Purpose, path: ComputePath) -> None:
    """Refuse a family whose first tasks do not fit the network or the losses, on this path."""
    setting = prepared.settings[purpose]
    family, ticket = setting.family, setting.tickets()[0]
    who = f"{type(family).__name__} of family.name {prepared.recipe.family.name!r}"
    if not isinstance(family.metric, Metric):
        raise InputError(
            f"{who}: its metric",
            got=family.metric,
            expected='a metatrain.metrics.Metric such as Metric("f1", "max", "percent")',
        )
    with trying(f"{who}: `sample`", f"for {TASKS} tasks of the {setting.split} split", "it"):
        tasks, again = (
            family.sample(generator_for(setting.seed, ticket, "tasks"), TASKS, setting.split)
            for _ in range(2)
        )
    fields = getattr(tasks, "_fields", None)
    if fields is None:
        raise InputError(
            f"{who}: `sample` gives {type(tasks).__name__}",
            expected="a NamedTuple such as core.Task",
        )
    for name, leaf in zip(fields, tasks, strict=True):
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"{who}: {name} is {type(leaf).__module__}.{type(leaf).__name__}",
                expected="a torch.Tensor",
                remedy="convert it, such as with torch.from_numpy",
            )
        if leaf.layout != torch.strided or leaf.device.type != "cpu":
            raise InputError(
                f"{who}: {name} is {leaf.layout} on {leaf.device}",
                expected="a dense tensor on the CPU",
            )
        if leaf.dim() < 1 or len(leaf) != TASKS:
            raise InputError(
                f"{who}: {name} is {list(leaf.shape)} for {TASKS} tasks",
                expected=f"[{TASKS}, ...], one entry a task",
            )
        if not bool(leaf.isfinite().all()):
            raise InputError(
                f"{who}: {name} has values that are not finite", remedy="correct `sample`"
            )
    if not all(torch.equal(leaf, other) for leaf, other in zip(tasks, again, strict=True)):
        raise InputError(
            f"{who}: the same generator gives other tasks the second time",
            remedy="draw from the generator that `sample` gets, and from nothing else",
        )
    problem = prepared.bind(purpose, path)
    try:
        problem.check(tasks)
    except InputError as error:
        raise InputError.at(who, error) from error
    if path == "reference" and not any(_is_own(part) for part in (family, prepared.recipe.model)):
        return
    measured = problem.try_out(tasks)
    if family.metric.name not in measured:
        raise InputError(
            f"{who}: its metric's name",
            got=family.metric.name,
            expected=f"one that `bind` measures: {', '.join(measured)}",
        )


def _is_own(component: object) -> bool:
    """Whether a family or a model is of a class of the user's; ours are tried in tests."""
    return not type(component).__module__.startswith("metatrain.")
