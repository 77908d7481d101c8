"""The rows of a table by group, and which of its groups train, validate and test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatrain.core import InputError, Split
from metatrain.data import columns, row_files
from metatrain.data.columns import Numbers
from metatrain.names import instead, quoted, repeated

MOST_VALUES = 3 * 10**7  # rows times columns, of which there are several copies


class Rows(NamedTuple):
    """A table's rows by group. Nothing here depends on shots and queries."""

    # [N, F + 1] float64 in raw units: the features, then the target; a group's rows lie together
    values: Tensor
    names: list[str]  # of the groups, sorted
    sizes: Tensor
    offsets: Tensor
    splits: dict[Split, Tensor]  # indices of groups
    # of the columns of `values` over the training groups' rows; () if there are none
    means: tuple[float, ...]
    deviations: tuple[float, ...]

    def groups(self, split: Split, least: int) -> Tensor:
        """The indices of the split's groups that have at least so many rows."""
        groups = self.splits[split]
        return groups[self.sizes[groups] >= least]


def feature_names(
    file: row_files.File, group: str, target: str, features: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The features, by default all numeric columns but the group and the target.

    Raises InputError if a column is not there, or is named for two purposes.
    """
    known = list(file.types)
    for key, name in [
        ("group", group),
        ("target", target),
        *(("features", name) for name in features or ()),
    ]:
        if name not in known:
            raise InputError(
                f"family.{key} names {quoted(name)}, which is no column of {file.name}",
                remedy=instead(name, known),
            )
    if group == target:
        raise InputError(
            f"family.group and family.target are both {quoted(group)}", remedy="give two columns"
        )
    if features is None:
        for name in known:
            if name not in (group, target):
                columns.refuse_nearly_numeric(file, name)
        features = tuple(
            name
            for name, kind in file.types.items()
            if columns.is_numeric(kind) and name not in (group, target) and not is_index(name)
        )
        if not features:
            raise InputError(
                f"{file.name} has no numeric column but {quoted(target)}",
                remedy="add columns to predict it from",
            )
    for key, name in (("group", group), ("target", target)):
        if name in features:
            raise InputError(
                f"family.features has {quoted(name)}, which is family.{key}",
                remedy="leave it out of the features",
            )
    twice = repeated(features)
    if twice is not None:
        raise InputError(
            f"family.features has {quoted(twice)} several times", remedy="name it once"
        )
    if not features:
        raise InputError(
            "family.features is empty",
            remedy="name columns, or leave it out to take all that are numeric",
        )
    return tuple(features)


def is_index(name: str) -> bool:
    """Whether pandas wrote the column to number the rows."""
    return not name.strip() or name.startswith(("Unnamed: ", "__index_level_"))


@lru_cache(maxsize=2)
def read(
    data: str,
    stamp: tuple[int, int],
    group: str,
    target: str,
    features: tuple[str, ...],
    splits: tuple[float, float, float],
) -> Rows:
    """Read the rows; InputError if a column is not numeric, or a row lacks a value or a group."""
    file, used = row_files.opened(data, stamp, group), (*features, target)
    if file.rows * (len(used) + 1) > MOST_VALUES:
        raise InputError(
            f"{data} has {file.rows:,} rows of {len(used) + 1} columns, more than "
            f"{MOST_VALUES:,} values",
            remedy="name fewer family.features, or give a part of its rows",
        )
    names, codes = columns.names(file, group)
    values = np.stack([columns.numbers(file, name) for name in used], axis=1)
    values = values[np.argsort(codes, kind="stable")]
    sizes = torch.from_numpy(np.bincount(codes))
    parts = divide(len(names), splits)
    train = values[np.isin(np.sort(codes), parts["train"].numpy())]
    return Rows(
        torch.from_numpy(values),
        names,
        sizes,
        sizes.cumsum(0) - sizes,
        parts,
        *_scale(data, train, used),
    )


def divide(groups: int, splits: tuple[float, float, float]) -> dict[Split, Tensor]:
    """The indices of each split's groups, by a fixed shuffle.

    splits: shares of train, val and test; one above 0 gives at least one group.
    """
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(0))
    val, test = (max(1, round(share * groups)) if share else 0 for share in splits[1:])
    # Groups that rounding leaves over train, or are held out if nothing trains.
    test = test if splits[0] or val else groups
    val = val if splits[0] else groups - test
    return {
        "train": order[test + val :].sort().values,
        "val": order[test : test + val].sort().values,
        "test": order[:test].sort().values,
    }


def _scale(
    data: str, train: Numbers, names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each column, which is 1 for a constant; () and () without rows."""
    if not len(train):
        return (), ()
    constant = train.min(0) == train.max(0)  # a deviation that is rounded need not be 0
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.where(constant, train[0], train.mean(0))
        deviations = np.where(constant, 1.0, train.std(0))
    for name, mean, deviation in zip(names, means, deviations, strict=True):
        if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 0):
            raise InputError(
                f"column {quoted(name)} of {data} has values too large or too close to be "
                f"standardised (mean {mean:g}, deviation {deviation:g})",
                remedy="give it in another unit",
            )
    return tuple(means.tolist()), tuple(deviations.tolist())
