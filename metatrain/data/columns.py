"""Columns of CSV and Parquet files, as numbers or as names of groups."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import fs

from metatrain import storage
from metatrain.awaiting import reading
from metatrain.core import InputError
from metatrain.names import quoted, repeated

MOST_BYTES = 1 << 30  # of a file, which is read whole
PARQUET = b"PAR1"  # how such a file begins

TEXTS = (pa.string(), pa.large_string(), pa.string_view())

Numbers = npt.NDArray[np.float64]


class File(NamedTuple):
    """An opened file."""

    name: str
    stamp: tuple[int, int]
    checksum: str  # SHA-256 of its bytes
    rows: int
    types: dict[str, pa.DataType]  # of its columns, in order
    column: Callable[[str], pa.ChunkedArray]


def stamp(data: str, key: str = "family.data") -> tuple[int, int]:
    """Return what changes when a file does: the time of its last change, and its bytes.

    Raises InputError if there is no file, or one that is too large to be read whole. `key` is what
    named it.
    """
    system, path = storage.filesystem(data)
    try:
        info = system.get_file_info(path)
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"cannot reach {data} ({reason})", remedy="check its address, and its keys"
        ) from error
    if info.type == fs.FileType.NotFound:
        here = "" if storage.is_remote(data) or Path(data).is_absolute() else f" in {Path.cwd()}"
        raise InputError(
            f"there is no file {data!r}{here}",
            remedy=f"give {key} the path or address of a CSV or Parquet file",
        )
    if info.type != fs.FileType.File:
        raise InputError(f"{data!r} is no regular file", remedy=f"give {key} a CSV or Parquet file")
    if (info.size or 0) > MOST_BYTES:
        raise InputError(
            f"{data} has {info.size:,} bytes and at most {MOST_BYTES:,} are read",
            remedy="give a part of its rows",
        )
    return info.mtime_ns or 0, info.size or 0


@lru_cache(maxsize=2)
def opened(data: str, stamp: tuple[int, int], text: str) -> File:
    """Open a file, which is read once as long as it does not change.

    The column `text` of a CSV file is text: there 07 is not 7.
    """
    with reading(data, stamp[1]):
        return _read(data, stamp, text)


def _read(data: str, stamp: tuple[int, int], text: str) -> File:
    try:
        contents = storage.read(data, MOST_BYTES)
    except FileNotFoundError:
        raise InputError(f"{data} was removed while it was opened", remedy="put it back") from None
    column: Callable[[str], pa.ChunkedArray]
    try:
        if contents.startswith(PARQUET):
            from pyarrow import parquet

            file = parquet.ParquetFile(pa.BufferReader(contents))
            schema, rows = file.schema_arrow, file.metadata.num_rows

            def column(name: str) -> pa.ChunkedArray:
                return file.read(columns=[name]).column(name)
        else:
            table = _csv(data, contents, text)
            schema, rows, column = table.schema, table.num_rows, table.column
        known = schema.names
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise _unreadable(data, error) from error
    twice = repeated(known)
    if twice is not None:
        raise InputError(
            f"{data} has several columns named {quoted(twice)}",
            remedy="give each a name of its own",
        )
    if not rows:
        raise InputError(f"{data} has column names but no rows", remedy="give a file with rows")
    checksum = hashlib.sha256(contents).hexdigest()
    return File(data, stamp, checksum, rows, dict(zip(known, schema.types, strict=True)), column)


def _csv(data: str, contents: bytes, text: str) -> pa.Table:
    from pyarrow import csv

    try:
        decoded = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{data} is neither Parquet nor UTF-8 text (byte {error.start})",
            remedy="save it as CSV in UTF-8, or as Parquet",
        ) from error
    if "\0" in decoded:
        raise InputError(
            f"{data} is neither Parquet nor text, it holds zero bytes",
            remedy="save it as CSV in UTF-8",
        )
    if not decoded.strip():
        raise InputError(
            f"{data} is empty",
            remedy="give it a line with the columns' names, and a line for each row",
        )
    header = decoded.lstrip("\r\n").splitlines()[0]
    other = next((separator for separator in ";\t|" if separator in header), None)
    if other is not None and "," not in header:
        raise InputError(
            f"{data} separates its columns by {other!r}",
            remedy="separate them by commas, and write decimals with a point",
        )
    return csv.read_csv(
        pa.BufferReader(contents),
        # One block: cells may have any length, and errors name the row.
        csv.ReadOptions(use_threads=False, block_size=len(contents) + 1),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(column_types={text: pa.string()}),
    )


def is_numeric(kind: pa.DataType) -> bool:
    """Whether a column's values are numbers; true and false are none."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def is_whole(kind: pa.DataType) -> bool:
    """Whether a column's values are whole numbers."""
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))


def refuse_nearly_numeric(file: File, name: str) -> None:
    """Refuse a column of text with numbers in most rows: a few cells would leave it out."""
    if file.types[name] not in TEXTS:
        return
    values = [
        (row, text)
        for row, text in enumerate(_plain(file, name).to_pylist(), 1)
        if text and text.strip()
    ]
    odd = [(row, text) for row, text in values if not is_number(text)]
    if odd and 2 * len(odd) < len(values):
        row, text = odd[0]
        raise InputError(
            f"column {quoted(name)} of {file.name} holds {quoted(text)} in row {row} and numbers "
            f"in {len(values) - len(odd)} rows",
            remedy="correct it, or name family.features without this column",
        )


def numbers(file: File, name: str) -> Numbers:
    """Return a column [rows]; raise InputError if it is not numeric or has gaps."""
    column, where = _plain(file, name), f"column {quoted(name)} of {file.name}"
    if not is_numeric(column.type):
        contents, remedy = _contents(column)
        raise InputError(f"{where} is not numeric, it holds {contents}", remedy=remedy)
    found: Numbers = column.cast(pa.float64(), safe=False).to_numpy()
    refuse_gaps(found, where)
    return found


def names(file: File, name: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the different values of a column as text, sorted, and [rows] indices into them."""
    column, where = _plain(file, name), f"column {quoted(name)} of {file.name}"
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


def _unreadable(data: str, error: Exception) -> InputError:
    reason = "".join(
        c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(error).split())[:200]
    )
    return InputError(
        f"cannot read {data} as CSV or Parquet ({reason})", remedy="correct it, or write it again"
    )


def _plain(file: File, name: str) -> pa.ChunkedArray:
    """Return a column, decoded if it is a dictionary."""
    try:
        column = file.column(name)
        column.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file.name, error) from error
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


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
