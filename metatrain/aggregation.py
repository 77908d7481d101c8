"""How the directions of a step's tickets become the one that the learner descends.

Each takes the tickets' directions in ticket order, their weights, which are their shares of the
step's tasks, and a generator of the step's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import Params


@dataclass(frozen=True, kw_only=True)
class Mean:
    """The mean over the tasks."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["mean"] = "mean"

    def __call__(
        self, directions: Sequence[Params], weights: Sequence[float], generator: torch.Generator
    ) -> Params:
        names = [*directions[0]]
        if not names:
            return {}
        # As many parameters as a network has would be as many kernels of a GPU.
        mean = torch._foreach_mul([*directions[0].values()], weights[0])
        for direction, weight in zip(directions[1:], weights[1:], strict=True):
            torch._foreach_add_(mean, [direction[name] for name in names], alpha=weight)
        return dict(zip(names, mean, strict=True))


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median of each entry over the tickets, which all count alike.

    Few wrong directions cannot move it far (Yin et al. 2018, arXiv 1803.01498).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["median"] = "median"

    def __call__(
        self, directions: Sequence[Params], weights: Sequence[float], generator: torch.Generator
    ) -> Params:
        return _trimmed(directions, (len(directions) - 1) // 2)


@dataclass(frozen=True, kw_only=True)
class TrimmedMean:
    """The mean of each entry over the tickets without the extreme ones; all count alike.

    Yin et al. 2018, arXiv 1803.01498.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["trimmed_mean"] = "trimmed_mean"
    trim: float = bounded(0.1, least=0, most=0.49)
    """Share of the tickets that is left out at each end, rounded up."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(
        self, directions: Sequence[Params], weights: Sequence[float], generator: torch.Generator
    ) -> Params:
        return _trimmed(directions, self.out(len(directions)))

    def out(self, tickets: int) -> int:
        """How many of so many tickets are left out at each end.

        Rounded up, so that tickets which are no numbers, and gone before, do not let wrong ones in.
        """
        return min(math.ceil(self.trim * tickets - 1e-9), (tickets - 1) // 2)


@dataclass(frozen=True, kw_only=True)
class NormBounded:
    """The mean over the tasks of directions whose norm is bounded.

    No ticket moves the step by more than its share of `bound` (Sun et al. 2019, arXiv 1911.07963).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["norm_bounded"] = "norm_bounded"
    bound: float = bounded(above=0, most=RATE)
    """Largest norm of a ticket's direction."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(
        self, directions: Sequence[Params], weights: Sequence[float], generator: torch.Generator
    ) -> Params:
        return Mean()(_bounded(directions, self.bound), weights, generator)


@dataclass(frozen=True, kw_only=True)
class Private:
    """The mean of bounded directions with Gaussian noise (Abadi et al. 2016, arXiv 1607.00133).

    The unit whose influence is bounded is a task, so a ticket must hold one. metatrain/privacy.py
    counts the privacy that the steps spend. Whoever knows the recipe's seed, which bundles hold,
    can take the noise away. Metrics have no noise.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["private"] = "private"
    clip: float = bounded(above=0, most=RATE)
    """Largest norm of a task's direction."""
    noise_multiplier: float = bounded(least=0, most=10**6)
    """Standard deviation of the noise on the sum, in units of `clip`."""
    delta: float | None = bounded(1e-5, above=0, most=0.5)
    """Delta at which the privacy spent, epsilon, is counted; `null`: it is not counted."""
    population: int | None = bounded(None, least=1, most=10**12)
    """Owners of tasks, of whom each step takes a random few; `null`: all may be in each step."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(
        self, directions: Sequence[Params], weights: Sequence[float], generator: torch.Generator
    ) -> Params:
        clipped = _bounded(directions, self.clip)
        equal = [1 / len(clipped)] * len(clipped)
        mean = Mean()(clipped, equal, generator)
        deviation = self.noise_multiplier * self.clip / len(clipped)
        for p in mean.values():
            noise = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.add_(noise.to(p.device), alpha=deviation)
        return mean


BuiltIn = Annotated[
    Mean | Median | TrimmedMean | NormBounded | Private, Field(discriminator="name")
]


def norm_of(direction: Params) -> Tensor:
    """[] the norm of all entries together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm([*direction.values()])))


def _bounded(directions: Sequence[Params], bound: float) -> list[Params]:
    """Each direction, scaled down to the norm `bound` if its norm is larger."""
    factors = [(bound / norm_of(direction)).clamp(max=1.0) for direction in directions]
    pairs = zip(directions, factors, strict=True)
    return [{name: p * factor for name, p in direction.items()} for direction, factor in pairs]


def _trimmed(directions: Sequence[Params], out: int) -> Params:
    """The mean of each entry without the `out` lowest and highest; nan if any of all is."""
    found = {}
    for name in directions[0]:
        entries = torch.stack([direction[name] for direction in directions]).sort(0).values
        lost = entries[-1].isnan()  # which sort last
        found[name] = entries[out : len(entries) - out].mean(0).masked_fill(lost, torch.nan)
    return found
