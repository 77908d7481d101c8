"""When training ends early: after so many validations without a better one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from metatrain.metrics import Metric


class Patience:
    """What a run's validations say so far: its best step, and whether it is time to end.

    All of it follows from the lines of metrics.jsonl, so a resumed run ends where it would have.
    """

    def __init__(
        self, validations: int, metric: Metric, rows: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """validations: how many may be no better than the best; 0: any number.

        rows: the metrics of each step so far, with its number as "step".
        """
        self._validations, self._metric = validations, metric
        self._name = f"val/{metric.name}_after"
        self._least = (math.inf, math.inf)  # of (tasks that diverged, the value, less is better)
        self._waited = 0  # validations since the best
        self.best: int | None = None  # the step of the best validation
        for row in rows:
            self.note(row["step"], row)

    def note(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Note a step's metrics; true if they are of the best validation so far.

        The untrained parameters of step 0 are no candidate.
        """
        if self._name not in metrics or step == 0:
            return False
        value = metrics[self._name]
        value = math.nan if value is None else float(value)
        signed = -value if self._metric.better == "max" else value
        rank = metrics.get("val/diverged_tasks") or 0, signed
        if not math.isnan(value) and rank < self._least:
            self._least, self._waited, self.best = rank, 0, step
            return True
        self._waited += 1
        return False

    def is_over(self) -> bool:
        """Whether training is to end."""
        return 0 < self._validations <= self._waited
