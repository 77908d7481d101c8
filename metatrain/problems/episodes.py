"""Reinforcement learning as algorithms see it: episodes of tasks and their policy gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metatrain.core import Context, Norm, Params
from metatrain.problems.advantages import advantages
from metatrain.problems.environment import Rollout
from metatrain.problems.policy import Policy


class Played(NamedTuple):
    """Episodes, and how probable the policy that plays them finds its actions."""

    rollout: Rollout
    log_probs: Tensor  # [T, N, H], which can be differentiated


class Episodes(Policy):
    """Implements core.Problem for a policy that acts in environments.

    Losses are those of policy gradients (Williams 1992): minus the mean of log pi(a_t | s_t) A_t
    over the steps of new episodes, which the context's generator decides. The advantage A_t is the
    return from t on, discounted, less a baseline that is linear in features of observation and time
    and fitted to the task's episodes (Duan et al. 2016, arXiv 1604.06778). Support losses divide it
    by its deviation over the task's steps, as that paper's code does, so that an inner rate fits
    rewards of any size; query losses do not, since what is wanted is the mean of the tasks'
    returns. How the initialisation changes which episodes are drawn before adaptation is not
    differentiated, as in MAML.
    """

    def support_loss(
        self, params: Params, task: Any, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        return self.surrogate(self.predict(params, task, context), normalise=True)

    def predict(
        self, params: Params, task: Any, context: Context, norm: Norm | None = None
    ) -> Played:
        rollout = self.rollout(params, task, context.generator)
        return Played(rollout, self.log_probs(params, rollout))

    def judge(self, prediction: Played, task: Any) -> dict[str, Tensor]:
        return {
            "loss": self.surrogate(prediction, normalise=False),
            "return": prediction.rollout.rewards.sum(2).mean(1),
        }

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        return self.judge(self.predict(params, task, context), task)

    def surrogate(self, played: Played, normalise: bool) -> Tensor:
        """[T] whose gradient is the policy gradient, negated."""
        rollout = played.rollout
        weight = advantages(rollout, self.environment.discount)
        steps = torch.full_like(rollout.alive[:, 0, 0], rollout.alive[0].numel())
        if normalise:
            steps = rollout.alive.sum((1, 2))
            deviation = (weight.square().sum((1, 2)) / steps).sqrt()
            weight = weight / (deviation + 1e-8)[:, None, None]
        return -(played.log_probs * weight).sum((1, 2)) / steps
