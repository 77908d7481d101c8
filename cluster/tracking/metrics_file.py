"""metrics.jsonl: what a run measured and when, one line for each outer step."""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cluster.lines import made, whole_lines
from metatrain import disk, files
from metatrain.core import InputError
from metatrain.plain import to_json
from metatrain.storage import Folder

log = logging.getLogger(__name__)


class MetricsFile(NamedTuple):
    """A run's metrics.jsonl: what it held up to the run's checkpoint, and how to add to it."""

    rows: list[dict[str, Any]]
    write: Callable[[int, Mapping[str, float]], int]  # returns the time of the line, at_ms
    sync: Callable[[], None]  # wait until all lines are on the disk


@contextmanager
def metrics_file(folder: Folder, version: int) -> Iterator[MetricsFile]:
    """Continue a run's metrics.jsonl; a resumed run forgets the lines after its checkpoint."""
    path = folder / "metrics.jsonl"
    kept = [(step, line) for step, line in whole_lines(files.record(path)) if step <= version]
    lacking = version - made(step for step, _ in kept)
    if lacking:
        log.warning("%s lacks %d of the %d outer steps before", path, lacking, version)
    with _said(path):
        disk.write(path, "".join(f"{line}\n" for _, line in kept).encode())
    with files.appended(path) as file:

        def write(step: int, metrics: Mapping[str, float]) -> int:
            at_ms = int(time.time() * 1000)
            line = f"{to_json({'step': step, 'at_ms': at_ms, **metrics})}\n".encode()
            with _said(path):
                if file.write(line) < len(line):  # as much as there was room for
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return at_ms

        def sync() -> None:
            with _said(path):
                os.fsync(file.fileno())

        yield MetricsFile([json.loads(line) for _, line in kept], write, sync)


@contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror})", remedy="make room on its disk"
        ) from error


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the lines of a run's metrics.jsonl, without what is no finite number."""
    rows = (json.loads(line) for _, line in whole_lines(files.record(path)))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]
