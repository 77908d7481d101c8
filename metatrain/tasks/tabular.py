"""Tables that are made: rows of numbers, and a class or a number of each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metatrain.bounds import bounded
from metatrain.core import ComputePath, Model, Norm, Split, Task
from metatrain.measures import ECE, of_points
from metatrain.metrics import ACCURACY, NLL, Metric, accuracy, cross_entropy
from metatrain.problems.bar_distribution import Bars
from metatrain.problems.supervised import Supervised
from metatrain.tasks.made_tables import MadeTables, integer

FARTHEST = 10  # from the support rows' mean, in their deviations


@dataclass(frozen=True, kw_only=True)
class Tabular(MadeTables):
    """Made tables whose target, cut at quantiles, is a class; a ticket's have as many classes."""

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = ACCURACY

    name: Literal["tabular"] = "tabular"
    classes: int = bounded(4, least=2, most=10)
    """Most classes of a table; half of the tickets have two, the others more."""

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """x [T, N, columns] and y [T, N] of int64."""
        columns, shots = self.sizes(generator)
        few = bool(torch.rand((), generator=generator) < 0.5)
        classes = 2 if few else integer(generator, min(3, self.classes), self.classes)
        x, target = self.tables(generator, count, shots + self.queries, columns)
        y = cut(generator, target, classes)
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=(self.columns[1],),
            outputs=self.classes,
            loss=cross_entropy,
            metrics={"accuracy": accuracy},
            norm=norm,
            path=path,
            classes=True,
            lacks_classes=self.classes > 2,
            baselines={"most_frequent": most_frequent, "nearest_neighbour": nearest_neighbour},
            measures={"ece": ECE},
        )


@dataclass(frozen=True, kw_only=True)
class TabularRegression(MadeTables):
    """Made tables whose target is a number, standardised by the support rows.

    A network predicts the probabilities of `buckets`, and learns by the density that they give the
    targets (arXiv 2112.10510, section 4). A target further than 10 deviations from the support
    rows' mean counts as that far. The baseline `normal` is the density of N(0, 1), which the
    support rows' mean and deviation say.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = NLL

    name: Literal["tabular_regression"] = "tabular_regression"
    buckets: int = bounded(100, least=4, most=10_000)
    """Buckets of the density; each has the same mass of N(0, 1)."""

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """x [T, N, columns] and y [T, N, 1], float32."""
        columns, shots = self.sizes(generator)
        x, target = self.tables(generator, count, shots + self.queries, columns)
        y = by_support(target, shots)[..., None]
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def bars(self) -> Bars:
        """How outputs are densities."""
        return Bars(self.buckets, 1.0)

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        bars = self.bars()

        return Supervised(
            model=model,
            inputs=(self.columns[1],),
            outputs=self.buckets,
            feedback=1,
            loss=bars.nll,
            metrics={"nll": bars.nll},
            norm=norm,
            path=path,
            baselines={"normal": normal},
            measures=of_points(bars.mean),
            point=bars.mean,
        )


def cut(generator: torch.Generator, target: Tensor, classes: int) -> Tensor:
    """[T, N] classes: the target cut at quantiles in 0.15..0.85, numbered in random order."""
    tables, rows = target.shape
    shares = 0.15 + 0.7 * torch.rand(tables, classes - 1, generator=generator)
    borders = target.sort(1).values.gather(1, (shares * (rows - 1)).long())
    ordered = (target[..., None] > borders[:, None]).sum(-1)
    return torch.rand(tables, classes, generator=generator).argsort(1).gather(1, ordered)


def by_support(target: Tensor, shots: int) -> Tensor:
    """Targets [T, N] with mean 0 and deviation 1 in the first rows; 0 if those are constant."""
    deviation, mean = torch.std_mean(target[:, :shots], 1, keepdim=True, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, 1.0)
    return ((target - mean) / scale).clamp(-FARTHEST, FARTHEST)


def normal(task: Task) -> Tensor:
    """[T] mean of -log density of N(0, 1) at the targets."""
    distance = task.query_y.double().square().flatten(1).mean(1)
    return (distance + math.log(2 * math.pi)) / 2


def most_frequent(task: Task) -> Tensor:
    """[T] accuracy of the support set's most frequent class."""
    return (task.query_y == task.support_y.mode(1, keepdim=True).values).double().mean(1)


def nearest_neighbour(task: Task) -> Tensor:
    """[T] accuracy of the class of the nearest support row, in columns standardised by those."""
    deviation = task.support_x.std(1, keepdim=True, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, torch.inf)
    nearest = torch.cdist(task.query_x / scale, task.support_x / scale).argmin(-1)
    return (task.support_y.gather(1, nearest) == task.query_y).double().mean(1)
