"""The columns of files of rows that people hand in, and their targets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from metatrain.core import InputError
from metatrain.data import arrays, columns, row_files
from metatrain.data.rows import is_index
from metatrain.inference.learned import Learned

MOST_VALUES = 10**7  # of a file of rows, which become numbers of Python


def read(path: str, key: str) -> dict[str, list[Any]]:
    """Return the columns of a CSV or Parquet file by name; those of odd kinds are not read.

    key: the option that named the file.
    """
    file = row_files.opened(path, row_files.stamp(path, key), "")
    if all(columns.is_number(name) for name in file.types):
        raise InputError(
            f"{path} has numbers where the names of its columns should be",
            remedy="add a first line of names",
        )
    names = [name for name, kind in file.types.items() if columns.is_plain(kind)]
    if not names:
        raise InputError(
            f"{path} has no column with one number or text in a row",
            remedy="give it numbers or texts",
        )
    if file.rows > arrays.MOST_EXAMPLES or file.rows * len(names) > MOST_VALUES:
        raise InputError(
            f"{path} has {file.rows:,} rows of {len(names):,} columns",
            expected=f"at most {arrays.MOST_EXAMPLES:,} rows and {MOST_VALUES:,} values",
            remedy="give a part of the rows",
        )
    return {name: columns.values(file, name) for name in names}


def without_index(table: Mapping[str, Any], named: Collection[str] = ()) -> dict[str, Any]:
    """Return the columns but for those in which pandas numbers rows, unless there is no other.

    named: columns that are kept in any case.
    """
    kept = {name: v for name, v in table.items() if name in named or not is_index(name)}
    return kept or dict(table)


def targets(path: str, learned: Learned, known: Any, examples: int) -> list[Any]:
    """Return the targets of so many examples as far as they are known, None for the others."""
    if known is None:
        return [None] * examples
    rows = known.tolist() if isinstance(known, np.ndarray) else known
    values = [
        None if any(each is None or each != each for each in _each(row)) else row for row in rows
    ]
    if len(values) != examples:
        raise InputError(
            f"{path} has {examples} examples and {len(values)} targets",
            remedy="give each its target, or none at all",
        )
    if not learned.has_classes and any(
        isinstance(each, bool) or not isinstance(each, int | float)
        for value in values
        if value is not None
        for each in _each(value)
    ):
        raise InputError(
            f"{path} has targets that are no numbers", remedy="correct them, or leave them out"
        )
    return values


def _each(target: Any) -> list[Any]:
    """The numbers of an example's target, which may be one."""
    return target if isinstance(target, list) else [target]
