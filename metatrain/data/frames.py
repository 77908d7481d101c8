"""Rows of numbers that people hold in memory: frames, dicts, lists, arrays and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from metatrain.core import InputError
from metatrain.data.columns import Numbers, is_number, refuse_gaps
from metatrain.names import instead, listed, quoted


def rows(raw: Any, columns: Sequence[str]) -> Numbers:
    """Return [N, columns] float64 of rows in memory.

    raw: a frame, a dict of columns or a list of dicts, whose columns have names; or rows with their
        values in the order of `columns`. One column may also be N plain values.
    """
    if isinstance(raw, set | frozenset):
        raise InputError("a set has no order", remedy="give a list of rows")
    if isinstance(raw, np.ndarray) and raw.dtype.names:
        raw = {name: raw[name] for name in raw.dtype.names}
    elif (
        isinstance(raw, Iterable)
        and not hasattr(raw, "__array__")
        and not isinstance(raw, str | bytes | Mapping)
    ):
        raw = list(raw)
        if raw and all(isinstance(row, Mapping) for row in raw):
            raw = {
                name: [row.get(name) for row in raw]
                for name in dict.fromkeys(key for row in raw for key in row)
            }
    if isinstance(raw, Mapping) or hasattr(raw, "columns"):
        known = list(raw if isinstance(raw, Mapping) else getattr(raw, "column_names", raw.columns))
        for name in columns:
            if name not in known:
                raise InputError(f"there is no column {quoted(name)}", remedy=instead(name, known))
        found = [_array(raw[name], f"column {quoted(name)}") for name in columns]
        found = [column[None] if column.ndim == 0 else column for column in found]
        if any(column.shape != found[0].shape or column.ndim != 1 for column in found):
            some = zip(columns[:10], found, strict=False)
            shapes = ", ".join(f"{quoted(name)} {list(column.shape)}" for name, column in some)
            raise InputError(
                f"each column must have one value for each row, got the shapes {shapes}",
                remedy="correct the columns",
            )
    else:
        array = _array(raw, "the rows")
        if array.ndim == 1 and len(columns) == 1:
            array = array[:, None]
        if array.shape == (0,):
            array = array.reshape(0, len(columns))
        if array.ndim != 2 or array.shape[1] != len(columns):
            several = f"N rows of {len(columns)} values ({listed(columns)})"
            wanted = "N values" if len(columns) == 1 else several
            given = "one value" if array.ndim == 0 else f"the shape {list(array.shape)}"
            raise InputError(
                f"expected {wanted}, got {given}",
                remedy="give a list or an array of rows, also if it is one row, or name the "
                "columns in a dict or a frame",
            )
        found = list(array.T)
    if not len(found[0]):
        raise InputError("there are no rows", remedy="give at least one")
    return np.stack(
        [_floats(column, f"column {quoted(n)}") for n, column in zip(columns, found, strict=True)],
        axis=1,
    )


def _array(values: Any, where: str) -> npt.NDArray[Any]:
    """Return values as numpy has them; Python's objects stay as they are."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    if isinstance(values, np.ma.MaskedArray):
        array = values.data.astype(object)
        array[np.ma.getmaskarray(values)] = None
        return array
    if hasattr(values, "__array__"):
        return np.asarray(values)
    if isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping):
        values = [v.detach().cpu().tolist() if isinstance(v, Tensor) else v for v in values]
    try:
        return np.array(values, dtype=object)
    except ValueError as error:
        raise InputError(f"{where} must be of one length each ({error})") from error


def _floats(column: npt.NDArray[Any], where: str) -> Numbers:
    """Return [N] float64; raise InputError if a value is missing, or no finite number."""
    if column.dtype.kind not in "iuf":
        values = column.tolist()
        odd = [(row, v) for row, v in enumerate(values, 1) if v is not None and not is_real(v)]
        if odd:
            texts = [(row, v) for row, v in odd if isinstance(v, str) and is_number(v)]
            row, value = next((item for item in odd if item not in texts), odd[0])
            what = "a number as text" if len(texts) == len(odd) else "no number"
            raise InputError(
                f"{where} holds {quoted(value)} in row {row}, which is {what}",
                remedy="give numbers in the units of the data",
            )
        try:
            column = np.array([np.nan if v is None else float(v) for v in values])
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"{where} holds a number that float64 does not have ({error})",
                remedy="leave it out",
            ) from error
    found: Numbers = column.astype(np.float64)
    refuse_gaps(found, where)
    return found


def is_real(value: object) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_)
