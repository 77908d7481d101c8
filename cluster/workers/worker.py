"""The worker: a ticket in, an update or scores out. The same in the driver's process and in a Ray
actor.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster.workers.cuda import Replayed, Step, exact_products
from cluster.workers.usage import Usage
from metatrain import evaluate
from metatrain.core import (
    Context,
    InputError,
    Meta,
    Path,
    Problem,
    Scores,
    Ticket,
    Update,
    Work,
    count,
    generator_for,
    to_device,
)
from metatrain.ops.build import Unavailable
from metatrain.recipe import Recipe, Setting
from metatrain.start import check_sample, initial_meta


class Spent(NamedTuple):
    """What a ticket cost its worker. Where several share a core, it passes more seconds than its
    processor works.
    """

    wall_s: float
    cpu_s: float
    usage: Usage | None = None  # of the process that is the worker alone, now and then


ALIGNMENT = 16  # float32 values: 64 bytes, so that a parameter lies alike in every process


class Plan(NamedTuple):
    """How tickets are computed: decided once by the driver, and part of a checkpoint."""

    path: Path
    device: str
    threads: int


class Layout:
    """The one flat float32 array in which meta-parameters travel, and directions, which have no
    frozen parameters.

    On the fused path the weights of convolutions lie channels last, as its kernels read them.
    """

    def __init__(self, meta: Meta, path: Path = "reference") -> None:
        self._last = path == "fused"
        self._slots: list[
            tuple[int, str, int, torch.Size]
        ] = []  # (part of Meta, name, offset, shape)
        self.size = 0
        for part, params in enumerate(meta):
            for name, p in params.items():
                self._slots.append((part, name, self.size, p.shape))
                self.size += -(-p.numel() // ALIGNMENT) * ALIGNMENT

    def flatten(self, meta: Meta) -> Tensor:
        """A new array, where the parameters are: [size], or the beginning of it for a direction."""
        part, name, _, _ = self._slots[0]
        size = next(
            (start for part, name, start, _ in self._slots if name not in meta[part]), self.size
        )
        flat = torch.zeros(size, device=meta[part][name].device)
        for part, name, view in self._views(flat):
            view.copy_(meta[part][name])
        return flat

    def unflatten(self, flat: Tensor) -> Meta:
        """Views of such an array."""
        meta = Meta({}, {}, {}, {})
        for part, name, view in self._views(flat):
            meta[part][name] = view
        return meta

    def _views(self, flat: Tensor) -> Iterator[tuple[int, str, Tensor]]:
        for part, name, start, shape in self._slots:
            if start + shape.numel() <= len(flat):
                yield part, name, self._view(flat[start : start + shape.numel()], shape)

    def _view(self, part: Tensor, shape: torch.Size) -> Tensor:
        if not (self._last and len(shape) == 4):
            return part.view(shape)
        wide, narrow, height, width = shape
        return part.view(wide, height, width, narrow).permute(0, 3, 1, 2)


def choose_plan(recipe: Recipe, gpus: float, threads: int) -> tuple[Plan, str]:
    """The compute path for a recipe, and why."""
    device = "cuda" if gpus > 0 else "cpu"
    start = initial_meta(recipe)
    if gpus > 0 or all(p.dim() <= 2 for p in (start.model | start.frozen).values()):
        try:
            check_sample(recipe, "update", "batched")
        except InputError as reason:  # on the reference path it was not refused
            why = (
                "one task after the other: this network cannot be computed for several tasks "
                f"at once ({reason})"
            )
            return Plan("reference", device, threads), why
        together = "a GPU computes" if gpus > 0 else "a CPU computes a small net faster for"
        return Plan("batched", device, threads), f"{together} a ticket's tasks together"
    setting = recipe.setting("update")
    try:
        setting.family.bind(recipe.model, setting.norm, "fused")
    except Unavailable as reason:
        slower = (
            "one task after the other; the fused kernels, which take about half the time, "
            f"cannot be used: {reason}"
        )
        return Plan("reference", "cpu", threads), slower
    return Plan(
        "fused", "cpu", threads
    ), "a CPU computes convolutions faster one task after the other, fused"


def device_of(plan: Plan) -> torch.device:
    """Where it computes; InputError where that is not here."""
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "workers.gpus asks for a GPU, but torch sees none here", remedy="set workers.gpus to 0"
        )
    return torch.device(plan.device)


def keep_freed_memory() -> None:
    """Give back what is free at the heap's end from a gigabyte on: to fetch pages anew can take a
    tenth of the time.

    Where the environment says something of glibc's allocator, that holds.
    """
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        glibc(
            "mallopt", -3, 32 * 2**20
        )  # M_MMAP_THRESHOLD, above which a block is no part of the heap
        glibc("mallopt", -1, 2**30)  # M_TRIM_THRESHOLD


def glibc(function: str, *numbers: int) -> None:
    """Call a function of glibc's allocator; elsewhere nothing happens."""
    found = getattr(ctypes.CDLL(None), function, None)
    if found is not None:
        found(*numbers)


class Worker:
    """Computes tickets on the newest parameters that were loaded."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        self._device = device_of(plan)
        torch.set_num_threads(plan.threads)
        if self._device.type == "cuda":
            exact_products()
        keep_freed_memory()
        self._recipe = recipe
        self._path: Path = plan.path
        self.layout = Layout(initial_meta(recipe), plan.path)
        self._buffer = torch.zeros(self.layout.size, device=self._device)
        self._meta = self.layout.unflatten(self._buffer)
        self.version = -1
        self._bound: dict[Work, tuple[Setting, Problem]] = {}
        self._drawn: dict[Ticket, Any] = {}
        self._steps: dict[int, Step] = {}  # by the number of tasks
        try:
            self._bind("update")
        except Unavailable as reason:
            raise InputError(
                f"the driver chose the compute path {plan.path!r}, which this machine has not",
                remedy=f"{reason}",
            ) from reason

    def load(self, version: int, flat: Tensor) -> None:
        """Copy the parameters of a version; `flat` may be memory that other processes read."""
        if version != self.version:
            self._buffer.copy_(flat)
            self.version = version

    def draw(self, ticket: Ticket) -> None:
        """Draw a ticket's tasks before they are asked for."""
        self._drawn = {t: tasks for t, tasks in self._drawn.items() if t.step >= ticket.step - 1}
        self._drawn[ticket] = self._sample(ticket)

    def compute(self, ticket: Ticket) -> tuple[Update | Scores, Spent]:
        """The ticket's update, on the worker's device, or its scores, and what it cost.

        Raises InputError where memory is not enough.
        """
        try:
            return self._compute(ticket)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(
                error, MemoryError | torch.OutOfMemoryError
            ) and "allocate memory" not in str(error):
                raise
            group = "outer" if ticket.work == "update" else "evaluation"
            raise InputError(
                f"the memory of the {self._device.type} is not enough for a ticket",
                remedy=(
                    "set "
                    f"{group}.tasks_per_ticket "
                    "lower, or algorithm.recompute or algorithm.first_order to true where the "
                    "algorithm has them"
                ),
            ) from error

    def _compute(self, ticket: Ticket) -> tuple[Update | Scores, Spent]:
        started, cpu_s = time.perf_counter(), time.process_time()
        setting, problem = self._bind(ticket.work)
        tasks = to_device(self._drawn.pop(ticket, None) or self._sample(ticket), self._device)
        context = Context(ticket, generator_for(setting.seed, ticket, "adaptation"))
        result: Update | Scores
        if ticket.work == "update":
            step: Step = partial(setting.algorithm.update, problem, self._meta)
            if self._device.type == "cuda":
                step = self._steps.setdefault(count(tasks), Replayed(step))
            update = step(tasks, context)
            if self._device.type == "cuda":  # away from where the next replay writes
                update = update._replace(
                    direction=self.layout.unflatten(self.layout.flatten(update.direction))
                )
            result = update._replace(
                metrics={name: float(value) for name, value in update.metrics.items()}
            )
        else:
            found = evaluate.scores(problem, setting.algorithm, self._meta, tasks, context)
            curves = {name: values.cpu() for name, values in found.curves.items()}
            baselines = {name: values.cpu() for name, values in found.baselines.items()}
            result = found._replace(curves=curves, baselines=baselines)
        return result, Spent(time.perf_counter() - started, time.process_time() - cpu_s)

    def _sample(self, ticket: Ticket) -> Any:
        setting, _ = self._bind(ticket.work)
        first = ticket.part * setting.tasks_per_ticket
        count = min(setting.tasks_per_ticket, setting.tasks - first)
        family = setting.family
        if self._device.type == "cuda" and hasattr(family, "resident"):
            family = family.resident(self._device)
        return family.sample(generator_for(setting.seed, ticket, "tasks"), count, ticket.split)

    def _bind(self, work: Work) -> tuple[Setting, Problem]:
        if work not in self._bound:
            setting = self._recipe.setting(work)
            self._bound[work] = (
                setting,
                setting.family.bind(self._recipe.model, setting.norm, self._path),
            )
        return self._bound[work]
