"""Advantages of the actions in episodes, which policy gradients weigh them by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.problems.environment import Rollout

RIDGE = 1e-5  # regularises the baseline's fit


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """How gradients of returns are estimated from episodes.

        A_t = sum_l (discount gae)^l delta_{t+l}                          (Schulman et al. 2016, 16)
        delta_t = r_t + discount V_{t+1} - V_t,   V = 0 after an episode

    With gae=1 that is the discounted return from t on, less V_t. V is linear in features of
    observation and time and fitted to the task's episodes (Duan et al. 2016, arXiv 1604.06778), or
    a head of the network, which the query loss then has learn the discounted return.
    """

    __pydantic_config__ = {"extra": "forbid"}

    gae: float = bounded(1.0, least=0, most=1)
    """Lambda of generalised advantages: 1 takes all rewards that follow, 0 the next one and V."""
    baseline: Literal["linear", "value"] = "linear"
    """What V is: `linear` fits the task's episodes, `value` is one more output of the network."""
    value_weight: float = bounded(0.5, least=0, most=RATE)
    """Weight, in query losses, of the squared error of `baseline: value`."""
    entropy: float = bounded(0.0, least=0, most=RATE)
    """Weight, in query losses, of the policy's mean entropy, which is to be high."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def learns_values(self) -> bool:
        return self.baseline == "value"


def advantages(
    rollout: Rollout, discount: float, gae: float = 1.0, values: Tensor | None = None
) -> Tensor:
    """[T, N, H]: generalised advantages, less their mean over the task's steps.

    values: [T, N, H] of the observations; by default they are fitted to the task's episodes.
    """
    alive = rollout.alive.double()
    returns = discounted(rollout.rewards.double(), discount)
    expected = fitted(rollout, returns) if values is None else values.double() * alive
    advantage = (
        returns * alive - expected if gae == 1 else generalised(rollout, expected, discount, gae)
    )
    total = alive.sum((1, 2), keepdim=True)
    centred = (advantage - (advantage * alive).sum((1, 2), keepdim=True) / total) * alive
    return centred.to(rollout.rewards.dtype)


def discounted(rewards: Tensor, discount: float) -> Tensor:
    """[..., H] sums of what is and follows, the later the less."""
    ahead = torch.arange(rewards.shape[-1], device=rewards.device)
    ahead = ahead - ahead[:, None]  # [t, t'] steps from t to t'
    weights = torch.where(ahead >= 0, discount ** ahead.clamp(min=0).double(), 0.0)
    return rewards @ weights.to(rewards.dtype).T


def generalised(rollout: Rollout, values: Tensor, discount: float, gae: float) -> Tensor:
    """[T, N, H]: discounted sums of the errors that `values` make in each step."""
    following = torch.nn.functional.pad(values[..., 1:], (0, 1))
    errors = rollout.rewards + discount * following - values
    return discounted(errors, discount * gae)


def fitted(rollout: Rollout, returns: Tensor) -> Tensor:
    """[T, N, H]: the returns by features of observation and time, fitted to each task's."""
    alive = rollout.alive.double()
    time = torch.linspace(0, 1, alive.shape[-1], device=alive.device, dtype=alive.dtype)
    time = time.expand_as(returns)[..., None]
    seen = rollout.observations.double()
    x = torch.cat([seen, seen**2, time, time**2, time**3, torch.ones_like(time)], -1)
    x, y = (x * alive[..., None]).flatten(1, 2), (returns * alive).flatten(1, 2)[..., None]
    gram = x.mT @ x + RIDGE * torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    # To look for errors would have the host wait for a GPU; what is not finite is found later.
    weights, _ = torch.linalg.solve_ex(gram, x.mT @ y, check_errors=not gram.is_cuda)
    return (x @ weights).view_as(returns)
