"""Advantages of the actions in episodes, which policy gradients weigh them by."""

from __future__ import annotations

import torch
from torch import Tensor

from metatrain.problems.environment import Rollout

RIDGE = 1e-5  # regularises the baseline's fit


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
