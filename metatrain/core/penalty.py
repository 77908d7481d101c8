"""A penalty on the size of parameters, which a loss gets besides."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from metatrain.bounds import RATE, bounded, check_bounds


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """l1 |p|_1 + l2 / 2 |p|^2, of which only the gradient is needed."""

    __pydantic_config__ = {"extra": "forbid"}

    l1: float = bounded(0.0, least=0, most=RATE)
    """Weight of the sum of absolute values."""
    l2: float = bounded(0.0, least=0, most=RATE)
    """Weight of half the sum of squares, which torch calls `weight_decay`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def gradient(self, p: Tensor) -> Tensor:
        """Its gradient with respect to p, which can be differentiated."""
        return self.l1 * p.sign() + self.l2 * p
