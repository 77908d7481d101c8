"""The prior of made tables: their columns and targets follow from causes (Hollmann et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import InputError, Units
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
class MadeTables(Generated):
    """Each task is a table of its own: rows of numbers, and a target of each row.

    A structural causal model makes the table, which is a random network with noise (arXiv
    2207.01848, appendix C.1): columns are some of its nodes, and another node is the target. In a
    share `trees` of the tables the target follows from rules instead, sums of products of
    thresholds of columns. Tables whose target nothing seems to predict are left out. The tables of
    a ticket have as many columns and rows. Absent columns are 0. All splits draw from the same
    distribution; the ticket keeps their tasks apart.
    """

    columns: tuple[int, int] = bounded((2, 30), least=1, most=1000)
    """Least and most columns; their logarithm is uniform."""
    shots: tuple[int, int] = bounded((12, 80), least=1, most=EXAMPLES)
    """Least and most support rows of a table; those of a ticket have as many."""
    queries: int = bounded(32, least=1, most=EXAMPLES)
    """Query rows of a table."""
    trees: float = bounded(0.3, least=0, most=1)
    """Share of tables with rules."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_shots(self.shots)
        if self.columns[0] > self.columns[1]:
            raise InputError("columns", got=list(self.columns), expected="[least, most]")

    def sizes(self, generator: torch.Generator) -> tuple[int, int]:
        """Draw the columns and the support rows of a ticket's tables."""
        least, most = self.columns
        columns = round(least * (most / least) ** float(torch.rand((), generator=generator)))
        return columns, drawn_shots(generator, self.shots)

    def tables(
        self, generator: torch.Generator, count: int, rows: int, columns: int
    ) -> tuple[Tensor, Tensor]:
        """Columns [T, N, columns], of which the last may be absent, and targets [T, N]."""
        drawn = count + -(-count // SPARE)
        x, target = caused(generator, drawn, rows, columns)
        ruled = torch.rand(drawn, 1, generator=generator) < self.trees
        target = torch.where(ruled, by_rules(generator, x), target)
        best = predictable(x, target).logical_not().byte().sort(stable=True).indices[:count]
        return pad(x[best], (0, self.columns[1] - columns)), target[best]

    def units(self, columns: int) -> Units:
        return Units()


def caused(
    generator: torch.Generator, tables: int, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Columns [T, N, columns] and a number of each row [T, N], nodes of random networks."""
    causes = integer(generator, 2, columns + 2)
    scale = torch.empty(tables, 1, causes).exponential_(generator=generator)
    h = scale * torch.randn(tables, rows, causes, generator=generator)
    h = torch.where(torch.rand(tables, 1, causes, generator=generator) < 1 / 3, h.round(), h)
    layers, width = [h], columns + 2
    for _ in range(integer(generator, 2, 4)):
        keep = (0.3, 0.6, 1.0)[integer(generator, 0, 2)]
        noise = (0.0, 0.05, 0.2)[integer(generator, 0, 2)]
        shape = (tables, h.shape[-1], width)
        kept = torch.rand(shape, generator=generator) < keep
        w = kept * torch.randn(shape, generator=generator)
        w = w / w.norm(dim=1, keepdim=True).clamp(min=1e-6)
        h = h @ w + torch.randn(tables, 1, width, generator=generator)
        halves = h.chunk(2, -1)
        h = torch.cat([ACTIVATIONS[integer(generator, 0, 7)](half) for half in halves], -1)
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


def integer(generator: torch.Generator, least: int, most: int) -> int:
    """A whole number, each from `least` to `most` equally probable."""
    return int(torch.randint(least, most + 1, (), generator=generator))
