"""Scores of meta-parameters on tasks: from tickets' measurements to a number with its protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from metatrain.core import Algorithm, Context, Meta, Norm, Params, Problem, Scores, chunks
from metatrain.measures import Measure
from metatrain.metrics import Metric

FAR = 10  # times the distance of the quartiles: so far from them a mean is that of a few tasks
ByNorm = dict[Norm, dict[str, Tensor]]
ROUNDING = 1e-6  # of a mean: what float32 leaves of equal scores is no difference
SHOWN = (0, 1, 3, 5, 10)  # inner steps that a table of a score shows, besides the last one


@dataclass(frozen=True, kw_only=True)
class Score:
    """A mean over tasks with half the width of its 95 % interval, and how it was measured.

    A task diverged if the last inner step leaves it with a loss or a metric that is not finite. All
    numbers but `diverged` are those of the tasks that did not; of tasks that all diverged they are
    nan. The same holds for each step of the curves.
    """

    metric: Metric
    mean: float
    ci95: float  # 1.96 * standard deviation / sqrt(tasks that did not diverge)
    tasks: int
    diverged: int
    median: float
    quartiles: tuple[float, float]
    evaluation: str = ""  # its name, if it is one of the recipe's further evaluations
    norm: Norm  # whose statistics normalised query examples
    protocol: str
    steps: list[int]  # inner steps; 0 is before adaptation
    curve: list[float]  # mean after each of `steps`
    curve_ci95: list[float]
    curve_diverged: list[int]
    curve_median: list[float]
    curve_quartiles: list[tuple[float, float]]
    baselines: dict[str, float]  # mean metric of other methods, on the same tasks
    # metric less that of each baseline: paired mean, its 95 % half width
    differences: dict[str, tuple[float, float]]
    measures: dict[str, float]  # of all tasks together, such as a calibration error
    details: dict[str, Any] = field(default_factory=dict)  # plain data that they were computed from
    baseline_ci95: dict[str, float] = field(default_factory=dict)  # half widths of the baselines'
    # inner steps and protocol of those baselines that are the network without meta-learning
    baseline_steps: dict[str, int] = field(default_factory=dict)
    baseline_protocols: dict[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether more than half of the tasks did not diverge: the median of all is of these."""
        return 2 * self.diverged < self.tasks

    def record(self) -> dict[str, Any]:
        """The score as result.json has it: `metric` is a name, `better` and `shown` follow last."""
        return asdict(self) | {
            "metric": self.metric.name,
            "better": self.metric.better,
            "shown": self.metric.shown,
        }

    def table_steps(self) -> list[int]:
        """The places in `steps` that a table shows, the result last."""
        *shown, last = range(len(self.steps))
        return [*(i for i in shown if self.steps[i] in SHOWN), last]

    def difference(self, baseline: str) -> str:
        """How the result compares with a baseline on the same tasks.

        Examples: "0.0312 ± 0.0041 better", "no clear difference: 1.20 ± 2.10 points".
        """
        value, width = self.differences[baseline]
        if not math.isfinite(value):
            return ""
        if not abs(value) > max(width, ROUNDING * abs(self.mean)):
            return f"no clear difference: {self.metric.difference(value, width)}"
        better = (value > 0) == (self.metric.better == "max")
        return f"{self.metric.difference(abs(value), width)} {'better' if better else 'worse'}"

    def line(self) -> str:
        """The closing line of a command, for machines and people.

        If tasks diverged, it has the median and the quartiles of the others.
        """
        if not self.diverged:
            width = self.metric.width(self.ci95)
            found = f"{self.metric.text(self.mean)} ci95={width} tasks={self.tasks}"
        else:
            low, high = map(self.metric.text, self.quartiles)
            found = (
                f"{self.metric.text(self.median)} statistic=median quartiles={low}..{high} "
                f"tasks={self.tasks} diverged={self.diverged}"
            )
        name = f"result {self.evaluation}".rstrip()
        return f'{name}: {self.metric.name}={found} protocol="{self.protocol}"'

    def baseline_lines(self) -> list[str]:
        """The closing lines of the baselines that have a protocol.

        The difference is that of the result from the baseline, on the same tasks.
        """
        text, width = self.metric.text, self.metric.width
        return [
            f"baseline {name}: {self.metric.name}={text(self.baselines[name])} "
            f"ci95={width(self.baseline_ci95[name])} tasks={self.tasks} "
            f"difference={width(self.differences[name][0])} "
            f"difference_ci95={width(self.differences[name][1])} "
            f'protocol="{protocol}"'
            for name, protocol in self.baseline_protocols.items()
        ]

    def warning(self) -> str | None:
        """A sentence about tasks that diverged or are about to; None if there are none."""
        low, high = self.quartiles
        text = self.metric.text
        remedy = "lower the inner rate, or the number of inner steps, of the evaluation's algorithm"
        if self.diverged:
            lost = f"{self.diverged} of {self.tasks} tasks diverged in adaptation"
            return f"{lost} and are left out of the result: {remedy}"
        if low < high and max(low - self.mean, self.mean - high) > FAR * (high - low):
            middle = f"median {text(self.median)}, quartiles {text(low)}..{text(high)}"
            return (
                f"a few tasks decide the mean, {text(self.mean)}, as their adaptation is about to "
                f"diverge ({middle}): {remedy}"
            )
        return None


def scores(
    problem: Problem, algorithm: Algorithm, meta: Meta, tasks: Any, context: Context
) -> Scores:
    """Adapt to each task, and measure it on its query set.

    The inner steps 0 to 10, each tenth and the last are measured.
    """
    groups = chunks(problem, tasks)
    parts = [_measured(problem, algorithm, meta, group, context) for group in groups]
    steps, curves, pooled = zip(*parts, strict=True)
    with torch.no_grad():
        baselines = problem.baselines(tasks)
    return Scores(steps[0], _joined(curves), baselines, _joined(pooled))


def _measured(
    problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
) -> tuple[list[int], ByNorm, ByNorm]:
    """The inner steps that are measured, each metric [T, len(steps)], and what is pooled."""
    steps: list[int] = []
    found: dict[Norm, list[dict[str, Tensor]]] = {norm: [] for norm in problem.norm}
    predictions: dict[Norm, Any] = {}

    @torch.no_grad()
    def measure(step: int, params: Params) -> None:
        steps.append(step)
        for norm, measured in found.items():
            predictions[norm] = problem.predict(params, task, context, norm)
            measured.append(without_diverged(problem.judge(predictions[norm], task)))

    step, params = 0, meta.model
    for step, params in enumerate(algorithm.adapt(problem, meta, task, context)):
        if step <= 10 or step % 10 == 0:
            measure(step, params)
    if steps[-1] != step:
        measure(step, params)
    curves: ByNorm = {
        norm: {name: torch.stack([m[name] for m in measured], dim=1) for name in measured[0]}
        for norm, measured in found.items()
    }
    pooled: ByNorm = {
        norm: {name: each.pool(prediction, task) for name, each in problem.measures.items()}
        for norm, prediction in predictions.items()
    }
    return steps, curves, pooled


def _joined(parts: Sequence[ByNorm]) -> ByNorm:
    """The tasks of all chunks, in order."""
    return {
        norm: {name: torch.cat([part[norm][name] for part in parts]) for name in first}
        for norm, first in parts[0].items()
    }


def without_diverged(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Metrics [T], nan for tasks whose loss is not finite: nan predictions have an accuracy."""
    lost = ~found["loss"].isfinite()
    return {name: value.masked_fill(lost, math.nan) for name, value in found.items()}


def summarise(
    parts: Sequence[Scores],
    metric: Metric,
    measures: Mapping[str, Measure],
    norm: Norm,
    protocol: str,
) -> Score:
    """One score from the measurements of all tickets, in ticket order."""
    steps, curve = _curve(parts, metric, norm)
    finite = curve.isfinite()
    kept = finite[:, -1]
    pooled = {
        name: torch.cat([part.pooled[norm][name] for part in parts])[kept] for name in measures
    }
    details = [
        each.detail(pooled[name])
        for name, each in measures.items()
        if each.detail is not None and kept.any()
    ]
    means, widths = zip(*map(_mean, curve.mT), strict=True)
    quantiles = [_quartiles(values) for values in curve.mT]
    baselines = {
        name: torch.cat([part.baselines[name] for part in parts]).double()
        for name in parts[0].baselines
    }
    compared = {name: _of_all(values) for name, values in baselines.items()}
    return Score(
        metric=metric,
        mean=means[-1],
        ci95=widths[-1],
        tasks=len(curve),
        diverged=int((~kept).sum()),
        median=quantiles[-1][1],
        quartiles=(quantiles[-1][0], quantiles[-1][2]),
        norm=norm,
        protocol=protocol,
        steps=steps,
        curve=list(means),
        curve_ci95=list(widths),
        curve_diverged=(~finite).sum(0).tolist(),
        curve_median=[median for _, median, _ in quantiles],
        curve_quartiles=[(low, high) for low, _, high in quantiles],
        baselines={name: mean for name, (mean, _) in compared.items()},
        baseline_ci95={name: width for name, (_, width) in compared.items()},
        differences={name: _mean(curve[:, -1] - values) for name, values in baselines.items()},
        measures={
            name: each.value(pooled[name]) if kept.any() else math.nan
            for name, each in measures.items()
            if each.value is not None
        },
        details={name: found for detail in details for name, found in detail.items()},
    )


def _curve(parts: Sequence[Scores], metric: Metric, norm: Norm) -> tuple[list[int], Tensor]:
    """The inner steps that all tickets measured, and the metric there [tasks, steps].

    A memory has as many steps as a ticket's tasks have support examples. If these are not equally
    many, what all have is the first step and the last one.
    """
    found, steps = [part.curves[norm][metric.name] for part in parts], parts[0].steps
    if any(part.steps != steps for part in parts):
        steps = [0, max(part.steps[-1] for part in parts)]
        found = [curve[:, [0, -1]] for curve in found]
    return steps, torch.cat(found).double()


def _mean(values: Tensor) -> tuple[float, float]:
    """The mean of what is finite, and half the width of its 95 % interval."""
    values = values[values.isfinite()]
    width = 1.96 * float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), width


def _of_all(values: Tensor) -> tuple[float, float]:
    """The same of all values; nan if one is not finite."""
    return _mean(values) if values.isfinite().all() else (math.nan, math.nan)


def _quartiles(values: Tensor) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of what is finite."""
    values = values[values.isfinite()]
    if not len(values):
        return math.nan, math.nan, math.nan
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)
    low, median, high = values.quantile(shares).tolist()
    return low, median, high
