"""Linear functions with noise, whose best predictor is known (Garg et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import ComputePath, Model, Norm, Split, Task, Units
from metatrain.measures import NUMBERS, Measure, relative_excess
from metatrain.metrics import MSE, Metric, mean_squared_error
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated, check_shots, drawn_shots

NOISELESS = 1e-9  # variance of a noise that is lost in double precision


@dataclass(frozen=True, kw_only=True)
class LinearRegression(Generated):
    """y = w . x + e with w ~ N(0, I), x ~ N(0, I) and e ~ N(0, noise_variance).

    Ridge regression with noise_variance as its penalty is the posterior mean, so no predictor has a
    smaller expected squared error (arXiv 2208.01066; 2306.15063, section 2). The measure `excess`
    is what a squared error is above that of ridge, as a share of it. All splits draw from the same
    distribution; the ticket keeps their tasks apart.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = MSE

    name: Literal["linear_regression"] = "linear_regression"
    inputs: int = bounded(8, least=1, most=1000)
    """Numbers of x."""
    shots: tuple[int, int] = bounded((0, 15), least=0, most=EXAMPLES)
    """Least and most support points of a task; those of a ticket have as many."""
    queries: int = bounded(16, least=1, most=EXAMPLES)
    """Query points of a task."""
    noise_variance: float = bounded(0.25, above=0, most=10**6)
    """Variance of the noise."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_shots(self.shots)

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """support [T, S, inputs], query [T, queries, inputs], float32."""
        shots = drawn_shots(generator, self.shots)
        w = torch.randn(count, self.inputs, 1, generator=generator)
        x = torch.randn(count, shots + self.queries, self.inputs, generator=generator)
        noise = torch.randn(count, shots + self.queries, 1, generator=generator)
        y = x @ w + self.noise_variance**0.5 * noise
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def ridge(self, task: Task) -> Tensor:
        """[T] MSE of the posterior mean of w."""
        if self.noise_variance < NOISELESS:
            return least_squares(task)  # its limit
        x, y = task.support_x.double(), task.support_y.double()
        penalty = self.noise_variance * torch.eye(self.inputs, dtype=x.dtype, device=x.device)
        w = torch.linalg.solve(x.mT @ x + penalty, x.mT @ y)
        return mean_squared_error(task.query_x.double() @ w, task.query_y)

    def units(self, columns: int) -> Units:
        return Units(target_deviation=(columns + self.noise_variance) ** 0.5)

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        def errors(prediction: Tensor, task: Task) -> Tensor:
            own = mean_squared_error(prediction, task.query_y)
            return torch.stack([own.double(), self.ridge(task)], -1)

        return Supervised(
            model=model,
            inputs=(self.inputs,),
            outputs=1,
            loss=mean_squared_error,
            metrics={"mse": mean_squared_error},
            norm=norm,
            path=path,
            baselines={"ridge": self.ridge, "least_squares": least_squares},
            measures=NUMBERS | {"excess": Measure(errors, relative_excess)},
        )


def least_squares(task: Task) -> Tensor:
    """[T] MSE of the smallest w with the least squared error on the support set."""
    w = torch.linalg.pinv(task.support_x.double()) @ task.support_y.double()
    return mean_squared_error(task.query_x.double() @ w, task.query_y)
