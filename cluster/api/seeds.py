"""The runs of several training seeds as one object: how their scores vary, their pictures."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.api.files import metric_of, nan_for_null, one_line, read
from cluster.api.run import Figures, Run
from metatrain import storage
from metatrain.core import InputError

if TYPE_CHECKING:
    import pandas as pd


class Seeds:
    """The folder of a recipe that was trained from several seeds."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = storage.checked(str(folder))
        data = read(f"{self.folder}/seeds.json")
        try:
            self._scores: list[dict[str, Any]] = nan_for_null(json.loads(data or b"null"))["scores"]
            self.runs = {each["seed"]: self._run(each["seed"]) for each in self._scores[0]["seeds"]}
        except (ValueError, TypeError, LookupError, RecursionError):
            raise InputError(
                f"{self.folder} holds no finished runs of seeds (no seeds.json)",
                remedy="give the output of metatrain.train(..., seeds=[0, 1, 2])",
            ) from None

    @property
    def result(self) -> pd.DataFrame:
        """The scores over all seeds, a row for each evaluation and norm; the first is the result.

        `mean`, `std` and `ci95` are those of the seeds; the last by Student's t.
        """
        import pandas as pd

        return pd.DataFrame(self._scores).drop(columns="seeds")

    @property
    def figures(self) -> Figures:
        """The pictures of all seeds together by name: paths that notebooks show."""
        return Figures(f"{self.folder}/figures")

    def _run(self, seed: int) -> Run:
        return Run(f"{self.folder}/seed-{seed}")

    def _cells(self) -> list[str]:
        """Return each score in a few words."""
        found = []
        for score in self._scores:
            metric, seeds = metric_of(score), len(score["seeds"])
            value = metric.interval(score["mean"], score["ci95"])
            name = f"{score['evaluation']}: " if score["evaluation"] else ""
            found.append(f"{name}{metric.name} {value} over {seeds} seeds")
        return found

    def __repr__(self) -> str:
        return f"Seeds({self.folder!r}: {one_line(', '.join(self._cells()))})"

    def _repr_html_(self) -> str:
        texts = [html.escape(one_line(cell)) for cell in [*self._cells(), self.folder]]
        return f"<table><tr>{''.join(f'<td>{text}</td>' for text in texts)}</tr></table>"
