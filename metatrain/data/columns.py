"""Columns of numbers: of CSV and Parquet files, and of what people hold in memory. What is no
number is refused.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import fs
from torch import Tensor

from metatrain import storage
from metatrain.awaiting import reading
from metatrain.core import InputError

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
    """What changes when the file does; InputError if there is none, or one that is too large to be
    read whole.
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
            remedy=(f"give {key} the path or address of a CSV or Parquet file"),
        )
    if info.type != fs.FileType.File:
        raise InputError(f"{data!r} is no regular file", remedy=f"give {key} a CSV or Parquet file")
    if (info.size or 0) > MOST_BYTES:
        raise InputError(
            f"{data} has {info.size:,} bytes and at most {MOST_BYTES:,} are read",
            remedy=("give a part of its rows"),
        )
    return info.mtime_ns or 0, info.size or 0


@lru_cache(maxsize=2)
def opened(data: str, stamp: tuple[int, int], text: str) -> File:
    """A file, read once as long as it does not change. The column `text` of a CSV file is text:
    there 07 is not 7.
    """
    with reading(data, stamp[1]):
        return _read(data, stamp, text)


def _read(data: str, stamp: tuple[int, int], text: str) -> File:
    try:
        contents = storage.read(data)
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
            remedy=("save it as CSV in UTF-8, or as Parquet"),
        ) from error
    if "\0" in decoded:
        raise InputError(
            f"{data} is neither Parquet nor text, it holds zero bytes",
            remedy="save it as CSV in UTF-8",
        )
    if not decoded.strip():
        raise InputError(
            f"{data} is empty",
            remedy="it needs a line with the columns' names, and a line for each row",
        )
    header = decoded.lstrip("\r\n").splitlines()[0]
    other = next((separator for separator in ";\t|" if separator in header), None)
    if other is not None and "," not in header:
        raise InputError(
            f"{data} separates its columns by {other!r}",
            remedy=("separate them by commas, and write decimals with a point"),
        )
    return csv.read_csv(
        pa.BufferReader(contents),
        csv.ReadOptions(
            use_threads=False, block_size=len(contents) + 1
        ),  # cells of any length; errors name the row
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
    """Refuse a column of text that is numbers in most rows: it would be left out for a few
    cells.
    """
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
            (
                f"column {quoted(name)} of {file.name} holds {quoted(text)} in row {row} and "
                "numbers "
                "in "
                f"{len(values) - len(odd)} rows"
            ),
            remedy=("correct it, or name family.features without this column"),
        )


def numbers(file: File, name: str) -> Numbers:
    """[rows] of a column; InputError if it is not numeric or has gaps."""
    column, where = _plain(file, name), f"column {quoted(name)} of {file.name}"
    if not is_numeric(column.type):
        raise InputError(f"{where} is not numeric, it holds {_contents(column)}")
    found: Numbers = column.cast(pa.float64(), safe=False).to_numpy()
    _refuse_gaps(found, where)
    return found


def names(file: File, name: str) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The different values of a column as text, sorted, and [rows] indices into them."""
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
            remedy=("fill these in, or remove the rows"),
        )
    order = np.array(sorted(range(len(found)), key=found.__getitem__))
    return [found[i] for i in order], np.argsort(order)[codes]


def table(raw: Any, columns: Sequence[str]) -> Numbers:
    """[N, columns] of rows in memory: a frame, a dict of columns or dicts for rows, by name; else
    in that order.

    One column may also be N plain values.
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
                raise InputError(
                    f"there is no column {quoted(name)}", remedy=f"{instead(name, known)}"
                )
        found = [_array(raw[name], f"column {quoted(name)}") for name in columns]
        found = [column[None] if column.ndim == 0 else column for column in found]
        if any(column.shape != found[0].shape or column.ndim != 1 for column in found):
            shapes = ", ".join(
                f"{quoted(n)} {list(c.shape)}" for n, c in zip(columns[:10], found, strict=False)
            )
            raise InputError(
                f"each column must have one value for each row, got the shapes {shapes}",
                remedy=("correct the columns"),
            )
    else:
        array = _array(raw, "the rows")
        if array.ndim == 1 and len(columns) == 1:
            array = array[:, None]
        if array.shape == (0,):
            array = array.reshape(0, len(columns))
        if array.ndim != 2 or array.shape[1] != len(columns):
            what = (
                "N values"
                if len(columns) == 1
                else f"N rows of {len(columns)} values ({_listed(columns)})"
            )
            raise InputError(
                (
                    f"expected {what}, got "
                    f"{'one value' if array.ndim == 0 else f'the shape {list(array.shape)}'}"
                ),
                remedy=(
                    "give a list or an array of rows, also if it is one row, or name the columns "
                    "in a "
                    "dict or a frame"
                ),
            )
        found = list(array.T)
    if not len(found[0]):
        raise InputError("there are no rows", remedy="give at least one")
    return np.stack(
        [_floats(column, f"column {quoted(n)}") for n, column in zip(columns, found, strict=True)],
        axis=1,
    )


def quoted(name: object) -> str:
    """A name or value as a message shows it: control characters escaped, and cut if it is long."""
    text = repr(name)
    return text if len(text) <= 42 else f"{text[:40]}…{text[0]}"


def instead(name: str, known: Sequence[object]) -> str:
    """What to do about a name that is not there."""
    near = difflib.get_close_matches(
        name, [n for n in known if isinstance(n, str)], n=1, cutoff=0.5
    )
    return f"did you mean {quoted(near[0])}?" if near else f"the columns are {_listed(known)}"


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there several times."""
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _listed(names: Sequence[object]) -> str:
    return ", ".join(map(quoted, names[:10])) + (
        f" and {len(names) - 10} more" if len(names) > 10 else ""
    )


def _unreadable(data: str, error: Exception) -> InputError:
    reason = "".join(
        c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(str(error).split())[:200]
    )
    return InputError(
        f"cannot read {data} as CSV or Parquet ({reason})", remedy="correct it, or write it again"
    )


def _plain(file: File, name: str) -> pa.ChunkedArray:
    """A column, not encoded."""
    try:
        column = file.column(name)
        column.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file.name, error) from error
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _contents(column: pa.ChunkedArray) -> str:
    """What is in a column that is not numeric, and what to do."""
    kind = column.type
    if pa.types.is_null(kind):
        return "no values: fill it in, or name another column"
    if pa.types.is_boolean(kind):
        return "true and false: write 1 and 0"
    if kind not in TEXTS:
        return f"{kind} values: make numbers of them"
    values = [text for text in column.to_pylist() if text]
    example = next((text for text in values if not is_number(text)), values[0] if values else "")
    return (
        f"text such as {quoted(example)}: store plain numbers such as 1234.5, and "
        "nothing if one is missing"
    )


def is_number(text: str) -> bool:
    """Whether a cell's text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _array(values: Any, where: str) -> npt.NDArray[Any]:
    """As numpy sees it, Python's objects being left as they are."""
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
        raise InputError(f"{where} must be of one length each", remedy=f"{error}") from error


def _floats(column: npt.NDArray[Any], where: str) -> Numbers:
    """[N] float64; InputError if a value is none, or no finite number."""
    if column.dtype.kind not in "iuf":
        values = column.tolist()
        odd = [(row, v) for row, v in enumerate(values, 1) if v is not None and not _is_real(v)]
        if odd:
            texts = [(row, v) for row, v in odd if isinstance(v, str) and is_number(v)]
            row, value = next((item for item in odd if item not in texts), odd[0])
            what = "a number as text" if len(texts) == len(odd) else "no number"
            raise InputError(
                f"{where} holds {quoted(value)} in row {row}, which is {what}",
                remedy=("give numbers in the units of the data"),
            )
        try:
            column = np.array([np.nan if v is None else float(v) for v in values])
        except (ValueError, OverflowError) as error:
            raise InputError(
                f"{where} holds a number that float64 does not have ({error})",
                remedy="leave it out",
            ) from error
    found: Numbers = column.astype(np.float64)
    _refuse_gaps(found, where)
    return found


def _is_real(value: object) -> bool:
    return isinstance(value, Real | Decimal) and not isinstance(value, bool | np.bool_)


def _refuse_gaps(found: Numbers, where: str) -> None:
    missing, infinite = int(np.isnan(found).sum()), int(np.isinf(found).sum())
    if missing or infinite:
        kinds = [
            f"{count} {kind}"
            for count, kind in ((missing, "missing"), (infinite, "infinite"))
            if count
        ]
        raise InputError(
            (
                f"{where} has no finite number in {missing + infinite} of {len(found)} rows "
                f"({', '.join(kinds)})"
            ),
            remedy="fill these in, or leave out the rows or the column",
        )
