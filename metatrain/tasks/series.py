"""Forecasting of short time series: damped oscillations with noise, each by a law of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, Model, Norm, Split, Task
from metatrain.measures import NUMBERS
from metatrain.metrics import MSE, Metric, mean_squared_error
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE = 0.1  # standard deviation: no forecast of the next value has a smaller MSE than its square


def persistence(task: Task) -> Tensor:
    """[T] MSE of forecasting the last value."""
    return mean_squared_error(task.query_x[..., -1:], task.query_y)


def least_squares(task: Task) -> Tensor:
    """[T] MSE of the linear forecast that is fitted to the support set."""
    gram = task.support_x.mT @ task.support_x + 1e-3 * torch.eye(2, device=task.support_x.device)
    return mean_squared_error(
        task.query_x @ torch.linalg.solve(gram, task.support_x.mT @ task.support_y), task.query_y
    )


@dataclass(frozen=True, kw_only=True)
class Series(Generated):
    """Forecast y_t from (y_{t-2}, y_{t-1}) where y_t = 2 r cos(w) y_{t-1} - r^2 y_{t-2} + noise.

    Each series has its own damping r ~ U[0.8, 1] and period 2 pi / w ~ U[4, 20]; the noise is N(0,
    0.1^2) and the first two values are N(0, 1). The support set is the series' first `shots`
    forecasts in order, the query set the next `queries`. All splits draw from the same
    distribution; the ticket keeps their tasks apart.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = MSE

    name: Literal["series"] = "series"
    shots: int = bounded(10, least=1, most=EXAMPLES)
    """Forecasts of the support set."""
    queries: int = bounded(10, least=1, most=EXAMPLES)
    """Forecasts of the query set, which follow those of the support set."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """x [T, N, 2], y [T, N, 1], float32."""
        damping = torch.empty(count).uniform_(0.8, 1.0, generator=generator)
        frequency = 2 * math.pi / torch.empty(count).uniform_(4.0, 20.0, generator=generator)
        first, second = 2 * damping * frequency.cos(), -damping.square()
        total = 2 + self.shots + self.queries
        y = torch.randn(count, total, generator=generator)
        y[:, 2:] *= NOISE
        for t in range(2, total):
            y[:, t] += first * y[:, t - 1] + second * y[:, t - 2]
        x, y = y.unfold(1, 2, 1)[:, :-1], y[:, 2:, None]
        return Task(x[:, : self.shots], y[:, : self.shots], x[:, self.shots :], y[:, self.shots :])

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=(2,),
            outputs=1,
            loss=mean_squared_error,
            metrics={"mse": mean_squared_error},
            norm=norm,
            path=path,
            ordered=True,
            baselines={"persistence": persistence, "least_squares": least_squares},
            measures=NUMBERS,
        )

    def picture(self, problem: Supervised, adapt: Adapt, context: Context) -> Figure:
        """Three series and their one-step forecasts, before and after adaptation."""
        from metatrain import figures

        task = self.sample(context.generator, 3, context.ticket.split)
        adapted = adapt(task)
        return figures.forecasts(
            task,
            [
                (step, problem.predict(params, task, context))
                for step, params in (adapted[0], adapted[-1])
            ],
            f"Series forecast one step ahead, from {self.shots} steps of each",
        )

    def describe(self) -> str:
        return f"series {self.shots}-shot {self.queries} forecasts"
