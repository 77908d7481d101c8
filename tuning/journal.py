"""A sweep's journal: a line for each event, and the trials that follow from these lines."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metatrain.metrics import Better
from metatrain.plain import to_json
from tuning.search import Search
from tuning.space import Values


class Report(NamedTuple):
    """A trial's validation after `step` outer steps, with the values that led there."""

    step: int
    value: float  # mean over the tasks that did not diverge; nan if all did
    ci95: float  # nan if validation gives none
    values: Values
    diverged: str = ""  # why training cannot continue
    diverged_tasks: int = 0  # of validation

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
    state: Literal["running", "completed", "stopped", "diverged", "failed", "timed out"] = "running"
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


class Journal:
    """Events, a line each; the trials are their fold."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.trials: dict[int, Trial] = {}
        text = path.read_text() if path.exists() else ""
        *lines, half = text.split("\n")
        for line in lines:
            self._apply(json.loads(line))
        if half:  # of a process that was killed while writing
            whole = path.with_suffix(".partial")
            whole.write_text("".join(f"{line}\n" for line in lines))
            whole.replace(path)

    def write(
        self, number: int, event: Literal["values", "report", "ended"], content: Mapping[str, Any]
    ) -> None:
        line = {"trial": number, event: content, "at": round(time.time(), 3)}
        with self._path.open("a") as file:
            file.write(to_json(line) + "\n")
        self._apply(line)

    def steps(self) -> int:
        """Return how many outer steps all trials made."""
        return sum(trial.steps for trial in self.trials.values())

    def _apply(self, line: dict[str, Any]) -> None:
        trial = self.trials.setdefault(line["trial"], Trial(line["trial"], {}))
        trial.at_s = line["at"]
        if "values" in line:
            trial.values, trial.state, trial.cause = line["values"], "running", ""
        elif "report" in line:
            given = line["report"].items()
            known: dict[str, Any] = {k: math.nan if v is None else v for k, v in given}
            report = Report(**known)
            until = report.step + bool(report.diverged)
            trial.reports = [*(r for r in trial.reports if r.step < until), report]
            trial.values = report.values
        elif "ended" in line:
            trial.state, trial.cause = line["ended"]["state"], line["ended"]["cause"]


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
