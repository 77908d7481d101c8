"""List the runs and sweeps below a folder or an address."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from cluster.api.files import metric_of, one_line, read, read_result, read_yaml, rows, scores
from cluster.api.front_door import front_door
from cluster.lines import MOST_STEP
from metatrain import storage
from metatrain.core import InputError
from metatrain.recipe import is_pretraining

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

COPIES = {"mlartifacts", "mlruns"}  # folders of MLflow's, which hold runs' files once more
# Files by which a folder looks like a run's.
MARKS = ("config.yaml", "metrics.jsonl", "result.json", "sweep.yaml")
TAIL = 1 << 16  # bytes of metrics.jsonl that certainly hold its last line
TYPES = {"steps": "Int64", "of": "Int64", "mean": float, "ci95": float, "diverged": "Int64"}


class Summary(NamedTuple):
    """A row of `runs`."""

    name: str
    kind: str  # run, pretraining or sweep
    when: Any  # of its newest record
    steps: int | None  # outer steps that are made; of a sweep, by its winner
    of: int
    metric: str | None
    mean: float  # over the tasks that did not diverge
    ci95: float
    result: str | None  # metric, mean and ci95 as people read them
    diverged: int | None  # tasks
    protocol: str | None
    folder: str


def runs(folder: str | Path = "runs") -> pd.DataFrame:
    """List all runs and sweeps below a folder or an address, the newest first.

    `steps` of `of` outer steps are made; `mean` and `ci95` are those of the first score. A sweep is
    one row with its winner's result, and its trials are left out. A folder that looks like a run's
    and is none is skipped with a warning.
    """
    import pandas as pd

    with front_door("metatrain.runs()"):
        found = []
        for place in _folders(str(folder)):
            try:
                found.append(summary(place)._asdict())
            except Exception as error:  # whatever lies there
                kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                log.warning("skipped %s: %s", one_line(place), one_line(f"{kind}{error}"))
        frame = pd.DataFrame(found, columns=list(Summary._fields)).astype(TYPES)
        return frame.sort_values("when", ascending=False, kind="stable", ignore_index=True)


def summary(place: str) -> Summary:
    """Read a run's or a sweep's files; InputError if they are something else's."""
    is_sweep = storage.is_file(f"{place}/sweep.yaml")
    config = read_yaml(f"{place}/{'recipe' if is_sweep else 'config'}.yaml")
    pretrained = not is_sweep and is_pretraining(config)
    outer = config.get("pretraining" if pretrained else "outer")
    of = outer.get("steps") if isinstance(outer, dict) else None
    name = (read_yaml(f"{place}/sweep.yaml") if is_sweep else config).get("name")
    if not isinstance(name, str) or not _is_count(of):
        raise InputError("its config.yaml is not a run's")
    result = read_result(place) if storage.is_file(f"{place}/result.json") else None
    steps: int | None
    if is_sweep:
        made = {row["trial"]: row["step"] for row in result["trials"]} if result else {}
        steps = made[result["winner"]] if result else None
    else:
        last = rows((read(f"{place}/metrics.jsonl") or b"")[-TAIL:])
        steps = max((int(row["step"]) for row in last), default=0)
    score = scores(result)[0] if result else {}
    if not all(number is None or _is_count(number) for number in (steps, score.get("diverged"))):
        raise InputError("its result.json is damaged")
    mean, ci95 = (float(score.get(name, math.nan)) for name in ("mean", "ci95"))
    return Summary(
        name,
        "sweep" if is_sweep else "pretraining" if pretrained else "run",
        _when(place),
        steps,
        of,
        score.get("metric"),
        mean,
        ci95,
        f"{score['metric']} {metric_of(score).interval(mean, ci95)}" if score else None,
        score.get("diverged"),
        score.get("protocol"),
        place,
    )


def _is_count(value: object) -> TypeGuard[int]:
    """Whether a value is a number of steps or tasks, which a table of numbers can hold."""
    return type(value) is int and 0 <= value <= MOST_STEP


def _folders(folder: str) -> Iterator[str]:
    """Yield folders at and below this one that look like a run's or a sweep's, none below those."""
    seen: set[str] = set()
    waiting = [folder.rstrip("/") or "/"]
    if not _is_folder(waiting[0]):
        log.warning("there is no folder %s", one_line(folder))
        return
    while waiting:
        place = waiting.pop()
        try:
            real = place if storage.is_remote(place) else os.path.realpath(place)
            if real in seen:
                continue  # by a link that leads back
            seen.add(real)
            files, folders = _children(place)
        except (InputError, OSError, ValueError) as error:
            log.warning("skipped %s: %s", one_line(place), one_line(str(error)))
            continue
        if files.intersection(MARKS):
            yield place
        else:
            inner = sorted(name for name in folders - COPIES if not name.startswith("."))
            waiting += [f"{place}/{name}" for name in reversed(inner)]


def _is_folder(place: str) -> bool:
    return bool(storage.listing(place)) if storage.is_remote(place) else Path(place).is_dir()


def _children(place: str) -> tuple[set[str], set[str]]:
    """Return the names of a folder's files and of its folders."""
    if storage.is_remote(place):
        found = [(info.base_name, info.type.name == "Directory") for info in storage.listing(place)]
    else:
        with os.scandir(place) as entries:
            found = [(entry.name, entry.is_dir()) for entry in entries]
    folders = {name for name, is_folder in found if is_folder}
    return {name for name, _ in found} - folders, folders


def _when(place: str) -> Any:
    """Return when the newest record was written, in this machine's time."""
    from datetime import datetime

    import pandas as pd

    system, path = storage.filesystem(place)
    infos = system.get_file_info([f"{path}/{name}" for name in (*MARKS, "journal.jsonl")])
    newest = max((info.mtime_ns for info in infos if info.mtime_ns is not None), default=None)
    if newest is None:
        return pd.NaT
    zone = datetime.now().astimezone().tzinfo
    return pd.Timestamp(newest, tz="UTC").tz_convert(zone).tz_localize(None).floor("s")
