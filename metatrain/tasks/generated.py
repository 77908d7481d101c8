"""Shared methods of families whose tasks are drawn from a formula."""

from __future__ import annotations

from typing import Self

import torch

from metatrain.core import InputError, Split
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


def check_longest(shortest: int, longest: int) -> None:
    """Refuse tasks whose longest is shorter than their shortest."""
    if longest < shortest:
        raise InputError("longest", got=longest, expected=f"at least shortest, {shortest}")


def check_shots(shots: tuple[int, int]) -> None:
    """Refuse bounds of a number of support points that are in the wrong order."""
    if shots[0] > shots[1]:
        raise InputError("shots", got=list(shots), expected="[least, most]")


def drawn_shots(generator: torch.Generator, shots: tuple[int, int]) -> int:
    """A number of support points, each equally probable."""
    return int(torch.randint(shots[0], shots[1] + 1, (), generator=generator))
