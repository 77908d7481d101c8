"""The worker: a ticket in, an update or scores out. The same in the driver's process and in a Ray actor."""

from __future__ import annotations

import time
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metatrain import evaluate
from metatrain.core import (
    Context,
    InputError,
    Meta,
    Path,
    Problem,
    Scores,
    Split,
    Ticket,
    Update,
    generator_for,
    to_device,
)
from metatrain.recipe import Recipe, Setting


class Spent(NamedTuple):
    """What a ticket cost its worker. Where several share a core, it passes more seconds than its processor works."""

    wall_s: float
    cpu_s: float


ALIGNMENT = 16  # float32 values: 64 bytes, so that a parameter lies alike in every process


class Plan(NamedTuple):
    """How tickets are computed: decided once by the driver, and part of a checkpoint."""

    path: Path
    device: str
    threads: int


class Layout:
    """The one flat float32 array in which meta-parameters travel."""

    def __init__(self, meta: Meta) -> None:
        self._slots: list[tuple[int, str, int, torch.Size]] = []  # (part of Meta, name, offset, shape)
        self.size = 0
        for part, params in enumerate(meta):
            for name, p in params.items():
                self._slots.append((part, name, self.size, p.shape))
                self.size += -(-p.numel() // ALIGNMENT) * ALIGNMENT

    def flatten(self, meta: Meta) -> Tensor:
        """A new [size] array on the CPU."""
        flat = torch.zeros(self.size)
        for (part, name, _, _), view in zip(self._slots, self._views(flat), strict=True):
            view.copy_(meta[part][name])
        return flat

    def unflatten(self, flat: Tensor) -> Meta:
        """Views of a [size] array."""
        meta = Meta({}, {}, {})
        for (part, name, _, _), view in zip(self._slots, self._views(flat), strict=True):
            meta[part][name] = view
        return meta

    def _views(self, flat: Tensor) -> list[Tensor]:
        return [flat[start : start + shape.numel()].view(shape) for _, _, start, shape in self._slots]


def initial_meta(recipe: Recipe, split: Split = "train", work: Literal["update", "score"] = "update") -> Meta:
    """The meta-parameters that a run starts from; those that a split's scores would start from have their shapes."""
    generator = generator_for(recipe.seed, Ticket("update", "train", 0, 0), "init")
    setting = recipe.setting(split, work)
    return setting.algorithm.init(setting.family.bind(recipe.model, setting.norm, "reference"), generator)


def choose_plan(recipe: Recipe, gpus: float, threads: int) -> tuple[Plan, str]:
    """The compute path for a recipe, and why."""
    if gpus > 0:
        return Plan("batched", "cuda", threads), "a GPU computes a ticket's tasks together"
    if any(p.dim() > 2 for p in initial_meta(recipe).model.values()):
        return Plan("reference", "cpu", threads), "a CPU computes convolutions faster one task after the other"
    return Plan("batched", "cpu", threads), "a CPU computes a small net faster for a ticket's tasks together"


class Worker:
    """Computes tickets on the newest parameters that were loaded."""

    def __init__(self, recipe: Recipe, plan: Plan) -> None:
        if plan.device == "cuda" and not torch.cuda.is_available():
            raise InputError("workers.gpus asks for a GPU, but torch sees none here: set workers.gpus to 0")
        torch.set_num_threads(plan.threads)
        if plan.device == "cuda":  # TF32 makes second-order gradients wrong by tens of percent
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self._recipe = recipe
        self._device = torch.device(plan.device)
        self._path: Path = plan.path
        self.layout = Layout(initial_meta(recipe))
        self._buffer = torch.zeros(self.layout.size, device=self._device)
        self._meta = self.layout.unflatten(self._buffer)
        self.version = -1
        self._bound: dict[tuple[str, str], tuple[Setting, Problem]] = {}
        self._drawn: dict[Ticket, Any] = {}

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
        """The ticket's update or scores (tensors on the CPU), and what it cost."""
        started, cpu_s = time.perf_counter(), time.process_time()
        setting, problem = self._bind(ticket)
        tasks = to_device(self._drawn.pop(ticket, None) or self._sample(ticket), self._device)
        context = Context(ticket, generator_for(setting.seed, ticket, "adaptation"))
        result: Update | Scores
        if ticket.work == "update":
            update = setting.algorithm.update(problem, self._meta, tasks, context)
            result = update._replace(direction=Meta(*to_device(update.direction, torch.device("cpu"))))
        else:
            found = evaluate.scores(problem, setting.algorithm, self._meta, tasks, context)
            curves = {name: values.cpu() for name, values in found.curves.items()}
            baselines = {name: values.cpu() for name, values in found.baselines.items()}
            result = found._replace(curves=curves, baselines=baselines)
        return result, Spent(time.perf_counter() - started, time.process_time() - cpu_s)

    def _sample(self, ticket: Ticket) -> Any:
        setting, _ = self._bind(ticket)
        first = ticket.part * setting.tasks_per_ticket
        count = min(setting.tasks_per_ticket, setting.tasks - first)
        return setting.family.sample(generator_for(setting.seed, ticket, "tasks"), count, ticket.split)

    def _bind(self, ticket: Ticket) -> tuple[Setting, Problem]:
        key = (ticket.work, ticket.split)
        if key not in self._bound:
            setting = self._recipe.setting(ticket.split, ticket.work)
            self._bound[key] = setting, setting.family.bind(self._recipe.model, setting.norm, self._path)
        return self._bound[key]
