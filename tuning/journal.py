"""A sweep's journal: a line for each event, and the trials that follow from these lines."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BufferedWriter
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, TypeAdapter

from cluster.lines import MOST_MS, MOST_STEP
from metatrain import disk, files
from metatrain.metrics import Better
from metatrain.plain import to_json
from tuning.search import Search
from tuning.space import Values

log = logging.getLogger(__name__)

MOST = sys.float_info.max

State = Literal["running", "completed", "stopped", "diverged", "failed", "timed out"]


class Report(NamedTuple):
    """A trial's validation after `step` outer steps, with the values that led there."""

    step: Annotated[int, Field(ge=0, le=MOST_STEP)]
    value: float  # mean over the tasks that did not diverge; nan if all did
    ci95: float  # nan if validation gives none
    values: Values
    diverged: str = ""  # why training cannot continue
    diverged_tasks: Annotated[int, Field(ge=0, le=MOST_STEP)] = 0  # of validation

    def compared(self, mode: Better) -> float:
        """Return the value by which trials are compared.

        If a task diverged, it is as bad as can be: so is the mean over all tasks.
        """
        worst = math.inf if mode == "min" else -math.inf
        return worst if self.diverged_tasks or not math.isfinite(self.value) else self.value


@dataclass
class Trial:
    """What the journal knows of a trial."""

    number: int
    values: Values  # the current ones: PBT changes them
    reports: list[Report] = field(default_factory=list)
    state: State = "running"
    cause: str = ""
    at_s: float = 0.0  # when its last event happened

    @property
    def over(self) -> bool:
        """Whether nothing is left to do; a failed trial is tried again."""
        return self.state in ("completed", "stopped", "diverged")

    def finite(self) -> list[Report]:
        """Return its validations that are numbers."""
        return [report for report in self.reports if math.isfinite(report.value)]

    @property
    def last(self) -> Report | None:
        """Its newest validation; None if that is no number."""
        return self.reports[-1] if self.reports and math.isfinite(self.reports[-1].value) else None

    @property
    def steps(self) -> int:
        return max((r.step for r in self.reports), default=0)


class _Ended(NamedTuple):
    state: State
    cause: str


class _Event(NamedTuple):
    """A line: when something happened to a trial, and one of three things."""

    trial: Annotated[int, Field(ge=0, le=MOST_STEP)]
    at: Annotated[float, Field(ge=0, le=MOST_MS / 1000, allow_inf_nan=False)]
    values: Values | None = None
    report: Report | None = None
    ended: _Ended | None = None


class Journal:
    """Events, a line each; the trials are their fold."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: dict[int, Trial] = {}
        *lines, half = files.record(path, follow=False).split(b"\n")
        events = [(line, _event(line)) for line in lines]
        whole = [line for line, event in events if event is not None]
        if lost := len(lines) - len(whole):
            log.warning("%s: %d lines that are no events are dropped", path, lost)
        if lost or half:  # a process that is killed while it writes leaves half a line
            disk.write(path, b"".join(line + b"\n" for line in whole))
        for _, event in events:
            if event is not None:
                _apply(self.trials, event)

    def write(
        self, number: int, event: Literal["values", "report", "ended"], content: Mapping[str, Any]
    ) -> None:
        line = {"trial": number, event: content, "at": round(time.time(), 3)}
        with BufferedWriter(files.appended(self._path)) as file:
            file.write(f"{to_json(line)}\n".encode())
        _apply(self.trials, _parsed(to_json(line)))

    def steps(self) -> int:
        """Return how many outer steps all trials made."""
        return _steps(self.trials)


def best_of(trials: Iterable[Trial], mode: Better) -> tuple[Trial, Report] | None:
    """Return the best validation so far; one with diverged tasks only if there is no other."""
    reports = [(trial, report) for trial in trials for report in trial.finite()]
    whole = [pair for pair in reports if not pair[1].diverged_tasks]
    choose = max if mode == "max" else min
    return choose(whole or reports, key=lambda pair: pair[1].value, default=None)


class Point(NamedTuple):
    """The best value that a sweep had at a time."""

    value: float
    at_ms: int  # since 1970


def course(path: Path, mode: Better) -> dict[int, Point]:
    """Return the best values of a journal, by how many outer steps all trials had made."""
    trials: dict[int, Trial] = {}
    found: dict[int, Point] = {}
    for event in map(_event, files.record(path, follow=False).split(b"\n")):
        if event is None:
            continue
        _apply(trials, event)
        best = best_of(trials.values(), mode) if event.report is not None else None
        if best is not None:
            found[_steps(trials)] = Point(best[1].value, int(1000 * event.at))
    return found


def _steps(trials: Mapping[int, Trial]) -> int:
    return sum(trial.steps for trial in trials.values())


def _apply(trials: dict[int, Trial], event: _Event) -> None:
    """Change what is known of the trials by an event."""
    trial = trials.setdefault(event.trial, Trial(event.trial, {}))
    trial.at_s = event.at
    if event.values is not None:
        trial.values, trial.state, trial.cause = event.values, "running", ""
    elif event.report is not None:
        report = event.report
        until = report.step + bool(report.diverged)
        trial.reports = [*(r for r in trial.reports if r.step < until), report]
        trial.values = report.values
    elif event.ended is not None:
        trial.state, trial.cause = event.ended


_EVENTS = TypeAdapter(_Event)


def _parsed(line: str | bytes) -> _Event:
    row = json.loads(line)
    report = row.get("report")
    if report is not None:
        row["report"] = {k: math.nan if v is None else v for k, v in report.items()}
    event = _EVENTS.validate_python(row)
    if sum(part is not None for part in (event.values, event.report, event.ended)) != 1:
        raise ValueError("an event is one thing")
    values = event.report.values if event.report is not None else event.values or {}
    if any(isinstance(value, int | float) and abs(value) > MOST for value in values.values()):
        raise ValueError("a value is more than a float can hold")
    return event


def _event(line: bytes) -> _Event | None:
    """Read a line; None if it is no event."""
    try:
        return _parsed(line)
    except (ValueError, AttributeError, TypeError, RecursionError):
        return None


def ranked(search: Search, trials: Iterable[Trial]) -> list[Trial]:
    """Return trials best first; those that made all their steps come before the others.

    A trial with diverged validation tasks comes after trials without; fewer are better.
    """
    sign = -1 if search.mode == "max" else 1

    def key(trial: Trial) -> tuple[bool, bool, int, float, int]:
        last = trial.last
        lost, value = (last.diverged_tasks, sign * last.value) if last else (0, 0.0)
        return trial.state != "completed", last is None, lost, value, trial.number

    return sorted(trials, key=key)
