"""A family, models and an algorithm of one's own, for `recipes/own.yaml` and `own_resnet.yaml`:
copy and change them.

Each is a frozen dataclass with a `name`; `metatrain/core/contracts.py` says what it must do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from metatrain import figures
from metatrain.algorithms import inner_loop
from metatrain.core import (
    Adapt,
    ComputePath,
    Context,
    Meta,
    Model,
    Norm,
    Params,
    Problem,
    Split,
    Task,
    Update,
)
from metatrain.metrics import MSE, Metric, mean_squared_error
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated


@dataclass(frozen=True, kw_only=True)
class Parabolas(Generated):
    """y = a (x - b)^2, a ~ U[-1, 1], b ~ U[-1, 1], x ~ U[-2, 2]."""

    metric: ClassVar[Metric] = MSE

    name: str = "recipes.own:Parabolas"
    shots: int = 5
    queries: int = 10

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        a, b = (2 * torch.rand(2, count, 1, 1, generator=generator) - 1).unbind()
        x = 4 * torch.rand(count, self.shots + self.queries, 1, generator=generator) - 2
        y = a * (x - b).square()
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
        )

    def picture(self, problem: Supervised, adapt: Adapt, context: Context) -> Figure:
        task = self.sample(context.generator, 3, context.ticket.split)
        order = task.query_x.argsort(1)
        task = task._replace(
            query_x=task.query_x.gather(1, order), query_y=task.query_y.gather(1, order)
        )
        steps = adapt(task)
        shown = [
            (step, problem.predict(params, task, context)) for step, params in (steps[0], steps[-1])
        ]
        return figures.fits(task, shown, f"Parabolas fitted to {self.shots} points")


class Sines(nn.Module):
    """A layer of sines as the body, and a linear head."""

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sin(self.body(x)))


@dataclass(frozen=True, kw_only=True)
class SineNet:
    """A network with one hidden layer of sines."""

    name: str = "recipes.own:SineNet"
    width: int = 40

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        return Sines(inputs[0], outputs, self.width)


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, then max-pool (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(narrow, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()
        )
        self.second = nn.Sequential(
            nn.Conv2d(wide, wide, 3, padding=1, bias=False), nn.BatchNorm2d(wide)
        )
        self.shortcut = nn.Sequential(nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.second(self.first(x)) + self.shortcut(x)), 2)


class Residuals(nn.Module):
    """Residual blocks as the body, and a linear head on the mean of their last images."""

    def __init__(self, channels: int, outputs: int, filters: Sequence[int]) -> None:
        super().__init__()
        blocks = [Residual(*pair) for pair in pairwise([channels, *filters])]
        self.body = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(filters[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True, kw_only=True)
class ResNet:
    """A residual network with torch's own batch normalisation; the recipe's `norm` rules it."""

    name: str = "recipes.own:ResNet"
    filters: tuple[int, ...] = (64, 128, 256)
    weights: str | None = None
    """Initial weights: a safetensors file, or the folder of a run."""

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        return Residuals(inputs[0], outputs, self.filters)


@dataclass(frozen=True, kw_only=True)
class SignMAML:
    """First-order MAML that adapts by the gradient's sign (Fan et al. 2021, arXiv 2109.07497)."""

    name: str = "recipes.own:SignMAML"
    inner_lr: float
    inner_steps: int = 1

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        return Meta(problem.init(generator), {}, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        phi = inner_loop.start(meta, task)
        yield phi
        for _ in range(self.inner_steps):
            leaves = {name: phi[name].detach().requires_grad_() for name in meta.model}
            with torch.enable_grad():
                loss = problem.support_loss(phi | leaves, task, context).sum()
            gradient = torch.autograd.grad(loss, list(leaves.values()))
            # The sign has no derivative: phi depends on the initialisation as if it were constant.
            phi = phi | {
                name: phi[name] - self.inner_lr * g.sign()
                for name, g in zip(leaves, gradient, strict=True)
            }
            yield phi

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return inner_loop.mean_gradient(self.adapt, problem, meta, tasks, context)
