"""Made tables, whose columns and classes follow from causes (Hollmann et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import ComputePath, InputError, Model, Norm, Split, Task, Units
from metatrain.measures import ECE
from metatrain.metrics import ACCURACY, Metric, accuracy, cross_entropy
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated, check_shots, drawn_shots

ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.tanh,
    torch.relu,
    torch.sin,
    torch.abs,
    torch.sign,
    lambda x: x,
    lambda x: torch.where(x > 0, x, 0.1 * x),
    lambda x: x.square() / (1 + x.abs()),
)
RULES = 6  # of a tree-like table
SPARE = 3  # tables of which one more is drawn, as some are left out
CLOSENESS = 20  # of rows that predict a row, in mean distances


@dataclass(frozen=True, kw_only=True)
class Tabular(Generated):
    """Each task is a table of its own: rows of numbers, and a class of each row.

    A structural causal model makes the table, which is a random network with noise (arXiv
    2207.01848, appendix C.1): columns are some of its nodes, and another node, cut at quantiles, is
    the class. In a share `trees` of the tables the class follows from rules instead, sums of
    products of thresholds of columns. Tables whose class nothing seems to predict are left out. The
    tables of a ticket have as many columns, rows and classes. Absent columns are 0. All splits draw
    from the same distribution; the ticket keeps their tasks apart.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = ACCURACY

    name: Literal["tabular"] = "tabular"
    columns: tuple[int, int] = bounded((2, 30), least=1, most=1000)
    """Least and most columns; their logarithm is uniform."""
    shots: tuple[int, int] = bounded((12, 80), least=1, most=EXAMPLES)
    """Least and most support rows of a table; those of a ticket have as many."""
    queries: int = bounded(32, least=1, most=EXAMPLES)
    """Query rows of a table."""
    classes: int = bounded(4, least=2, most=10)
    """Most classes of a table; half of the tickets have two, the others more."""
    trees: float = bounded(0.3, least=0, most=1)
    """Share of tables with rules."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_shots(self.shots)
        if self.columns[0] > self.columns[1]:
            raise InputError("columns", got=list(self.columns), expected="[least, most]")

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """x [T, N, columns], of which the last may be absent, and y [T, N] of int64."""
        least, most = self.columns
        columns = round(least * (most / least) ** float(torch.rand((), generator=generator)))
        shots = drawn_shots(generator, self.shots)
        few = bool(torch.rand((), generator=generator) < 0.5)
        classes = 2 if few else _integer(generator, min(3, self.classes), self.classes)
        drawn = count + -(-count // SPARE)
        x, target = caused(generator, drawn, shots + self.queries, columns)
        ruled = torch.rand(drawn, 1, generator=generator) < self.trees
        target = torch.where(ruled, by_rules(generator, x), target)
        best = predictable(x, target).logical_not().byte().sort(stable=True).indices[:count]
        x, y = x[best], cut(generator, target[best], classes)
        x = pad(x, (0, most - columns))
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def units(self, columns: int) -> Units:
        return Units()

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
            baselines={"most_frequent": most_frequent, "nearest_neighbour": nearest_neighbour},
            measures={"ece": ECE},
        )


def caused(
    generator: torch.Generator, tables: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Columns [T, N, columns] and a number of each row [T, N], nodes of random networks."""
    causes = _integer(generator, 2, columns + 2)
    scale = torch.empty(tables, 1, causes).exponential_(generator=generator)
    h = scale * torch.randn(tables, rows, causes, generator=generator)
    h = torch.where(torch.rand(tables, 1, causes, generator=generator) < 1 / 3, h.round(), h)
    layers, width = [h], columns + 2
    for _ in range(_integer(generator, 2, 4)):
        keep = (0.3, 0.6, 1.0)[_integer(generator, 0, 2)]
        noise = (0.0, 0.05, 0.2)[_integer(generator, 0, 2)]
        shape = (tables, h.shape[-1], width)
        kept = torch.rand(shape, generator=generator) < keep
        w = kept * torch.randn(shape, generator=generator)
        w = w / w.norm(dim=1, keepdim=True).clamp(min=1e-6)
        h = h @ w + torch.randn(tables, 1, width, generator=generator)
        halves = h.chunk(2, -1)
        h = torch.cat([ACTIVATIONS[_integer(generator, 0, 7)](half) for half in halves], -1)
        h = standardised(h) + noise * torch.randn(h.shape, generator=generator)
        layers.append(h)
    nodes = torch.cat(layers[:-1], -1)
    order = torch.rand(tables, 1, nodes.shape[-1], generator=generator).argsort(-1)
    x = nodes.take_along_dim(order[..., :columns], -1)
    # The class is an effect of the columns, or may be a cause of some.
    effect = bool(torch.rand((), generator=generator) < 0.5)
    other = nodes.take_along_dim(order[..., columns : columns + 1], -1)
    return _coded(generator, x), (h[..., :1] if effect else other).squeeze(-1)


def _coded(generator: torch.Generator, x: Tensor) -> Tensor:
    """Round some columns to few values, and warp others."""
    drawn = torch.rand(len(x), 1, x.shape[-1], generator=generator)
    steps = 0.5 + 1.5 * torch.rand(drawn.shape, generator=generator)
    x = torch.where(drawn < 0.15, (steps * x).round(), x)
    return torch.where(drawn > 0.85, x.sign() * x.square(), x)


def by_rules(generator: torch.Generator, x: Tensor) -> Tensor:
    """[T, N]: weighted sums of rules, each of which asks whether two columns are above a row's."""
    tables, rows, columns = x.shape
    asked = torch.randint(columns, (tables, 1, 2 * RULES), generator=generator)
    values = x.take_along_dim(asked, -1)
    border = torch.randint(rows, (tables, 1, 2 * RULES), generator=generator)
    holds = (values > values.take_along_dim(border, 1)).unflatten(-1, (RULES, 2)).all(-1)
    weights = torch.randn(tables, RULES, 1, generator=generator)
    noise = 0.05 * torch.randn(tables, rows, generator=generator)
    return (holds.float() @ weights).squeeze(-1) + noise


def cut(generator: torch.Generator, target: Tensor, classes: int) -> Tensor:
    """[T, N] classes: the target cut at quantiles in 0.15..0.85, numbered in random order."""
    tables, rows = target.shape
    shares = 0.15 + 0.7 * torch.rand(tables, classes - 1, generator=generator)
    borders = target.sort(1).values.gather(1, (shares * (rows - 1)).long())
    ordered = (target[..., None] > borders[:, None]).sum(-1)
    return torch.rand(tables, classes, generator=generator).argsort(1).gather(1, ordered)


def predictable(x: Tensor, target: Tensor) -> Tensor:
    """[T]: whether a column, or the rows near each row, say more of the target than by chance."""
    rows = x.shape[1]
    x, target = standardised(x), standardised(target[..., None])
    column = (x.mT @ target).abs().amax((1, 2)) / rows  # the largest correlation
    apart = torch.cdist(x, x)
    nearness = -CLOSENESS * apart / apart.mean((1, 2), keepdim=True).clamp(min=1e-6)
    others = nearness - torch.diag(torch.full((rows,), torch.inf))
    guess = others.softmax(-1) @ target
    told = (standardised(guess) * target).mean((1, 2))
    return torch.maximum(column, told) > 3 / math.sqrt(rows)


def standardised(h: Tensor) -> Tensor:
    """Mean 0 and deviation 1 of each column; 0 if it is constant."""
    deviation, mean = torch.std_mean(h, 1, keepdim=True, correction=0)
    return (h - mean) / deviation.clamp(min=1e-6)


def most_frequent(task: Task) -> Tensor:
    """[T] accuracy of the support set's most frequent class."""
    return (task.query_y == task.support_y.mode(1, keepdim=True).values).double().mean(1)


def nearest_neighbour(task: Task) -> Tensor:
    """[T] accuracy of the class of the nearest support row, in columns standardised by those."""
    deviation = task.support_x.std(1, keepdim=True, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, torch.inf)
    nearest = torch.cdist(task.query_x / scale, task.support_x / scale).argmin(-1)
    return (task.support_y.gather(1, nearest) == task.query_y).double().mean(1)


def _integer(generator: torch.Generator, least: int, most: int) -> int:
    return int(torch.randint(least, most + 1, (), generator=generator))
