"""How the columns of a table are standardised: by means and deviations that a run records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.core import InputError


class Scale(NamedTuple):
    """The mean and the deviation of each feature, then of the target, [F + 1] float64."""

    means: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, means: Sequence[float], deviations: Sequence[float]) -> Scale:
        """Make one of plain numbers."""
        return cls(*(torch.tensor(x, dtype=torch.float64) for x in (means, deviations)))

    def standardised(self, raw: Tensor, part: slice = slice(None)) -> Tensor:
        """float32 of raw units, float64 [..., part of the columns]."""
        found = ((raw - self.means[part]) / self.deviations[part]).float()
        if not found.isfinite().all():
            raise InputError(
                "a value is too far from those of the training groups for float32",
                remedy="correct or remove it",
            )
        return found

    def raw_target(self, standardised: Tensor) -> Tensor:
        """float64 of targets, or of predicted ones, in raw units."""
        mean, deviation = (scale[-1].to(standardised.device) for scale in self)
        return standardised.detach().double() * deviation + mean


def check_recorded(
    features: Sequence[str] | None,
    means: Sequence[float] | None,
    deviations: Sequence[float] | None,
) -> None:
    """Refuse means and deviations that are not those of such features and of a target."""
    if means is None and deviations is None:
        return
    means, deviations = means or (), deviations or ()
    if (
        features is None
        or not len(means) == len(deviations) == len(features) + 1
        or not all(map(math.isfinite, [*means, *deviations]))
        or min(deviations) <= 0
    ):
        raise InputError(
            "means and deviations must be finite numbers, one for each of features and one for "
            "target, and deviations above 0",
            remedy="leave both out in a new run, and features as they were in an evaluation",
        )
