"""Sequences of steps of episodes, from which R2D2 learns."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from metatrain.core import Acting, InputError, Params


class Window(NamedTuple):
    """The steps of a sequence."""

    burn_in: int  # that only the memory reads
    length: int  # that are learned
    ahead: int  # whose rewards are in targets

    @property
    def learned(self) -> slice:
        return slice(self.burn_in, self.burn_in + self.length)


class Sequences(NamedTuple):
    """B sequences of W steps; those before an episode's start and after its end are zero."""

    observations: Tensor  # [B, W, O]
    actions: Tensor  # [B, W, A] one-hot
    rewards: Tensor  # [B, W]
    alive: Tensor  # [B, W] 1 at steps that were taken
    hidden: Tensor  # [B, H] the memory before the first step that was taken
    previous: Tensor  # [B, A + 1] the action and the reward before that step

    @classmethod
    def empty(cls, steps: int, observations: int, actions: int, units: int) -> Sequences:
        """A sequence [1, ...] of W steps, of an environment and a memory of these sizes."""
        shapes = (steps, observations), (steps, actions), (steps,), (steps,), (units,)
        return cls(*(torch.zeros(1, *shape) for shape in (*shapes, (actions + 1,))))

    def rows(self) -> Tensor:
        """[B, D]: all numbers of a sequence in a row."""
        return torch.cat([leaf.flatten(1) for leaf in self], 1)

    def like(self, rows: Tensor) -> Sequences:
        """The sequences [B', ...] that have these rows [B', D]."""
        parts = rows.split([leaf[0].numel() for leaf in self], 1)
        pairs = zip(parts, self, strict=True)
        return Sequences(*(part.unflatten(1, leaf.shape[1:]) for part, leaf in pairs))


@torch.no_grad()
def units(problem: Acting, model: Params) -> int:
    """The numbers in a network's memory, 0 without one; InputError if it grows as it reads."""
    env, one = problem.environment, {name: p[None] for name, p in model.items()}
    if not (memory := problem.memory(one)):
        return 0
    seen = memory[0].new_zeros(1, env.episodes, env.observations)
    _, (hidden,) = problem.act(one, seen, memory)
    if hidden.shape != memory[0].shape:
        raise InputError(
            "this algorithm keeps a memory of one size, and that of the network grows as it reads",
            remedy="set model.head.name to memory or mann",
        )
    return hidden.shape[-1]


def cut(rollout: Any, memory: Tensor, window: Window) -> Sequences:
    """Cut episodes into sequences whose learned parts follow one another, and are all of it.

    rollout: T tasks' N episodes of H steps, an environment's Rollout.
    memory: [T, N, H, units] before each step.
    """
    observations, actions, rewards, alive = (x.flatten(0, 1) for x in rollout)  # [E, H, ...]
    count = -(-alive.shape[1] // window.length)
    before = F.pad(torch.cat([actions, rewards[..., None]], -1)[:, :-1], (0, 0, 1, 0))
    first = [max(0, i * window.length - window.burn_in) for i in range(count)]
    after = count * window.length + window.ahead - alive.shape[1]

    def windows(x: Tensor) -> Tensor:  # [E, H, n] -> [E * count, W, n]
        padded = F.pad(x * alive[..., None], (0, 0, window.burn_in, after))
        return padded.unfold(1, sum(window), window.length).flatten(0, 1).mT

    return Sequences(
        windows(observations),
        windows(actions),
        windows(rewards[..., None])[..., 0],
        windows(alive[..., None])[..., 0],
        memory.flatten(0, 1)[:, first].flatten(0, 1),
        before[:, first].flatten(0, 1),
    )
