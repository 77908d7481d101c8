"""Columns of CSV and Parquet files, as numbers or as names of groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from metatrain.core import InputError
from metatrain.data.row_files import TEXTS, File, check_unpacked, is_binary, unreadable
from metatrain.names import quoted

Numbers = npt.NDArray[np.float64]


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column's values are numbers; true and false are none."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column has one short value in a row; the others are not read."""
    odd = pa.types.is_nested(kind) or pa.types.is_fixed_size_binary(kind)
    return not (odd or isinstance(kind, pa.BaseExtensionType))


def is_whole(kind: pa.DataType) -> bool:
    """Whether a column's values are whole numbers."""
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))


def refuse_nearly_numeric(file: File, name: str) -> None:
    """Refuse a column of text with numbers in most rows: a few cells would leave it out."""
    if file.types[name] not in TEXTS:
        return
    texts = [(row, text) for row, text in enumerate(values(file, name), 1) if text and text.strip()]
    odd = [(row, text) for row, text in texts if not is_number(text)]
    if odd and 2 * len(odd) < len(texts):
        row, text = odd[0]
        raise InputError(
            f"column {quoted(name)} of {file.name} holds {quoted(text)} in row {row} and numbers "
            f"in {len(texts) - len(odd)} rows",
            remedy="correct it, or name family.features without this column",
        )


def numbers(file: File, name: str) -> Numbers:
    """Return a column [rows]; raise InputError if it is not numeric or has gaps."""
    column, where = plain(file, name), f"column {quoted(name)} of {file.name}"
    if not is_numeric(column.type):
        contents, remedy = _contents(column)
        raise InputError(f"{where} is not numeric, it holds {contents}", remedy=remedy)
    found: Numbers = column.cast(pa.float64(), safe=False).to_numpy()
    refuse_gaps(found, where)
    return found


def names(file: File, name: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the different values of a column as text, sorted, and [rows] indices into them."""
    column, where = plain(file, name), f"column {quoted(name)} of {file.name}"
    kind = column.type
    if pa.types.is_null(kind):
        raise InputError(f"{where} is empty", remedy="fill it in, or name another column")
    try:
        encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    except pa.ArrowException as error:
        raise InputError(
            f"{where} holds {kind} values, which name no groups", remedy="give it text or numbers"
        ) from error
    found = encoded.dictionary.to_pylist()
    codes = encoded.indices.fill_null(-1).to_numpy()
    absent = ("", "nan") if pa.types.is_floating(kind) else ("",)
    missing = np.isin(codes, [-1, *(i for i, value in enumerate(found) if value.strip() in absent)])
    if missing.any():
        raise InputError(
            f"{where} is empty in {missing.sum()} of {len(codes)} rows",
            remedy="fill these in, or remove the rows",
        )
    order = np.array(sorted(range(len(found)), key=found.__getitem__))
    return [found[i] for i in order], np.argsort(order)[codes]


def plain(file: File, name: str) -> pa.ChunkedArray:
    """Return a column, decoded if it is a dictionary; InputError if it is no `is_plain` one."""
    if not is_plain(file.types[name]):
        raise InputError(
            f"column {quoted(name)} of {file.name} holds {file.types[name]} values",
            remedy="give it text or numbers, or leave it out",
        )
    try:
        column = file.column(name)
        column.validate(full=True)
        if len(column) != file.rows:
            raise OSError(f"column {quoted(name)} has {len(column):,} of {file.rows:,} rows")
        if not pa.types.is_dictionary(column.type):
            return column
        if is_binary(column.type.value_type):
            check_unpacked(file.name, name, sum(map(_decoded_bytes, column.chunks)))
        return column.cast(column.type.value_type)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(file.name, error) from error


def values(file: File, name: str) -> list[Any]:
    """Return a column's values as Python has them; InputError if it has no such date or zone."""
    column = plain(file, name)
    try:
        found: list[Any] = column.to_pylist()
    except Exception as error:  # pyarrow raises several kinds
        raise unreadable(file.name, error) from error
    return found


def _decoded_bytes(chunk: pa.DictionaryArray) -> int:
    """Return how many bytes the texts of all rows have."""
    import pyarrow.compute as pc

    lengths = pc.binary_length(chunk.dictionary).cast(pa.int64())
    return pc.sum(lengths.take(chunk.indices)).as_py() or 0


def _contents(column: pa.ChunkedArray) -> tuple[str, str]:
    """Return what a column that is not numeric holds, and what to do."""
    kind = column.type
    if pa.types.is_null(kind):
        return "no values", "fill it in, or name another column"
    if pa.types.is_boolean(kind):
        return "true and false", "write 1 and 0"
    if kind not in TEXTS:
        return f"{kind} values", "make numbers of them"
    values = [text for text in column.to_pylist() if text]
    example = next((text for text in values if not is_number(text)), values[0] if values else "")
    remedy = "store plain numbers such as 1234.5, and nothing if one is missing"
    return f"text such as {quoted(example)}", remedy


def is_number(text: str) -> bool:
    """Whether a cell's text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def refuse_gaps(found: Numbers, where: str) -> None:
    """Raise InputError if values [N] are not all finite; `where` is the name of the column."""
    missing, infinite = int(np.isnan(found).sum()), int(np.isinf(found).sum())
    if missing or infinite:
        counts = ((missing, "missing"), (infinite, "infinite"))
        kinds = ", ".join(f"{count} {kind}" for count, kind in counts if count)
        raise InputError(
            f"{where} has no finite number in {missing + infinite} of {len(found)} rows ({kinds})",
            remedy="fill these in, or leave out the rows or the column",
        )
