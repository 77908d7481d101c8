"""metrics.jsonl: what a run measured, one line for each outer step."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cluster.output import whole_lines
from metatrain.plain import to_json
from metatrain.storage import Folder

log = logging.getLogger(__name__)


class MetricsFile(NamedTuple):
    """A run's metrics.jsonl: what it held up to the run's checkpoint, and how to add a line."""

    rows: list[dict[str, Any]]
    write: Callable[[int, Mapping[str, float]], None]


@contextmanager
def metrics_file(folder: Folder, version: int) -> Iterator[MetricsFile]:
    """Continue a run's metrics.jsonl; a resumed run forgets the lines after its checkpoint."""
    path = folder / "metrics.jsonl"
    lines = list(whole_lines(path.read_bytes())) if path.exists() else []
    kept = [(step, line) for step, line in lines if step <= version]
    missing = set(range(1, version + 1)) - {step for step, _ in kept}
    if missing:
        log.warning("%s lacks %d of the %d outer steps before", path, len(missing), version)
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(f"{line}\n" for _, line in kept))
    temporary.replace(path)
    with path.open("a", buffering=1) as file:

        def write(step: int, metrics: Mapping[str, float]) -> None:
            file.write(to_json({"step": step, **metrics}) + "\n")

        yield MetricsFile([json.loads(line) for _, line in kept], write)


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Read the lines of a run's metrics.jsonl, without what is no finite number."""
    rows = (json.loads(line) for _, line in whole_lines(path.read_bytes()))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]
