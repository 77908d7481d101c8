"""Strategies of exploration that know how bandits are drawn, to compare a policy with.

An arm that paid s times in n pulls is expected to pay m = (s + 1) / (n + 2), as its probability is
drawn from U[0, 1]. In pull t a strategy pulls the arm with the largest index:

    greedy     m, but a random arm with probability epsilon           (epsilon_greedy)
               or with probability min(1, c / t)                      (epsilon_decreasing)
    ucb1       m + c sqrt(2 log t / (n + 1))
    thompson   a draw from Beta(s + 1, n - s + 1)

(Auer et al. 2002, Finite-time analysis of the multiarmed bandit problem; Thompson 1933.) Constants
are the best of a grid on bandits of a seed of their own, for each number of arms and pulls, as Duan
et al. 2016, arXiv 1611.02779, have tuned them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

GRID = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
TUNING_SEED = 1_000_003
MOST_BANDITS = 1000  # that constants are tuned on; fewer if they are large


class Seen(NamedTuple):
    """What a strategy knows before pull t of bandits, [..., arms] each."""

    wins: Tensor
    pulls: Tensor
    t: int  # from 1
    generator: torch.Generator

    @property
    def means(self) -> Tensor:
        return (self.wins + 1) / (self.pulls + 2)


Index = Callable[[Seen, float], Tensor]  # with a constant: [..., arms] of which the largest counts


def epsilon_greedy(seen: Seen, constant: float) -> Tensor:
    """The best arm so far, but a random one with this probability."""
    drawn = torch.rand(seen.means.shape[:-1], generator=seen.generator)[..., None]
    return torch.where(drawn < constant, torch.zeros_like(seen.means), seen.means)


def epsilon_decreasing(seen: Seen, constant: float) -> Tensor:
    """The same with a probability that falls as c / t."""
    return epsilon_greedy(seen, min(1.0, constant / seen.t))


def ucb1(seen: Seen, constant: float) -> Tensor:
    """The arm that may be best: mean and a width that falls with its pulls."""
    return seen.means + constant * (2 * math.log(seen.t) / (seen.pulls + 1)).sqrt()


def thompson(seen: Seen, constant: float) -> Tensor:
    """The arm that is best in a draw from what is believed of all."""
    seed = int(torch.randint(2**62, (), generator=seen.generator))
    losses = seen.pulls - seen.wins
    drawn = np.random.default_rng(seed).beta(seen.wins.numpy() + 1, losses.numpy() + 1)
    return torch.from_numpy(drawn)


TUNED: dict[str, Index] = {
    "epsilon_greedy": epsilon_greedy,
    "epsilon_decreasing": epsilon_decreasing,
    "ucb1": ucb1,
}


def played(
    index: Index, constant: float, chances: Tensor, pulls: int, generator: torch.Generator
) -> Tensor:
    """[..., pulls]: the chance of the arm that is pulled, in bandits of `chances` [..., arms]."""
    wins, counts = torch.zeros_like(chances), torch.zeros_like(chances)
    each = []
    for t in range(1, pulls + 1):
        found = index(Seen(wins, counts, t, generator), constant)
        ties = 1e-9 * torch.rand(found.shape, generator=generator, dtype=torch.float64)
        arm = (found + ties).argmax(-1, keepdim=True)
        chance = chances.gather(-1, arm)
        paid = torch.rand(chance.shape, generator=generator) < chance
        wins = wins.scatter_add(-1, arm, paid.float())
        counts = counts.scatter_add(-1, arm, torch.ones_like(chance))
        each.append(chance[..., 0])
    return torch.stack(each, -1)


@lru_cache(maxsize=64)
def tuned(arms: int, pulls: int) -> dict[str, float]:
    """The constant of each strategy that has one."""
    bandits = max(20, min(MOST_BANDITS, 10**7 // (arms * pulls)))
    chances = torch.rand(bandits, arms, generator=torch.Generator().manual_seed(TUNING_SEED))

    def value(index: Index, constant: float) -> float:
        generator = torch.Generator().manual_seed(TUNING_SEED + 1)
        return float(played(index, constant, chances, pulls, generator).sum(-1).mean())

    return {name: max(GRID, key=partial(value, index)) for name, index in TUNED.items()}


def strategies(chances: Tensor, pulls: int, trials: int) -> dict[str, Tensor]:
    """[T, pulls] of each: the mean chance, over `trials`, of the arm in each pull.

    chances: [T, arms]. They alone decide which random numbers are drawn.
    """
    given = chances.detach().cpu()
    digest = hashlib.blake2b(given.numpy().tobytes(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    constants = tuned(given.shape[1], pulls)
    repeated = given[:, None].expand(-1, trials, -1)
    return {
        name: played(index, constants.get(name, 0.0), repeated, pulls, generator).mean(1)
        for name, index in (TUNED | {"thompson": thompson}).items()
    }
