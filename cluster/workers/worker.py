"""The worker: a ticket in, an update or scores out.

It is the same in the driver's process and in a Ray actor.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cluster.workers.compiled import fused
from cluster.workers.cuda import Replays, Step
from cluster.workers.layout import Layout
from cluster.workers.memory import keep_freed_memory
from cluster.workers.plan import Plan, device_of
from cluster.workers.staging import staged
from cluster.workers.usage import Spent
from metatrain import ensembles, evaluate
from metatrain.core import (
    ComputePath,
    Context,
    InputError,
    Problem,
    Purpose,
    Resident,
    Scores,
    TaskFamily,
    Ticket,
    Update,
    arriving,
    generator_for,
    to_device,
)
from metatrain.disturbed import disturbed
from metatrain.ops.build import KernelsUnavailable
from metatrain.start import TRAINING, Prepared


class Worker:
    """Computes tickets on the newest parameters that were loaded."""

    def __init__(self, prepared: Prepared, plan: Plan) -> None:
        self._device = device_of(plan)
        torch.set_num_threads(plan.threads)
        keep_freed_memory()
        self._prepared = prepared
        self._path: ComputePath = plan.path
        self._compiles = plan.compile
        self.layout = Layout(prepared.meta, plan.path)
        self._buffer = torch.zeros(self.layout.size, device=self._device)
        self._meta = self.layout.unflatten(self._buffer)
        self.version = -1
        self._problems: dict[Purpose, Problem] = {}
        self._drawn: dict[Ticket, Any] = {}
        self._replays: Replays | None = None  # of a GPU
        try:
            self._problem(TRAINING)
        except KernelsUnavailable as reason:
            raise InputError(
                f"this worker cannot use the compute path {plan.path!r} that the driver chose "
                f"({reason})"
            ) from reason

    def load(self, version: int, flat: Tensor) -> None:
        """Copy the parameters of a version; `flat` may be memory that other processes read."""
        if version != self.version:
            self._buffer.copy_(flat, non_blocking=True)
            self.version = version

    def draw(self, ticket: Ticket) -> None:
        """Draw a ticket's tasks before they are asked for."""
        self._drawn = {t: tasks for t, tasks in self._drawn.items() if t.step >= ticket.step - 1}
        self._drawn[ticket] = staged(self._sample(ticket), self._device)

    def compute(self, ticket: Ticket, *, keep: bool = True) -> tuple[Update | Scores, Spent]:
        """The ticket's update, on the worker's device, or its scores, and what it cost.

        keep: copy an update on a GPU, so that the next ticket does not write over it.

        Raises InputError if memory is not enough.
        """
        started, cpu_s = time.perf_counter(), time.process_time()
        result = self.launch(ticket, keep=keep)
        if isinstance(result, Update):
            result = result._replace(metrics=arriving(result.metrics)())
        return result, Spent(time.perf_counter() - started, time.process_time() - cpu_s)

    def launch(self, ticket: Ticket, *, keep: bool = True) -> Update | Scores:
        """The same, but a GPU may still compute the update: then metrics are numbers there.

        What is asked of the GPU next comes after it.
        """
        try:
            return self._launched(ticket, keep)
        except (MemoryError, RuntimeError) as error:
            if not _is_memory(error):
                raise
            group = "outer" if ticket.work == "update" else "evaluation"
            raise InputError(
                f"the memory of the {self._device.type} is not enough for a ticket",
                remedy=f"set {group}.tasks_per_ticket lower, or algorithm.recompute or "
                "algorithm.first_order to true if the algorithm has them",
            ) from error

    def _launched(self, ticket: Ticket, keep: bool) -> Update | Scores:
        setting = self._prepared.settings[ticket.purpose]
        problem = self._problem(ticket.purpose)
        tasks = self._drawn.pop(ticket, None) or staged(self._sample(ticket), self._device)
        context = Context(ticket, generator_for(setting.seed, ticket, "adaptation"))
        if ticket.work != "update":
            problem, tasks = disturbed(problem, setting, self._meta, tasks, context)
            scores = evaluate.scores(problem, setting.algorithm, self._meta, tasks, context)
            if setting.ensemble is not None:
                members = ensembles.predictions(setting, problem, self._meta, tasks, context)
                scores = scores._replace(members=members)
            return to_device(scores, torch.device("cpu"))
        update = partial(setting.algorithm.update, problem)
        step: Step = partial(update, self._meta)
        if self._device.type == "cuda":
            fuse = partial(fused, update, self._meta) if self._compiles else None
            self._replays = self._replays or Replays(step, setting.algorithm, self._device, fuse)
            found = self._replays(tasks, context)
            return self._away(found) if keep else found
        found = step(tasks, context)
        return found._replace(metrics={name: float(v) for name, v in found.metrics.items()})

    def _away(self, update: Update) -> Update:
        """An update in memory where the next replay does not write."""
        direction = self.layout.unflatten(self.layout.flatten(update.direction))
        computed = {n: v for n, v in update.metrics.items() if isinstance(v, Tensor) and v.is_cuda}
        if computed:
            copies = torch.stack([*computed.values()]).unbind()
            computed = dict(zip(computed, copies, strict=True))
        return update._replace(direction=direction, metrics={**update.metrics, **computed})

    def _sample(self, ticket: Ticket) -> Any:
        setting = self._prepared.settings[ticket.purpose]
        if self._device.type == "cuda" and isinstance(setting.family, Resident):
            setting = setting._replace(family=self._resident(setting.family))
        return setting.sample(ticket)

    def _resident(self, family: Resident) -> TaskFamily:
        try:
            return family.resident(self._device)
        except RuntimeError as error:
            if not _is_memory(error):
                raise
            raise InputError(
                "the memory of the GPU is not enough for the data set",
                remedy="import it with smaller images, use fewer workers on this GPU, or set "
                "workers.gpus to 0",
            ) from error

    def _problem(self, purpose: Purpose) -> Problem:
        if purpose not in self._problems:
            self._problems[purpose] = self._prepared.bind(purpose, self._path)
        return self._problems[purpose]


def _is_memory(error: Exception) -> bool:
    """Whether memory was not enough; libraries of a GPU say so in words only."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in ("allocate memory", "out of memory")
    )
