"""Environments of reinforcement learning, their episodes, and the advantages of actions in them."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metatrain.core import InputError

RIDGE = 1e-5  # regularises the baseline's fit


class Environment(Protocol):
    """T tasks' environments, N = `episodes` at once in each; what is observed is the whole state.

    An action is one of `actions`, as a one-hot vector, or `actions` real numbers if it is not
    `discrete`.
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

    def start(self, task: Any) -> Tensor:
        """[T, N, observations]"""
        ...

    def step(
        self, task: Any, observation: Tensor, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take a step: the next observation, the reward [T, N], and whether it ended [T, N].

        observation: [T, N, observations].
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
    """Refuse an environment whose `start` or `step` gives tensors of other shapes than it says."""
    tasks, generator = len(task[0]), torch.Generator().manual_seed(0)
    observation = env.start(task)
    action = torch.zeros(tasks, env.episodes, env.actions)
    action[..., 0] = 1.0
    following, reward, ended = env.step(task, observation, action, generator)
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


def advantages(rollout: Rollout, discount: float) -> Tensor:
    """[T, N, H]: returns from each step on, less a baseline that is fitted to the task's episodes.

    The baseline is linear in features of state and time (Duan et al. 2016, arXiv 1604.06778).
    """
    alive = rollout.alive.double()
    horizon = alive.shape[-1]
    ahead = torch.arange(horizon, device=alive.device)
    ahead = ahead - ahead[:, None]  # [t, t'] steps from t to t'
    weights = torch.where(ahead >= 0, discount ** ahead.clamp(min=0).double(), 0.0)
    returns = rollout.rewards.double() @ weights.T
    time = torch.linspace(0, 1, horizon, device=alive.device, dtype=alive.dtype)
    time = time.expand_as(returns)[..., None]
    seen = rollout.observations.double()
    x = torch.cat([seen, seen**2, time, time**2, time**3, torch.ones_like(time)], -1)
    x, y = (x * alive[..., None]).flatten(1, 2), (returns * alive).flatten(1, 2)[..., None]
    gram = x.mT @ x + RIDGE * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    # To look for errors would have the host wait for a GPU; what is not finite is found later.
    fitted, _ = torch.linalg.solve_ex(gram, x.mT @ y, check_errors=not gram.is_cuda)
    advantage = (y - x @ fitted).view_as(returns)
    total = alive.sum((1, 2), keepdim=True)
    centred = (advantage - (advantage * alive).sum((1, 2), keepdim=True) / total) * alive
    return centred.to(rollout.rewards.dtype)
