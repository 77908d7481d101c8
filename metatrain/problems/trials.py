"""Trials: several episodes of an environment in a row, over which a memory lasts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metatrain.problems.environment import Environment, State


class Trial(NamedTuple):
    """N trials of T tasks."""

    state: State  # of their episodes
    steps: Tensor  # [T, N] taken in the episode
    episodes: Tensor  # [T, N] that ended


@dataclass(frozen=True)
class Trials:
    """An environment whose episodes are trials of `length` episodes of another (Duan et al. 2016).

    An observation has one number more: 1 if an episode has just ended. The observation is then the
    first of the next episode, and the action and the reward before it are the last of the one that
    ended. A trial's return is that of all its episodes.
    """

    environment: Environment
    length: int

    @property
    def observations(self) -> int:
        return self.environment.observations + 1

    @property
    def actions(self) -> int:
        return self.environment.actions

    @property
    def discrete(self) -> bool:
        return self.environment.discrete

    @property
    def horizon(self) -> int:
        return self.length * self.environment.horizon

    @property
    def episodes(self) -> int:
        return self.environment.episodes

    @property
    def discount(self) -> float:
        return self.environment.discount

    def start(self, task: Any, generator: torch.Generator) -> tuple[Trial, Tensor]:
        state, observation = self.environment.start(task, generator)
        none = torch.zeros(observation.shape[:2], dtype=torch.long, device=observation.device)
        return Trial(state, none, none), _marked(observation, none)

    def step(
        self, task: Any, state: Trial, action: Tensor, generator: torch.Generator
    ) -> tuple[Trial, Tensor, Tensor, Tensor]:
        following, observation, reward, ended = self.environment.step(
            task, state.state, action, generator
        )
        steps = state.steps + 1
        over = ended | (steps == self.environment.horizon)
        first = self.environment.start(task, generator)
        following, observation = _where(over, first, (following, observation))
        trial = Trial(following, steps * ~over, state.episodes + over)
        return trial, _marked(observation, over), reward, trial.episodes >= self.length

    def baselines(self, task: Any) -> dict[str, Tensor]:
        """Those of an episode, as often."""
        found = self.environment.baselines(task)
        return {name: self.length * value for name, value in found.items()}


def in_trials(environment: Environment, length: int) -> Environment:
    """The environment itself, or if a trial has several episodes its trials."""
    return environment if length == 1 else Trials(environment, length)


def _marked(observation: Tensor, over: Tensor) -> Tensor:
    return torch.cat([observation, over[..., None].to(observation.dtype)], -1)


def _where(which: Tensor, these: Any, others: Any) -> Any:
    """Of trees of tensors [T, N, ...] these where `which` [T, N] is true, and else the others."""
    if isinstance(these, Tensor):
        return torch.where(which.view(*which.shape, *[1] * (these.dim() - 2)), these, others)
    found = [_where(which, *pair) for pair in zip(these, others, strict=True)]
    return type(these)(*found) if hasattr(these, "_fields") else tuple(found)
