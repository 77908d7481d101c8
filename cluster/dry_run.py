"""What a run would need, and where its time goes, from a few of its tasks, computed in this process
and not kept.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile, record_function

from cluster.config import RunConfig
from cluster.workers.memory import available, peak
from cluster.workers.plan import Plan, choose_plan, device_of
from cluster.workers.worker import Worker
from metatrain.core import InputError, Ticket, Update, to_device
from metatrain.learner import Learner
from metatrain.recipe import Recipe
from metatrain.start import initial_meta

FEW = 4  # tasks that are measured at most
GB = 1024**3


class Cost(NamedTuple):
    """Of a ticket."""

    seconds: float
    memory: float  # bytes of a worker's process, or of its GPU


class Estimate(NamedTuple):
    plan: Plan
    reason: str
    parameters: int
    ticket: Cost
    score: Cost  # of a ticket of the evaluation
    step_s: float
    total_s: float  # the evaluation included
    workers: int
    available: float | None  # bytes on this machine, where the operating system says

    def lines(self, config: RunConfig) -> list[str]:
        """As people read it."""
        outer, evaluation = config.outer, config.evaluation
        memory = max(self.ticket.memory, self.score.memory)
        found = [
            f"compute path: {self.plan.path}: {self.reason}",
            f"meta-parameters: {self.parameters:,} numbers",
            f"a ticket of {outer.tasks_per_ticket} tasks: {self.ticket.seconds:.2g} s, "
            f"{memory / GB:.2f} GB a worker",
            f"an outer step of {outer.tasks_per_step} tasks on {self.workers} workers: "
            f"{self.step_s:.2g} s",
            f"the run, {outer.steps} outer steps and {evaluation.tasks} tasks of evaluation: "
            f"{_duration(self.total_s)}",
        ]
        gpus = config.workers.gpus
        together = (
            max(min(self.workers, int(1 / gpus)), 1) if gpus else self.workers
        )  # on the one GPU, or this machine
        if self.available is not None and memory * together > self.available:
            needed, free = memory * together / GB, self.available / GB
            found.append(
                f"warning: {together} workers need {needed:.1f} GB and {free:.1f} GB are free "
                "here: "
                "set workers.max or outer.tasks_per_ticket lower, or algorithm.recompute or "
                "algorithm.first_order to true where the algorithm has them"
            )
        return found


def estimate(config: RunConfig) -> Estimate:
    """Memory and time of a run, from tickets of one task and of a few; the rest is a straight line
    through them.

    Workers are taken to have a core each.
    """
    recipe, workers = config.recipe(), max(config.workers.max, 1)
    plan, reason = choose_plan(recipe, config.workers.gpus, config.workers.threads)
    update = _extrapolated(recipe, plan, Ticket("update", "train", 0, 0))
    score = _extrapolated(recipe, plan, Ticket("score", recipe.evaluation.split, 0, 0))
    outer, evaluation, validation = recipe.outer, recipe.evaluation, recipe.validation
    step_s = -(-outer.tickets() // workers) * update.seconds + _learner_s(recipe)
    scored = evaluation.tasks
    if validation.every_steps:
        scored += validation.tasks * (1 + outer.steps // validation.every_steps)
    score_s = scored / evaluation.tasks_per_ticket * score.seconds / workers
    return Estimate(
        plan=plan,
        reason=reason,
        parameters=sum(p.numel() for params in initial_meta(recipe) for p in params.values()),
        ticket=update,
        score=score,
        step_s=step_s,
        total_s=outer.steps * step_s + score_s,
        workers=workers,
        available=available(plan.device),
    )


def trace(config: RunConfig, path: Path) -> str:
    """Write a trace of one outer step, which ui.perfetto.dev shows; returns a table of what took
    longest.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"the trace cannot be written to {path}", remedy="give a file in a folder that is there"
        )
    recipe = config.recipe()
    plan, _ = choose_plan(recipe, config.workers.gpus, config.workers.threads)
    worker = Worker(recipe, plan)
    learner = Learner(to_device(initial_meta(recipe), device_of(plan)), recipe.outer)
    worker.load(0, worker.layout.flatten(learner.meta()))
    for _ in range(3):  # what is built, chosen or recorded on first use
        for ticket in recipe.setting("update").tickets("update"):
            worker.compute(ticket)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if plan.device == "cuda" else [])]
    with profile(activities=kinds) as profiled:
        updates = []
        for ticket in recipe.setting("update").tickets("update"):
            with record_function(f"ticket {ticket.part}"):
                result, _ = worker.compute(ticket)
            updates += [result] if isinstance(result, Update) else []
        with record_function("learner"):
            learner.apply(updates)
    profiled.export_chrome_trace(str(path))
    table: str = profiled.key_averages().table(
        sort_by=f"self_{plan.device}_time_total", row_limit=10
    )
    return table


def _extrapolated(recipe: Recipe, plan: Plan, ticket: Ticket) -> Cost:
    setting = recipe.setting(ticket.work)
    tasks = min(setting.tasks_per_ticket, setting.tasks)
    few = min(tasks, FEW)
    one = _measured(recipe, plan, ticket, 1)
    if tasks == 1:
        return one
    some = _measured(recipe, plan, ticket, few)
    return Cost(
        *(a + max(b - a, 0.0) * (tasks - 1) / (few - 1) for a, b in zip(one, some, strict=True))
    )


def _learner_s(recipe: Recipe) -> float:
    meta = initial_meta(recipe)
    learner = Learner(meta, recipe.outer)
    for _ in range(3):
        started = time.perf_counter()
        learner.apply([Update(meta, 1, {})] * recipe.outer.tickets())
    return time.perf_counter() - started


def _measured(recipe: Recipe, plan: Plan, ticket: Ticket, tasks: int) -> Cost:
    """Seconds of the third time, since on a GPU the first two prepare it, and the memory of one
    more.
    """
    outer = dataclasses.replace(recipe.outer, tasks_per_step=tasks, tasks_per_ticket=tasks)
    evaluation = dataclasses.replace(recipe.evaluation, tasks=max(tasks, 2), tasks_per_ticket=tasks)
    worker = Worker(dataclasses.replace(recipe, outer=outer, evaluation=evaluation), plan)
    worker.load(0, worker.layout.flatten(initial_meta(recipe)))
    for _ in range(2):
        worker.compute(ticket)
    _, spent = worker.compute(ticket)
    return Cost(spent.wall_s, peak(plan.device, lambda: worker.compute(ticket)))


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
