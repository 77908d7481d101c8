"""Rows of a table as tasks: each group of rows, such as the houses of a district, is a regression
of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatrain.core import Adapt, Context, InputError, Model, Norm, Path, Split, Task
from metatrain.data import columns
from metatrain.data.columns import Numbers, quoted
from metatrain.metrics import MSE, Metric, mean_squared_error
from metatrain.problems.supervised import Supervised
from metatrain.tasks.fewshot import choose

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

MOST_VALUES = 10**8  # rows times columns: a small Parquet file can hold more than fits into memory
LEAST_GROUPS: dict[Split, int] = {"train": 2, "val": 1, "test": 1}
RIDGE = 1.0  # on standardised features: what one more row of unit variance would weigh
PICTURED = 3  # groups


def support_mean(task: Task) -> Tensor:
    """[T] MSE of predicting the mean of the support rows' targets."""
    return mean_squared_error(
        task.support_y.mean(1, keepdim=True).expand_as(task.query_y), task.query_y
    )


def ridge(task: Task) -> Tensor:
    """[T] MSE of the ridge regression, with an intercept, that is fitted to the support rows
    alone.
    """
    return mean_squared_error(_ridge(task.support_x, task.support_y, task.query_x), task.query_y)


def _ridge(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """[T, Q, 1] predictions for new [T, Q, F], fitted to x [T, S, F] and y [T, S, 1]."""
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y, new = x - x_mean, y - y_mean, new - x_mean
    if x.shape[1] < x.shape[2]:  # fewer rows than features
        weights = x.mT @ torch.linalg.solve(
            x @ x.mT + RIDGE * torch.eye(x.shape[1], device=x.device), y
        )
    else:
        weights = torch.linalg.solve(
            x.mT @ x + RIDGE * torch.eye(x.shape[2], device=x.device), x.mT @ y
        )
    return new @ weights + y_mean


class Rows(NamedTuple):
    """A table's rows by group. Nothing here depends on shots and queries."""

    # [N, F + 1] float64 in raw units: the features, then the target; a group's rows lie together
    values: Tensor
    names: list[str]  # of the groups, sorted
    sizes: Tensor
    offsets: Tensor
    splits: dict[Split, Tensor]  # indices of groups
    means: tuple[
        float, ...
    ]  # of the columns of `values` over the training groups' rows; () if there are none
    deviations: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Predict `target` from `features` for the rows of a group, from `shots` other rows of that
    group.

    `data` is a CSV file (UTF-8, commas, a line of names) or a Parquet file: a path or an address
    such as s3://bucket/houses.parquet. `group` names the column whose values divide the rows into
    groups. `features` are by default all numeric columns but these two. `splits` are the shares of
    the groups that train, validate and test; a fixed shuffle of the sorted groups decides which. A
    group with fewer than shots + queries rows is left out. The interval of a score is over tasks of
    a split's groups: if these are few, it says little about further groups.

    Features and target are standardised by the rows of the training groups, so that an MSE of 1 is
    about the target's variance. Runs and bundles record `features`, `means` and `deviations` (of
    the features, then the target) and the file's `checksum`.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = MSE

    name: Literal["table"] = "table"
    data: str
    group: str
    target: str
    features: tuple[str, ...] | None = None
    shots: int = 5
    queries: int = 10
    splits: tuple[float, float, float] = (0.6, 0.2, 0.2)
    means: tuple[float, ...] | None = None
    deviations: tuple[float, ...] | None = None
    checksum: str | None = None

    def __post_init__(self) -> None:
        for name in ("shots", "queries"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (
            len(self.splits) == 3
            and all(0 <= s <= 1 for s in self.splits)
            and abs(sum(self.splits) - 1) < 1e-6
        ):
            raise InputError(
                f"splits must be the shares of the groups in train, val and test, which sum to 1; "
                f"got {list(self.splits)}"
            )
        if self.means is None and self.deviations is None:
            return
        means, deviations = self.means or (), self.deviations or ()
        if (
            self.features is None
            or not len(means) == len(deviations) == len(self.features) + 1
            or not all(map(math.isfinite, [*means, *deviations]))
            or min(deviations) <= 0
        ):
            raise InputError(
                (
                    "means and deviations must be finite numbers, one for each of features and one "
                    "for "
                    "target, and "
                    "deviations above 0"
                ),
                remedy=("leave both out in a new run, and features as they were in an evaluation"),
            )

    @cached_property
    def _file(self) -> columns.File:
        """InputError if it cannot be read, or is not the recorded one."""
        file = columns.opened(self.data, columns.stamp(self.data), self.group)
        if self.checksum not in (None, file.checksum):
            raise InputError(
                (
                    f"{self.data} is not the file that this was trained on (checksum "
                    f"{file.checksum}, "
                    "expected "
                    f"{self.checksum})"
                ),
                remedy="give that file, or use this one with --set family.checksum=null",
            )
        return file

    @cached_property
    def _features(self) -> tuple[str, ...]:
        """Recorded with the means, which needs no file."""
        if self.features is not None and self.means is not None:
            return tuple(self.features)
        return _feature_names(self._file, self.group, self.target, self.features)

    @cached_property
    def _rows(self) -> Rows:
        """InputError if the file does not have them, or they are not those that were recorded."""
        file = self._file
        features = _feature_names(file, self.group, self.target, self.features)
        rows = _read(self.data, file.stamp, self.group, self.target, features, tuple(self.splits))
        if self.checksum is not None and self.means is not None and self.deviations is not None:
            recorded, now = [*self.means, *self.deviations], [*rows.means, *rows.deviations]
            if len(recorded) != len(now) or not np.allclose(recorded, now, rtol=1e-6, atol=0):
                raise InputError(
                    (
                        "family.group, target, features or splits are not those that the means and "
                        "deviations of "
                        f"{self.data} were recorded with"
                    ),
                    remedy="leave these keys as they were trained",
                )
        return rows

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """Means and deviations, [F + 1] float64: the recorded ones, which need no file, or the
        file's.
        """
        means, deviations = self.means, self.deviations
        if means is None or deviations is None:
            means, deviations = self._rows.means, self._rows.deviations
        if not means:
            raise InputError(
                (
                    f"no group of {self.data} is left to train on, so that nothing says how to "
                    "standardise"
                ),
                remedy="give more groups, or change family.splits",
            )
        return torch.tensor(means, dtype=torch.float64), torch.tensor(
            deviations, dtype=torch.float64
        )

    def _groups(self, split: Split) -> Tensor:
        """The indices of the split's groups that have enough rows; InputError if they are too
        few.
        """
        rows, least, needed = self._rows, self.shots + self.queries, LEAST_GROUPS[split]
        groups = rows.splits[split]
        enough = groups[rows.sizes[groups] >= least]
        if len(enough) >= needed:
            return enough
        left_out = len(groups) - len(enough)
        smaller = f" ({left_out} with fewer rows are left out)" if left_out else ""
        raise InputError(
            f"the {split} split of {self.data} has {len(enough)} groups by {quoted(self.group)} "
            f"with {least} rows, "
            f"which {self.shots} shots and {self.queries} queries need, and at least {needed} must "
            f"have them{smaller}: "
            + ("lower family.shots or family.queries, or " if left_out else "")
            + "give more groups or other family.splits"
            + (", or set validation.every_steps=0" if split == "val" else "")
        )

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """support [T, shots, F] and [T, shots, 1], query [T, queries, F] and [T, queries, 1],
        float32.

        Several tasks may be of one group; the rows of a task are distinct.
        """
        groups = self._groups(split)
        return self._draw(
            groups[torch.randint(len(groups), (count,), generator=generator)], generator
        )

    def _draw(self, groups: Tensor, generator: torch.Generator) -> Task:
        """A task of each group."""
        rows, shots = self._rows, self.shots
        chosen = (
            choose(generator, rows.sizes[groups], shots + self.queries)
            + rows.offsets[groups][:, None]
        )
        x, y = self._standardised(rows.values[chosen]).split([len(self._features), 1], dim=-1)
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def _standardised(self, raw: Tensor, part: slice = slice(None)) -> Tensor:
        """float32 of raw units, float64 [..., part of the columns]."""
        means, deviations = self._scale
        found = ((raw - means[part]) / deviations[part]).float()
        if not found.isfinite().all():
            raise InputError(
                "a value is too far from those of the training groups for float32",
                remedy=("correct or remove it"),
            )
        return found

    def bind(self, model: Model, norm: Sequence[Norm], path: Path) -> Supervised:
        return Supervised(
            model=model,
            inputs=(len(self._features),),
            outputs=1,
            loss=mean_squared_error,
            metrics={"mse": mean_squared_error},
            norm=norm,
            path=path,
            baseline_metrics={
                "support_mean": support_mean,
                "ridge_on_support_rows": ridge,
                "ridge_on_training_groups": self._pooled_ridge,
            },
        )

    def _pooled_ridge(self, task: Task) -> Tensor:
        """[T] MSE of the ridge regression that is fitted to all rows of the training groups, and to
        no other.
        """
        rows = self._rows
        group_of = torch.repeat_interleave(torch.arange(len(rows.sizes)), rows.sizes)
        train = self._standardised(rows.values[torch.isin(group_of, rows.splits["train"])])[None]
        fitted = _ridge(train[..., :-1], train[..., -1:], task.query_x.flatten(0, 1)[None])
        return mean_squared_error(fitted.view_as(task.query_y), task.query_y)

    def standalone(self) -> Table:
        """With all that `bind`, `examples`, `targets` and `predictions` need of the file."""
        if self.means is not None:
            return self
        means, deviations = self._scale
        used = (self.group, self.target, *self._features)
        unused = ", ".join(quoted(name) for name in self._file.types if name not in used)
        log.info(
            "%s: %s is predicted from %s%s",
            self.data,
            quoted(self.target),
            ", ".join(map(quoted, self._features)),
            f"; not used: {unused}" if unused else "",
        )
        rows, least = self._rows, self.shots + self.queries
        small = int((rows.sizes < least).sum())
        if small:
            log.info(
                "%d of %d groups have fewer than %d rows and are left out",
                small,
                len(rows.sizes),
                least,
            )
        return replace(
            self,
            features=self._features,
            means=tuple(means.tolist()),
            deviations=tuple(deviations.tolist()),
            checksum=self._file.checksum,
        )

    def check(self, split: Split) -> None:
        self._groups(split)
        self._standardised(self._rows.values)

    @property
    def whole(self) -> tuple[str, ...]:
        """The features that are whole numbers in the file."""
        return tuple(name for name in self._features if columns.is_whole(self._file.types[name]))

    def counts(self) -> dict[Split, tuple[int, int]]:
        """How many groups of each split have enough rows, and how many rows these have."""
        sizes = {split: self._rows.sizes[groups] for split, groups in self._rows.splits.items()}
        enough = {
            split: found[found >= self.shots + self.queries] for split, found in sizes.items()
        }
        return {split: (len(found), int(found.sum())) for split, found in enough.items()}

    def describe(self) -> str:
        """The numbers are those of the train, val and test groups, and left out if the file is not
        at hand.
        """
        try:
            rows = self._rows
            enough = rows.sizes >= self.shots + self.queries
            counts = "/".join(
                str(int(enough[rows.splits[split]].sum())) for split in ("train", "val", "test")
            )
            groups = f" ({counts} groups)"
        except InputError:
            groups = ""
        file = self.data.rpartition("/")[2]
        return (
            f"table {file} {self.target} by {self.group}{groups} {self.shots}-shot "
            f"{self.queries} queries"
        )

    def examples(self, raw: Any) -> Tensor:
        """[N, F] float32: N rows in raw units, standardised.

        They are a DataFrame, a dict of columns or a list of dicts, whose further columns are not
        used, or an array or a list of rows with their values in the order of `features`.
        """
        return self._standardised(torch.from_numpy(columns.table(raw, self._features)), slice(-1))

    def targets(self, raw: Any) -> Tensor:
        """[N, 1] float32: N target values in raw units, a Series, array or list, standardised."""
        return self._standardised(
            torch.from_numpy(columns.table(raw, (self.target,))), slice(-1, None)
        )

    def predictions(self, output: Tensor) -> Tensor:
        """[N] float64, in raw units, of what a network gave, [N, 1]."""
        if output.dim() != 2 or output.shape[1] != 1:
            raise InputError(
                "predictions are of a network's output [N, 1], got one of shape "
                f"{list(output.shape)}"
            )
        return self._raw_target(output)[:, 0]

    def _raw_target(self, standardised: Tensor) -> Tensor:
        means, deviations = (scale[-1].to(standardised.device) for scale in self._scale)
        return standardised.detach().double() * deviations + means

    def picture(self, problem: Supervised, adapt: Adapt, context: Context) -> Figure:
        """A few groups: predicted against true target, before and after adaptation."""
        from metatrain import figures

        split, generator = context.ticket.split, context.generator
        groups = self._groups(split)
        shown = groups[choose(generator, torch.tensor(len(groups)), min(PICTURED, len(groups)))]
        task = self._draw(shown, generator)
        adapted = adapt(task)
        return figures.agreement(
            self._raw_target(task.query_y)[..., 0],
            [
                (step, self._raw_target(problem.predict(params, task, context))[..., 0])
                for step, params in (adapted[0], adapted[-1])
            ],
            [f"{self.group} {self._rows.names[i]}" for i in shown.tolist()],
            self.target,
            f"{self.target} in {split} groups, predicted from {self.shots} rows of each",
        )


def _feature_names(
    file: columns.File, group: str, target: str, features: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The features, by default all numeric columns; InputError if the columns named are not there
    or play two parts.
    """
    known = list(file.types)
    for key, name in [
        ("group", group),
        ("target", target),
        *(("features", name) for name in features or ()),
    ]:
        if name not in known:
            remedy = columns.instead(name, known)
            raise InputError(
                f"family.{key} names {quoted(name)}, which is no column of {file.name}",
                remedy=f"{remedy}",
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
            if columns.is_numeric(kind) and name not in (group, target) and not _is_index(name)
        )
        if not features:
            raise InputError(
                f"{file.name} has no numeric column but {quoted(target)}",
                remedy=("add columns to predict it from"),
            )
    for key, name in (("group", group), ("target", target)):
        if name in features:
            raise InputError(
                f"family.features has {quoted(name)}, which is family.{key}",
                remedy=("leave it out of the features"),
            )
    twice = columns.repeated(features)
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


def _is_index(name: str) -> bool:
    """Whether pandas wrote the column to number the rows."""
    return not name.strip() or name.startswith(("Unnamed: ", "__index_level_"))


@lru_cache(maxsize=2)
def _read(
    data: str,
    stamp: tuple[int, int],
    group: str,
    target: str,
    features: tuple[str, ...],
    splits: tuple[float, float, float],
) -> Rows:
    """InputError if a column is not numeric, or a row lacks a value or a group."""
    file, used = columns.opened(data, stamp, group), (*features, target)
    if file.rows * (len(used) + 1) > MOST_VALUES:
        raise InputError(
            (
                f"{data} has {file.rows:,} rows of {len(used) + 1} columns, more than "
                f"{MOST_VALUES:,} "
                "values"
            ),
            remedy="name fewer family.features, or give a part of its rows",
        )
    names, codes = columns.names(file, group)
    values = np.stack([columns.numbers(file, name) for name in used], axis=1)[
        np.argsort(codes, kind="stable")
    ]
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
    """The indices of each split's groups, by a fixed shuffle: a share above 0 is at least one
    group.
    """
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(0))
    val, test = (max(1, round(share * groups)) if share else 0 for share in splits[1:])
    test = (
        test if splits[0] or val else groups
    )  # what rounding leaves over trains, or is held out if nothing trains
    val = val if splits[0] else groups - test
    return {
        "train": order[test + val :].sort().values,
        "val": order[test : test + val].sort().values,
        "test": order[:test].sort().values,
    }


def _scale(
    data: str, train: Numbers, names: Sequence[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each column, the latter 1 if it is constant; nothing if there are no
    rows.
    """
    if not len(train):
        return (), ()
    constant = train.min(0) == train.max(0)  # a deviation that is rounded need not be 0
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.where(constant, train[0], train.mean(0))
        deviations = np.where(constant, 1.0, train.std(0))
    for name, mean, deviation in zip(names, means, deviations, strict=True):
        if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 0):
            raise InputError(
                (
                    f"column {quoted(name)} of {data} has values too large or too close to be "
                    "standardised "
                    f"(mean {mean:g}, deviation {deviation:g})"
                ),
                remedy="give it in another unit",
            )
    return tuple(means.tolist()), tuple(deviations.tolist())
