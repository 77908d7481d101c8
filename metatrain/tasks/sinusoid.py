"""Sinusoid regression (Finn et al. 2017, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, Model, Norm, Split, Task
from metatrain.measures import NUMBERS
from metatrain.metrics import MSE, Metric, mean_squared_error
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Sinusoid(Generated):
    """y = A sin(x - p), amplitude A ~ U[0.1, 5], phase p ~ U[0, pi], x ~ U[-5, 5].

    All splits draw from the same distribution of functions; the ticket keeps their tasks apart.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = MSE

    name: Literal["sinusoid"] = "sinusoid"
    shots: int = bounded(10, least=1, most=EXAMPLES)
    """Support points of a task."""
    queries: int = bounded(10, least=1, most=EXAMPLES)
    """Query points of a task."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """support [T, shots, 1], query [T, queries, 1], float32."""
        amplitude = torch.empty(count, 1, 1).uniform_(0.1, 5.0, generator=generator)
        phase = torch.empty(count, 1, 1).uniform_(0.0, math.pi, generator=generator)
        x = torch.empty(count, self.shots + self.queries, 1).uniform_(
            -5.0, 5.0, generator=generator
        )
        y = amplitude * torch.sin(x - phase)
        return Task(x[:, : self.shots], y[:, : self.shots], x[:, self.shots :], y[:, self.shots :])

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=(1,),
            outputs=1,
            loss=mean_squared_error,
            metrics={"mse": mean_squared_error},
            norm=norm,
            path=path,
            measures=NUMBERS,
        )

    def picture(self, problem: Supervised, adapt: Adapt, context: Context) -> Figure:
        """Three sinusoids and the curves that are fitted to them, inner step by inner step."""
        from metatrain import figures

        task = replace(self, queries=400).sample(context.generator, 3, context.ticket.split)
        order = task.query_x.argsort(1)
        task = task._replace(
            query_x=task.query_x.gather(1, order), query_y=task.query_y.gather(1, order)
        )
        adapted = adapt(task)
        shown = [adapted[0], *adapted[1:-1][:1], adapted[-1]]
        return figures.fits(
            task,
            [(step, problem.predict(params, task, context)) for step, params in shown],
            f"Sinusoids fitted to {self.shots} points",
        )

    def describe(self) -> str:
        return f"sinusoid {self.shots}-shot {self.queries} query points"
