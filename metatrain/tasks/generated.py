"""Shared methods of families whose tasks are drawn from a formula."""

from __future__ import annotations

from typing import Self

from metatrain.core import Split
from metatrain.names import described


class Generated:
    """A part of a family that needs no data and can draw any split."""

    def check(self, split: Split) -> None:
        """Accept any split."""

    def resolved(self) -> Self:
        """Return the family itself: it leaves nothing open."""
        return self

    def describe(self) -> str:
        """Name the tasks by the family's fields."""
        return described(self)
