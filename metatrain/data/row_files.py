"""CSV and Parquet files of rows: opened up to their bounds, read column by column."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import fs

from metatrain import storage
from metatrain.awaiting import reading
from metatrain.core import InputError
from metatrain.names import quoted, repeated

MOST_BYTES = 1 << 30  # of a file, which is read whole, and of a text column when it is unpacked
MOST_UNPACKED = 1 << 31  # bytes of all columns of a Parquet file
MOST_ROWS = 10_000_000
MOST_COLUMNS = 10_000
PARQUET = b"PAR1"  # how such a file begins
FEWER = "give a part of its rows"

TEXTS = (pa.string(), pa.large_string(), pa.string_view())


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
            remedy=FEWER,
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
    try:
        read = _parquet if contents.startswith(PARQUET) else _csv
        schema, rows, column = read(data, contents, text)
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise unreadable(data, error) from error
    known = schema.names
    twice = repeated(known)
    if twice is not None:
        raise InputError(
            f"{data} has several columns named {quoted(twice)}",
            remedy="give each a name of its own",
        )
    if not rows:
        raise InputError(f"{data} has column names but no rows", remedy="give a file with rows")
    if rows > MOST_ROWS:
        raise InputError(
            f"{data} has {rows:,} rows", expected=f"at most {MOST_ROWS:,}", remedy=FEWER
        )
    checksum = hashlib.sha256(contents).hexdigest()
    return File(data, stamp, checksum, rows, dict(zip(known, schema.types, strict=True)), column)


Opened = tuple[pa.Schema, int, Callable[[str], pa.ChunkedArray]]  # schema, rows, column by name


def _parquet(data: str, contents: bytes, text: str) -> Opened:
    """Open a Parquet file, whose columns are read when they are used."""
    from pyarrow import parquet

    metadata = parquet.read_metadata(pa.BufferReader(contents))
    _check_columns(data, metadata.num_columns)
    schema = metadata.schema.to_arrow_schema()
    # A text of which many rows hold the same is there once, until it is known how many they are.
    texts = [field.name for field in schema if is_binary(field.type)]
    file = parquet.ParquetFile(pa.BufferReader(contents), metadata=metadata, read_dictionary=texts)
    # A group's size, and not those of its columns: pyarrow ends the process at a damaged column.
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups)
    if size > MOST_UNPACKED:
        raise InputError(
            f"{data} unpacks to {size:,} bytes", expected=f"at most {MOST_UNPACKED:,}", remedy=FEWER
        )

    def column(name: str) -> pa.ChunkedArray:
        return file.read(columns=[name]).column(name)

    return schema, metadata.num_rows, column


def _check_columns(data: str, number: int) -> None:
    if number > MOST_COLUMNS:
        raise InputError(
            f"{data} has {number:,} columns",
            expected=f"at most {MOST_COLUMNS:,}",
            remedy="give a part of them",
        )


def check_unpacked(data: str, name: str, size: int) -> None:
    if size > MOST_BYTES:
        raise InputError(
            f"column {quoted(name)} of {data} unpacks to {size:,} bytes",
            expected=f"at most {MOST_BYTES:,}",
            remedy=FEWER,
        )


def _csv(data: str, contents: bytes, text: str) -> Opened:
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
    header = _first_row(decoded.lstrip("\r\n"))
    other = next((separator for separator in ";\t|" if separator in header), None)
    if other is not None and "," not in header:
        raise InputError(
            f"{data} separates its columns by {other!r}",
            remedy="separate them by commas, and write decimals with a point",
        )
    _check_columns(data, re.sub('"[^"]*"', "", header).count(",") + 1)
    table = csv.read_csv(
        pa.BufferReader(contents),
        # One block: cells may have any length, and errors name the row.
        csv.ReadOptions(use_threads=False, block_size=len(contents) + 1),
        csv.ParseOptions(newlines_in_values=True),
        csv.ConvertOptions(column_types={text: pa.string()}),
    )
    return table.schema, table.num_rows, table.column


def _first_row(text: str) -> str:
    """Return a CSV file's first row, with the line breaks that quotation marks hold in it."""
    inside = False
    for mark in re.finditer(r'["\r\n]', text):
        if mark[0] == '"':
            inside = not inside
        elif not inside:
            return text[: mark.start()]
    return text


def is_binary(kind: pa.DataType) -> bool:
    return bool(
        kind in TEXTS
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def unreadable(data: str, error: Exception) -> InputError:
    reason = "".join(
        c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(error).split())[:200]
    )
    return InputError(
        f"cannot read {data} as CSV or Parquet ({reason})", remedy="correct it, or write it again"
    )
