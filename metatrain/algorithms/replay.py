"""A memory of sequences, which replays them by priority, for R2D2."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metatrain.algorithms.sequences import Sequences, Window
from metatrain.core import KEPT, InputError, Params

ROWS, PRIORITIES = KEPT + "rows", KEPT + "priorities"  # [tickets, C, D], [tickets, C]
ETA = 0.9  # weight of the largest error in a priority (Kapturowski et al. 2019, section 2.3)
ALPHA, BETA = 0.9, 0.6  # exponents of priorities and of weights, as there
LEAST = 1e-6  # the least priority of a sequence that has a step


def priorities(errors: Tensor, seen: Sequences, window: Window) -> Tensor:
    """[B] eta max_t |d_t| + (1 - eta) mean_t |d_t|; 0 if no step was taken.

    errors: [B, length], 0 where no step was taken.
    """
    sizes, steps = errors.detach().abs(), seen.alive[:, window.learned].sum(1)
    found = ETA * sizes.amax(1) + (1 - ETA) * sizes.sum(1) / steps.clamp(min=1)
    return torch.where(steps > 0, found.clamp(min=LEAST), 0.0)


class Replay(NamedTuple):
    """A ticket's C sequences, the oldest first, and priorities: 0 of those that are not drawn."""

    rows: Tensor  # [C, D]
    priorities: Tensor  # [C]

    @staticmethod
    def empty(sequence: Sequences, capacity: int, tickets: int) -> Params:
        """The state of replays without any sequence like this one [1, ...]."""
        size = sequence.rows().shape[1]
        return {
            ROWS: torch.zeros(tickets, capacity, size),
            PRIORITIES: torch.zeros(tickets, capacity),
        }

    @classmethod
    def of(cls, state: Params, ticket: int) -> Replay:
        """The replay of a ticket's number in its step."""
        if ticket >= len(state[ROWS]):
            raise InputError(
                "algorithm.tickets",
                got=len(state[ROWS]),
                expected="the tickets of a step: outer.tasks_per_step / outer.tasks_per_ticket",
            )
        return cls(state[ROWS][ticket], state[PRIORITIES][ticket])

    def written(self, state: Params, ticket: int) -> Params:
        """The state with this replay as that of a ticket's number."""
        place = torch.tensor([ticket], device=self.rows.device)
        return {
            name: state[name].index_copy(0, place, new[None])
            for name, new in ((ROWS, self.rows), (PRIORITIES, self.priorities))
        }

    def add(self, rows: Tensor, priorities: Tensor) -> Replay:
        """Put sequences in the place of the oldest ones."""
        size, given = len(self.rows), (rows, priorities)
        pairs = zip(self, given, strict=True)
        return Replay(*(torch.cat([old, new])[-size:] for old, new in pairs))

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """[batch] places, with P(i) ~ p_i^alpha, and weights (1 / (n P(i)))^beta, at most 1.

        Schaul et al. 2016, arXiv 1511.05952, section 3.
        """
        sizes = torch.where(self.priorities > 0, self.priorities**ALPHA, 0.0).double()
        drawn = torch.rand(batch, generator=generator, dtype=torch.float64).to(sizes.device)
        ends = sizes.cumsum(0)
        places = torch.searchsorted(ends, drawn * ends[-1], right=True)
        places = places.clamp(max=len(sizes) - 1)
        weights = ((sizes > 0).sum() * sizes[places] / ends[-1]) ** -BETA
        return places, (weights / weights.max()).float()

    def marked(self, places: Tensor, priorities: Tensor) -> Replay:
        """The same with other priorities at these places."""
        return self._replace(priorities=self.priorities.index_put((places,), priorities))
