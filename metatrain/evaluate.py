"""Scores of meta-parameters on tasks: pure functions from tickets' measurements to a number with its protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metatrain.core import Algorithm, Context, Meta, Norm, Params, Problem, Scores, chunks


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over tasks with half the width of its 95 % interval, and how it was measured."""

    metric: str
    mean: float
    ci95: float  # 1.96 * standard deviation / sqrt(tasks)
    tasks: int
    norm: Norm  # whose statistics normalised query examples
    protocol: str
    steps: list[int]  # inner steps; 0 is before adaptation
    curve: list[float]  # mean after each of `steps`
    curve_ci95: list[float]
    baselines: dict[str, float]  # mean metric of methods that learn nothing, on the same tasks

    def line(self) -> str:
        """The closing line of a command, for machines and people."""
        if self.metric == "accuracy":
            value, width = f"{100 * self.mean:.2f}%", f"{100 * self.ci95:.2f}"
        else:
            value, width = f"{self.mean:.4f}", f"{self.ci95:.4f}"
        return f'result: {self.metric}={value} ci95={width} tasks={self.tasks} protocol="{self.protocol}"'


def scores(problem: Problem, algorithm: Algorithm, meta: Meta, tasks: Any, context: Context) -> Scores:
    """Adapt to each task and measure it on its query set on the way: at steps 0 to 10, each tenth one, and the last."""
    parts = [_curves(problem, algorithm, meta, chunk, context) for chunk in chunks(problem, tasks)]
    steps, curves = parts[0]
    whole = {name: torch.cat([part[name] for _, part in parts]) for name in curves}
    return Scores(steps, whole, problem.baselines(tasks), tuple(problem.norm))


def _curves(
    problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
) -> tuple[list[int], dict[str, Tensor]]:
    """The inner steps that are measured, and each metric [T, len(steps)]."""
    steps: list[int] = []
    found: list[dict[str, Tensor]] = []

    def measure(step: int, params: Params) -> None:
        with torch.no_grad():
            steps.append(step)
            found.append(problem.query(params, task, context))

    step, params = 0, meta.model
    for step, params in enumerate(algorithm.adapt(problem, meta, task, context)):
        if step <= 10 or step % 10 == 0:
            measure(step, params)
    if steps[-1] != step:
        measure(step, params)
    return steps, {name: torch.stack([f[name] for f in found], dim=1) for name in found[0]}


def summarise(parts: Sequence[Scores], metric: str, norm: Norm, protocol: str) -> Score:
    """One score from the measurements of all tickets, in ticket order."""
    curve = torch.cat([part.curves[metric] for part in parts]).double()  # [tasks, steps]
    tasks = len(curve)
    mean = curve.mean(0).tolist()
    ci95 = (1.96 * curve.std(0) / math.sqrt(tasks)).tolist() if tasks > 1 else [math.nan] * len(mean)
    return Score(
        metric=metric.partition("[")[0],
        mean=mean[-1],
        ci95=ci95[-1],
        tasks=tasks,
        norm=norm,
        protocol=protocol,
        steps=parts[0].steps,
        curve=mean,
        curve_ci95=ci95,
        baselines={
            name: float(torch.cat([part.baselines[name] for part in parts]).mean()) for name in parts[0].baselines
        },
    )
