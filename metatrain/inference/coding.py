"""Columns of people's tables as numbers of one scale, by the rows that a network adapts to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from metatrain.core import InputError
from metatrain.data.columns import Numbers, is_number
from metatrain.data.frames import is_real
from metatrain.inference.given import is_missing
from metatrain.names import quoted

FARTHEST = 1e6  # deviations from the mean; float64 may hold what squares to infinity


class Coding(NamedTuple):
    """How columns become numbers. Values that are not known, or not there, become the mean."""

    names: list[str]
    categories: list[dict[str, int] | None]  # of each column; None if it holds numbers
    means: Numbers
    deviations: Numbers  # 0 of a column whose values are all the same

    def coded(self, columns: Sequence[Any]) -> Numbers:
        """Return [N, columns] deviations from the means, of columns [N] each."""
        return self._scaled(self.numbers(columns))

    def numbers(self, columns: Sequence[Any]) -> Numbers:
        """Return [N, columns] numbers, or those of categories; nan of what is not known."""
        return _raw(self.names, columns, self.categories)

    def unknown(self, columns: Sequence[Any]) -> dict[str, int]:
        """Return how many texts of columns with categories are none of these."""
        each = zip(self.names, columns, self.categories, strict=True)
        found = {
            name: sum(text is not None and text not in known for text in _texts(name, column))
            for name, column, known in each
            if known is not None
        }
        return {name: texts for name, texts in found.items() if texts}

    def _scaled(self, raw: Numbers) -> Numbers:
        varies = self.deviations > 0
        with np.errstate(over="ignore"):
            found = (raw - self.means) / np.where(varies, self.deviations, 1.0)
        known = varies & ~np.isnan(found)
        return np.where(known, found, 0.0).clip(-FARTHEST, FARTHEST)


def coding_of(names: Sequence[str], columns: Sequence[Any]) -> tuple[Coding, Numbers]:
    """Return the coding by these columns [N] each, and themselves coded, [N, columns]."""
    categories = [_categories(name, column) for name, column in zip(names, columns, strict=True)]
    raw = _raw(names, columns, categories)
    known = ~np.isnan(raw)
    count = known.sum(0).clip(min=1)
    with np.errstate(over="ignore", invalid="ignore"):
        means = np.where(known, raw, 0.0).sum(0) / count
        deviations = np.sqrt(np.where(known, (raw - means) ** 2, 0.0).sum(0) / count)
    for name, mean, deviation in zip(names, means, deviations, strict=True):
        if not np.isfinite(mean + deviation):
            raise InputError(
                f"column {quoted(name)} has values too large to be standardised",
                remedy="give it in another unit",
            )
    # The deviation of a constant that was rounded need not be 0.
    least = np.where(known, raw, np.inf).min(0)
    most = np.where(known, raw, -np.inf).max(0)
    coding = Coding(list(names), categories, means, np.where(least < most, deviations, 0.0))
    return coding, coding._scaled(raw)


def _categories(name: str, column: Any) -> dict[str, int] | None:
    """Number a column's texts, sorted; None if it holds numbers, be it as text."""
    if _is_numeric(column):
        return None
    texts = _texts(name, column)
    odd = [text for text in texts if text is not None and not is_number(text)]
    numbers = sum(text is not None for text in texts) - len(odd)
    if odd and len(odd) < numbers:
        raise InputError(
            f"column {quoted(name)} holds {quoted(odd[0])} in row {texts.index(odd[0]) + 1} and "
            f"numbers in {numbers} rows",
            remedy="correct it, or leave the column out; an empty cell is a missing value",
        )
    if not odd:
        return None
    return {text: i for i, text in enumerate(sorted({t for t in texts if t is not None}))}


def _raw(
    names: Sequence[str], columns: Sequence[Any], categories: Sequence[dict[str, int] | None]
) -> Numbers:
    """Return [N, columns] numbers; nan of what is missing, and of a category that is not known."""
    found = zip(names, columns, categories, strict=True)
    return np.stack([_numbers(name, column, known) for name, column, known in found], axis=1)


def _numbers(name: str, column: Any, categories: dict[str, int] | None) -> Numbers:
    if categories is not None:
        texts = _texts(name, column)
        return np.array([categories.get(text, np.nan) if text else np.nan for text in texts])
    if _is_numeric(column):
        found = np.asarray(column).astype(np.float64)
    else:
        texts = _texts(name, column)
        for row, text in enumerate(texts, 1):
            if text is not None and not is_number(text):
                raise InputError(
                    f"column {quoted(name)} holds {quoted(text)} in row {row}, and numbers in the "
                    "rows to adapt to",
                    remedy="correct it, or leave it empty",
                )
        found = np.array([np.nan if text is None else float(text) for text in texts])
    if np.isinf(found).any():
        row = int(np.isinf(found).argmax()) + 1
        raise InputError(
            f"column {quoted(name)} holds an infinite number in row {row}",
            remedy="correct it, or leave it empty",
        )
    return found


def _is_numeric(column: Any) -> bool:
    return isinstance(column, np.ndarray) and column.dtype.kind in "biuf"


def _texts(name: str, column: Any) -> list[str | None]:
    """Return values as texts; None for what is missing or blank."""
    return [_text(name, value) for value in column]


def _text(name: str, value: Any) -> str | None:
    if isinstance(value, str):
        return str(value) if value.strip() else None
    if is_missing(value):
        return None
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if is_real(value):
        return str(value) if isinstance(value, int | np.integer) else str(float(value))
    raise TypeError(
        f"column {quoted(name)} holds a {type(value).__name__}, and the argument must be a string "
        "or a number: make numbers of dates and the like, or leave the column out"
    )
