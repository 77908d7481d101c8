"""Predictions of an adapted network: classes or numbers, also for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from metatrain.names import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN = 10  # predictions in a notebook's cell


@dataclass(frozen=True, repr=False)
class Predictions:
    """Classes of N examples."""

    classes: list[Any]  # the labels of the support set, sorted
    probabilities: Tensor  # [N, classes]; nan if the network gave no finite numbers

    @property
    def labels(self) -> list[Any]:
        """[N] most probable classes; None for an example without finite probabilities."""
        best = self.probabilities.argmax(-1).tolist()
        finite = self.probabilities.isfinite().all(-1).tolist()
        return [
            self.classes[i] if is_finite else None
            for i, is_finite in zip(best, finite, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        of = f"{counted(len(self), 'prediction')} of {len(self.classes)} classes"
        return f"<{of}: {some(self.labels)}>"

    def _repr_html_(self) -> str:
        rows = zip(self.labels, self.probabilities.tolist(), strict=True)
        cells = [[label, *(f"{100 * p:.1f}%" for p in row)] for label, row in rows]
        return _table(self, ["prediction", *self.classes], cells)


@dataclass(frozen=True, repr=False)
class Numbers:
    """Predicted numbers of N examples, in the units of the data."""

    values: Tensor  # [N], or [N, outputs] if there are several

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values.numpy(), dtype=dtype)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'prediction')}: {some(self.values.tolist())}>"

    def _repr_html_(self) -> str:
        return _table(self, ["prediction"], [[value] for value in self.values.tolist()])


def some(values: Sequence[Any]) -> str:
    """Return the first values, for one line of a notebook."""
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(values) > SHOWN else "")


def _table(what: object, heads: Sequence[Any], rows: list[list[Any]]) -> str:
    """Return predictions as HTML for a notebook: the first ones, names escaped."""

    def cells(tag: str, values: Sequence[Any]) -> str:
        texts = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
        return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[:SHOWN])
    more = f"<p>{len(rows) - SHOWN} more</p>" if len(rows) > SHOWN else ""
    return f"<table><tr>{cells('th', heads)}</tr>{body}</table>{more}"
