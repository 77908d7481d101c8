"""Environments of reinforcement learning, and their episodes."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metatrain.core import InputError

# All that an environment knows of its episodes, [T, N, ...] in tensors; hidden from the policy.
State = Any


class Environment(Protocol):
    """T tasks' environments, N = `episodes` at once in each.

    A policy sees observations, and never the state. An action is one of `actions`, as a one-hot
    vector, or `actions` real numbers if it is not `discrete`. All random numbers come from the
    generators that the methods get.
    """

    @property
    def observations(self) -> int:
        """Numbers in an observation."""
        ...

    @property
    def actions(self) -> int: ...

    @property
    def discrete(self) -> bool: ...

    @property
    def horizon(self) -> int:
        """H, steps of an episode."""
        ...

    @property
    def episodes(self) -> int:
        """N, for each gradient and each score."""
        ...

    @property
    def discount(self) -> float:
        """Of a reward one step later, in gradients."""
        ...

    def start(self, task: Any, generator: torch.Generator) -> tuple[State, Tensor]:
        """Begin episodes: their state and the first observation [T, N, observations]."""
        ...

    def step(
        self, task: Any, state: State, action: Tensor, generator: torch.Generator
    ) -> tuple[State, Tensor, Tensor, Tensor]:
        """Take a step: the next state, its observation, the reward [T, N], and what ended [T, N].

        state: that of `start` or of the last step, which is not used again.
        action: [T, N, actions].
        """
        ...

    def baselines(self, task: Any) -> dict[str, Tensor]:
        """[T] each: returns to compare with."""
        ...


class Rollout(NamedTuple):
    """N episodes of H steps for each of T tasks. After an episode's end its rewards are zero."""

    observations: Tensor  # [T, N, H, observations]
    actions: Tensor  # [T, N, H, actions]
    rewards: Tensor  # [T, N, H]
    alive: Tensor  # [T, N, H] 1 until the episode ends, its last step included; then 0


def check_environment(env: Environment, task: Any) -> None:
    """Refuse an environment whose `start` or `step` gives something else than it is to give."""
    tasks, generator = len(task[0]), torch.Generator().manual_seed(0)
    state, observation = parts(env.start(task, generator), "start", "state, observation")
    action = torch.zeros(tasks, env.episodes, env.actions)
    action[..., 0] = 1.0
    stepped = env.step(task, state, action, generator)
    _, following, reward, ended = parts(stepped, "step", "state, observation, reward, ended")
    for what, x, shape in (
        ("`start` gives observations", observation, (env.observations,)),
        ("`step` gives observations", following, (env.observations,)),
        ("`step` gives rewards", reward, ()),
        ("`step` says what ended", ended, ()),
    ):
        expected = (tasks, env.episodes, *shape)
        if not isinstance(x, Tensor) or x.shape != expected:
            given = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(
                f"{what} of shape {given}",
                expected=f"{list(expected)}, which is [tasks, episodes, ...]",
            )


def parts(given: Any, method: str, names: str) -> tuple[Any, ...]:
    """The values that a method of an environment returns; InputError if they are not so many."""
    wanted = names.count(",") + 1
    if isinstance(given, tuple) and len(given) == wanted:
        return given
    found = f"{len(given)} values" if isinstance(given, tuple) else type(given).__name__
    raise InputError(f"`{method}` gives {found}", expected=f"{wanted}: {names}")
