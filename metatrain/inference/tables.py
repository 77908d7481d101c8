"""A network that learned from made tables, adapted to the rows of another one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from metatrain.core import AnyTable, InputError, Norm, Units
from metatrain.data import columns as data
from metatrain.data import frames
from metatrain.inference.adapted import Adapted
from metatrain.inference.coding import Coding, coding_of
from metatrain.inference.given import classes_of, labels_of
from metatrain.inference.learned import Learned
from metatrain.inference.predictions import Numbers, Predictions
from metatrain.isolation import isolated
from metatrain.names import few

ORDERS = 8  # of the columns, in which a table is read; predictions are their mean
MOST_ROWS = 2000  # to adapt to: the memory of attention grows with their square


@dataclass(frozen=True, kw_only=True)
class AdaptedTable:
    """A network adapted to a table, once for each of several orders of its columns.

    It computes in double precision, so that a prediction does not depend on the rows beside it.
    """

    given: tuple[Any, ...]  # to `adapt`
    coding: Coding
    units: Units  # of the tables that the network learned from
    mean: float  # of the targets, if they are numbers
    deviation: float
    parts: list[tuple[Tensor, Adapted]]  # an order of the columns, and what adapted in it

    @property
    def classes(self) -> list[Any] | None:
        """The labels of the support set, sorted; None if targets are numbers."""
        return self.parts[0][1].classes

    @property
    def norm(self) -> Norm:
        return self.parts[0][1].norm

    @property
    def shots(self) -> int:
        """Rows of the support set."""
        return self.parts[0][1].shots

    @property
    def steps(self) -> int:
        return self.parts[0][1].steps

    @property
    def seconds(self) -> float:
        return sum(part.seconds for _, part in self.parts)

    def predict(self, columns: Sequence[Any], *, before: bool = False) -> Any:
        """Return Predictions or Numbers of columns [N] each, in the order of the support set's.

        before: what the network says before adaptation.
        """
        x = scaled(self.coding.coded(columns), self.units)
        each = []
        for order, part in self.parts:
            ordered = arranged(x, order, part.support.support_x.shape[-1])
            outputs = part.outputs(part.before if before else part.after, ordered)
            found = part.predictions(outputs)
            each.append(found.values if self.classes is None else found.probabilities)
        mean = torch.stack(each).mean(0)
        if not bool(mean.isfinite().all()):
            raise InputError(
                f"the network gives no finite number for {int((~mean.isfinite()).sum())} values",
                remedy="check whether the rows are far from those to adapt to",
            )
        if self.classes is not None:
            return Predictions(self.classes, mean)
        deviations = (mean - self.units.target_mean) / self.units.target_deviation
        return Numbers(self.mean + self.deviation * deviations)

    def __reduce__(self) -> tuple[Any, ...]:
        return adapt, self.given


def adapt(
    learned: Learned,
    names: Sequence[str],
    columns: Sequence[Any],
    targets: Any,
    norm: Norm | None = None,
) -> AdaptedTable:
    """Adapt to columns [S] each, of numbers or texts, which may have gaps, and to S targets.

    Raises InputError if there are more columns, classes or rows than the network can read.
    """
    family, (inputs,) = learned.recipe.setting("score").family, learned.inputs
    if not isinstance(family, AnyTable):
        raise InputError(f"{learned.source} learned from {family} and not from tables")
    rows = len(columns[0])
    if len(names) > inputs:
        raise InputError(
            f"the table has {len(names)} columns ({few(names)})",
            expected=f"at most {inputs}, which {learned.source} has learned to read",
            remedy="leave some out",
        )
    if rows > MOST_ROWS:
        raise InputError(
            f"the table has {rows:,} rows to adapt to",
            expected=f"at most {MOST_ROWS:,}",
            remedy="give a random part of them",
        )
    units, mean, deviation = family.units(len(names)), 0.0, 1.0
    classes: list[Any] | None = None
    if learned.has_classes:
        labels = labels_of(targets, rows)
        classes = classes_of(labels)
        y = torch.tensor([classes.index(label) for label in labels])
    else:
        numbers = frames.rows(targets, ("target",))
        with np.errstate(over="ignore", invalid="ignore"):
            mean, deviation = float(numbers.mean()), float(numbers.std()) or 1.0
        if not math.isfinite(mean + deviation):
            raise InputError(
                "the targets are too large to be standardised", remedy="give them in another unit"
            )
        there = units.target_mean + units.target_deviation * (numbers - mean) / deviation
        y = torch.from_numpy(there)
    coding, coded = coding_of(names, columns)
    x = scaled(coded, units)
    parts: list[tuple[Tensor, Adapted]] = []
    with isolated(learned.threads):
        for order in column_orders(len(names)):
            ordered = arranged(x, order, inputs)
            parts.append((order, learned.adapted(ordered, y, classes, norm or learned.norm)))
    return AdaptedTable(
        given=(learned, names, columns, targets, norm),
        coding=coding,
        units=units,
        mean=mean,
        deviation=deviation,
        parts=parts,
    )


def scaled(coded: data.Numbers, units: Units) -> Tensor:
    """Return columns [N, columns] in the units of the tables that a network learned from."""
    return torch.from_numpy(units.mean + units.deviation * coded)


def arranged(x: Tensor, order: Tensor, inputs: int) -> Tensor:
    """Return columns in an order, and zeros after them as made tables have them."""
    return pad(x[:, order], (0, inputs - len(order)))


def column_orders(columns: int) -> Tensor:
    """Return at most ORDERS orders [orders, columns], always the same ones."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(ORDERS, columns, generator=generator, dtype=torch.float64)
    return drawn.argsort(1).unique(dim=0)
