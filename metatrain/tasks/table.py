"""Rows of a table as tasks: each group, such as the houses of a district, is a regression."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import (
    Adapt,
    ComputePath,
    Context,
    InputError,
    Model,
    Norm,
    Split,
    Task,
)
from metatrain.data import columns, frames, row_files
from metatrain.data.rows import Rows, feature_names, read
from metatrain.data.scale import Scale, check_recorded
from metatrain.measures import NUMBERS
from metatrain.metrics import MSE, Metric, mean_squared_error
from metatrain.names import quoted
from metatrain.problems.supervised import Supervised
from metatrain.tasks.episode import choose
from metatrain.tasks.regressions import fitted, ridge, support_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

LEAST_GROUPS: dict[Split, int] = {"train": 2, "val": 1, "test": 1}
PICTURED = 3  # groups


@dataclass(frozen=True, kw_only=True)
class Table:
    """Predict a target for the rows of a group, from a few other rows of that group.

    A fixed shuffle of the sorted groups decides which of them train, validate and test. A group
    with fewer than shots + queries rows is left out. The interval of a score is over tasks of a
    split's groups: if these are few, it says little about further groups.

    Features and target are standardised by the rows of the training groups, so that an MSE of 1 is
    about the target's variance. Runs and bundles record `features`, `means`, `deviations` and
    `checksum`.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = MSE

    name: Literal["table"] = "table"
    data: str
    """Path or address of a CSV file (UTF-8, commas, a line of names) or of a Parquet file."""
    group: str
    """Column whose values divide the rows into groups."""
    target: str
    """Column to predict."""
    features: tuple[str, ...] | None = None
    """Columns to predict it from; `null`: all numeric ones but `group` and `target`."""
    shots: int = bounded(5, least=1, most=EXAMPLES)
    """Support rows of a task."""
    queries: int = bounded(10, least=1, most=EXAMPLES)
    """Query rows of a task."""
    splits: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Shares of the groups in train, val and test."""
    means: tuple[float, ...] | None = None
    """Means of the features, then of the target; `null`: those of the training groups' rows."""
    deviations: tuple[float, ...] | None = None
    """Standard deviations in the same order; `null`: those of the training groups' rows."""
    checksum: str | None = None
    """Checksum of the file that must be used; `null`: of any."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not (
            len(self.splits) == 3
            and all(0 <= s <= 1 for s in self.splits)
            and abs(sum(self.splits) - 1) < 1e-6
        ):
            raise InputError(
                "splits",
                got=list(self.splits),
                expected="the shares of the groups in train, val and test, which sum to 1",
            )
        check_recorded(self.features, self.means, self.deviations)

    @cached_property
    def _file(self) -> row_files.File:
        """The file; InputError if it cannot be read, or is not the recorded one."""
        file = row_files.opened(self.data, row_files.stamp(self.data), self.group)
        if self.checksum not in (None, file.checksum):
            raise InputError(
                f"{self.data} is not the file that this was trained on: its checksum",
                got=file.checksum,
                expected=repr(self.checksum),
                remedy="give that file, or use this one with --set family.checksum=null",
            )
        return file

    @cached_property
    def _features(self) -> tuple[str, ...]:
        """The features; those recorded with the means need no file."""
        if self.features is not None and self.means is not None:
            return tuple(self.features)
        return feature_names(self._file, self.group, self.target, self.features)

    @cached_property
    def _rows(self) -> Rows:
        """The rows; InputError if the file lacks them, or they are not those recorded."""
        file = self._file
        features = feature_names(file, self.group, self.target, self.features)
        rows = read(self.data, file.stamp, self.group, self.target, features, tuple(self.splits))
        if self.checksum is not None and self.means is not None and self.deviations is not None:
            recorded, now = [*self.means, *self.deviations], [*rows.means, *rows.deviations]
            if len(recorded) != len(now) or not np.allclose(recorded, now, rtol=1e-6, atol=0):
                raise InputError(
                    "family.group, target, features or splits are not those that the means and "
                    f"deviations of {self.data} were recorded with",
                    remedy="leave these keys as they were trained",
                )
        return rows

    @cached_property
    def _scale(self) -> Scale:
        """Means and deviations; the recorded ones need no file."""
        means, deviations = self.means, self.deviations
        if means is None or deviations is None:
            means, deviations = self._rows.means, self._rows.deviations
        if not means:
            raise InputError(
                f"no group of {self.data} is left to train on, so nothing says how to standardise",
                remedy="give more groups, or change family.splits",
            )
        return Scale.of(means, deviations)

    def _groups(self, split: Split) -> Tensor:
        """The split's groups that have enough rows; InputError if they are too few."""
        rows, least, needed = self._rows, self.shots + self.queries, LEAST_GROUPS[split]
        enough = rows.groups(split, least)
        if len(enough) >= needed:
            return enough
        left_out = len(rows.splits[split]) - len(enough)
        smaller = f" ({left_out} with fewer rows are left out)" if left_out else ""
        raise InputError(
            f"the {split} split of {self.data} has {len(enough)} groups by {quoted(self.group)} "
            f"with {least} rows, which {self.shots} shots and {self.queries} queries need, and at "
            f"least {needed} must have them{smaller}",
            remedy=("lower family.shots or family.queries, or " if left_out else "")
            + "give more groups or other family.splits"
            + (", or set validation.every_steps=0" if split == "val" else ""),
        )

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """x [T, N, F] and y [T, N, 1], float32, of distinct rows of a group.

        Several tasks may be of one group.
        """
        groups = self._groups(split)
        drawn = torch.randint(len(groups), (count,), generator=generator)
        return self._draw(groups[drawn], generator)

    def _draw(self, groups: Tensor, generator: torch.Generator) -> Task:
        """A task of each group."""
        rows, shots = self._rows, self.shots
        chosen = choose(generator, rows.sizes[groups], shots + self.queries)
        chosen = chosen + rows.offsets[groups][:, None]
        x, y = self._scale.standardised(rows.values[chosen]).split([len(self._features), 1], dim=-1)
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=(len(self._features),),
            outputs=1,
            loss=mean_squared_error,
            metrics={"mse": mean_squared_error},
            norm=norm,
            path=path,
            baselines={
                "support_mean": support_mean,
                "ridge_on_support_rows": ridge,
                "ridge_on_training_groups": self._pooled_ridge,
            },
            measures=NUMBERS,
        )

    def _pooled_ridge(self, task: Task) -> Tensor:
        """[T] MSE of the ridge regression that is fitted to all rows of the training groups."""
        rows = self._rows
        group_of = torch.repeat_interleave(torch.arange(len(rows.sizes)), rows.sizes)
        raw = rows.values[torch.isin(group_of, rows.splits["train"])]
        train = self._scale.standardised(raw)[None]
        predicted = fitted(train[..., :-1], train[..., -1:], task.query_x.flatten(0, 1)[None])
        return mean_squared_error(predicted.view_as(task.query_y), task.query_y)

    def resolved(self) -> Table:
        """With all that `bind`, `examples`, `targets` and `predictions` need of the file."""
        if self.means is not None:
            return self
        scale = self._scale
        used = (self.group, self.target, *self._features)
        unused = ", ".join(quoted(name) for name in self._file.types if name not in used)
        features = ", ".join(map(quoted, self._features))
        rest = f"; not used: {unused}" if unused else ""
        log.info("%s: %s is predicted from %s%s", self.data, quoted(self.target), features, rest)
        sizes, least = self._rows.sizes, self.shots + self.queries
        small = int((sizes < least).sum())
        if small:
            sentence = "%d of %d groups have fewer than %d rows and are left out"
            log.info(sentence, small, len(sizes), least)
        return replace(
            self,
            features=self._features,
            means=tuple(scale.means.tolist()),
            deviations=tuple(scale.deviations.tolist()),
            checksum=self._file.checksum,
        )

    def check(self, split: Split) -> None:
        self._groups(split)
        self._scale.standardised(self._rows.values)

    @property
    def whole(self) -> tuple[str, ...]:
        """The features that are whole numbers in the file."""
        return tuple(name for name in self._features if columns.is_whole(self._file.types[name]))

    def counts(self) -> dict[Split, tuple[int, int]]:
        """How many groups of each split have enough rows, and how many rows these have."""
        rows, least = self._rows, self.shots + self.queries
        enough = {split: rows.groups(split, least) for split in rows.splits}
        return {
            split: (len(found), int(rows.sizes[found].sum())) for split, found in enough.items()
        }

    def describe(self) -> str:
        """Name the tasks, with the numbers of train, val and test groups if the file is at hand."""
        try:
            counts = self.counts()
            numbers = "/".join(str(counts[split][0]) for split in ("train", "val", "test"))
            groups = f" ({numbers} groups)"
        except InputError:
            groups = ""
        file = self.data.rpartition("/")[2]
        return (
            f"table {file} {self.target} by {self.group}{groups} {self.shots}-shot "
            f"{self.queries} queries"
        )

    def examples(self, raw: Any) -> Tensor:
        """[N, F] float32: N rows in raw units, standardised.

        raw: a DataFrame, a dict of columns or a list of dicts, whose further columns are not used;
            or an array or a list of rows with their values in the order of `features`.
        """
        numbers = torch.from_numpy(frames.rows(raw, self._features))
        return self._scale.standardised(numbers, slice(-1))

    def targets(self, raw: Any) -> Tensor:
        """[N, 1] float32: N target values in raw units, a Series, array or list, standardised."""
        numbers = torch.from_numpy(frames.rows(raw, (self.target,)))
        return self._scale.standardised(numbers, slice(-1, None))

    def predictions(self, output: Tensor) -> Tensor:
        """[N] float64, in raw units, of what a network gave, [N, 1]."""
        if output.dim() != 2 or output.shape[1] != 1:
            raise InputError("the shape of outputs", got=list(output.shape), expected="[N, 1]")
        return self._scale.raw_target(output)[:, 0]

    def picture(self, problem: Supervised, adapt: Adapt, context: Context) -> Figure:
        """Show a few groups: predicted by true target, before and after adaptation."""
        from metatrain import figures

        split, generator = context.ticket.split, context.generator
        groups = self._groups(split)
        shown = groups[choose(generator, torch.tensor(len(groups)), min(PICTURED, len(groups)))]
        task = self._draw(shown, generator)
        adapted = adapt(task)
        return figures.agreement(
            self._scale.raw_target(task.query_y)[..., 0],
            [
                (step, self._scale.raw_target(problem.predict(params, task, context))[..., 0])
                for step, params in (adapted[0], adapted[-1])
            ],
            [f"{self.group} {self._rows.names[i]}" for i in shown.tolist()],
            self.target,
            f"{self.target} in {split} groups, predicted from {self.shots} rows of each",
        )
