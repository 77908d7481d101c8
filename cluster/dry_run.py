"""The needs of a run and where its time goes, from a few of its tasks, computed here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from torch.profiler import ProfilerActivity, profile, record_function

from cluster.config import RunConfig
from cluster.workers.memory import available, peak
from cluster.workers.plan import Plan, choose_plan, device_of
from cluster.workers.worker import Worker
from metatrain.core import InputError, Purpose, Update, to_device
from metatrain.learner import Learner
from metatrain.names import counted
from metatrain.start import TRAINING, Prepared

FEW = 4  # tasks that are measured at most
GB = 1024**3


class Cost(NamedTuple):
    """Of a ticket."""

    seconds: float
    memory: float  # bytes of a worker's process, or of its GPU


class Estimate(NamedTuple):
    """Of a run."""

    plan: Plan
    reason: str
    parameters: int
    ticket: Cost
    score: Cost  # of a ticket of the evaluation
    step_s: float
    total_s: float  # the evaluations included
    tasks: int  # of all evaluations
    workers: int
    available: float | None  # bytes on this machine, if the operating system says

    def lines(self, config: RunConfig) -> list[str]:
        """As people read it."""
        outer = config.outer
        memory = max(self.ticket.memory, self.score.memory)
        if self.plan.device == "cuda":  # the graph of updates keeps its memory
            memory = self.ticket.memory + self.score.memory
        found = [
            f"compute path: {self.plan.path}: {self.reason}",
            f"meta-parameters: {self.parameters:,} numbers",
            f"a ticket of {outer.tasks_per_ticket} tasks: {self.ticket.seconds:.2g} s, "
            f"{memory / GB:.2f} GB a worker",
            f"an outer step of {outer.tasks_per_step} tasks on {counted(self.workers, 'worker')}: "
            f"{self.step_s:.2g} s",
            f"the run, {counted(outer.steps, 'outer step')} and {counted(self.tasks, 'task')} of "
            f"evaluation: {_duration(self.total_s)}",
        ]
        gpus = config.workers.gpus
        # on the one GPU, or this machine
        together = max(min(self.workers, int(1 / gpus)), 1) if gpus else self.workers
        if self.available is not None and memory * together > self.available:
            needed, free = memory * together / GB, self.available / GB
            found.append(
                f"warning: {together} workers need {needed:.1f} GB and {free:.1f} GB are free "
                "here: set workers.max or outer.tasks_per_ticket lower, or algorithm.recompute or "
                "algorithm.first_order to true if the algorithm has them"
            )
        return found


def estimate(config: RunConfig, prepared: Prepared) -> Estimate:
    """Estimate memory and time of a run from tickets of one task and of a few.

    The rest is a straight line through them. Workers are taken to have a core each.
    """
    recipe, workers = prepared.recipe, max(config.workers.max, 1)
    plan, reason = choose_plan(prepared, config.workers.gpus, config.workers.threads)
    update = _extrapolated(prepared, plan, Purpose("update"))
    score = _extrapolated(prepared, plan, Purpose("score"))
    outer, evaluation, validation = recipe.outer, recipe.evaluation, recipe.validation
    step_s = -(-outer.tickets() // workers) * update.seconds + _learner_s(prepared)
    tested = scored = sum(s.tasks for s in prepared.used() if s.purpose.work == "score")
    if validation.every_steps:
        scored += validation.tasks * (1 + outer.steps // validation.every_steps)
    score_s = scored / evaluation.tasks_per_ticket * score.seconds / workers
    return Estimate(
        plan=plan,
        reason=reason,
        parameters=sum(p.numel() for p in prepared.meta.flat().values()),
        ticket=update,
        score=score,
        step_s=step_s,
        total_s=outer.steps * step_s + score_s,
        tasks=tested,
        workers=workers,
        available=available(plan.device),
    )


def trace(config: RunConfig, prepared: Prepared, path: Path) -> str:
    """Write a trace of one outer step, which ui.perfetto.dev shows.

    Returns a table of the operations that took longest.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"the trace cannot be written to {path}", remedy="give a file in a folder that is there"
        )
    plan, _ = choose_plan(prepared, config.workers.gpus, config.workers.threads)
    worker = Worker(prepared, plan)
    learner = Learner(to_device(prepared.meta, device_of(plan)), config.outer)
    tickets = prepared.settings[TRAINING].tickets()
    worker.load(0, worker.layout.flatten(learner.meta()))
    for _ in range(3):  # what is built, chosen or recorded on first use
        for ticket in tickets:
            worker.compute(ticket)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if plan.device == "cuda" else [])]
    # torch 2.11 warns that it forgets; there is one cycle.
    with profile(activities=kinds, acc_events=True) as profiled:
        updates = []
        for ticket in tickets:
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


def _extrapolated(prepared: Prepared, plan: Plan, purpose: Purpose) -> Cost:
    setting = prepared.settings[purpose]
    tasks = min(setting.tasks_per_ticket, setting.tasks)
    few = min(tasks, FEW)
    one = _measured(prepared, plan, purpose, 1)
    if tasks == 1:
        return one
    some = _measured(prepared, plan, purpose, few)
    return Cost(
        *(a + max(b - a, 0.0) * (tasks - 1) / (few - 1) for a, b in zip(one, some, strict=True))
    )


def _learner_s(prepared: Prepared) -> float:
    outer = prepared.recipe.outer
    learner = Learner(prepared.meta, outer)
    for _ in range(3):
        started = time.perf_counter()
        learner.apply([Update(prepared.meta, 1, {})] * outer.tickets())
    return time.perf_counter() - started


def _measured(prepared: Prepared, plan: Plan, purpose: Purpose, tasks: int) -> Cost:
    """Seconds of the third time, and the memory of one more.

    On a GPU the first two times prepare it.
    """
    setting = prepared.settings[purpose]._replace(tasks=tasks, tasks_per_ticket=tasks)
    settings = {**prepared.settings, purpose: setting}
    worker, (ticket,) = Worker(prepared._replace(settings=settings), plan), setting.tickets()
    worker.load(0, worker.layout.flatten(prepared.meta))
    for _ in range(2):
        worker.compute(ticket)
    _, spent = worker.compute(ticket)
    return Cost(spent.wall_s, peak(plan.device, lambda: worker.compute(ticket)))


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.1f} minutes"
