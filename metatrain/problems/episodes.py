"""Reinforcement learning as algorithms see it: episodes of tasks and their policy gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metatrain.core import ComputePath, Context, Model, Norm, Params, Problem
from metatrain.measures import Measure
from metatrain.problems.advantages import Estimator, advantages, discounted
from metatrain.problems.environment import Environment, Rollout
from metatrain.problems.policy import Policy, entropies, log_probs


class Played(NamedTuple):
    """Episodes, and how a policy sees them; what is of the policy can be differentiated."""

    rollout: Rollout
    log_probs: Tensor  # [T, N, H] of the actions
    advantages: Tensor  # [T, N, H] of the actions, without a graph
    values: Tensor | None = None  # [T, N, H], if the network has a head for them
    entropies: Tensor | None = None  # [T, N, H], if the estimator gives them a weight
    acted: Tensor | None = None  # [T, N, H] log-probabilities by the policy that acted, if another


class Episodes(Policy):
    """Implements core.Problem for a policy that acts in environments.

    Losses are those of policy gradients (Williams 1992): minus the mean of log pi(a_t | s_t) A_t
    over the steps of new episodes, which the context's generator decides. The estimator says what
    the advantage A_t is. Support losses divide it by its deviation over the task's steps, as the
    code of Duan et al. 2016 does, so that an inner rate fits rewards of any size; query losses do
    not, since what is wanted is the mean of the tasks' returns. How the initialisation changes
    which episodes are drawn before adaptation is not differentiated, as in MAML.
    """

    def __init__(
        self,
        *,
        environment: Environment,
        model: Model,
        path: ComputePath,
        estimator: Estimator | None = None,
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        """Bind an environment to a network.

        estimator: of gradients; by default with a linear baseline alone.
        measures: by name, what an evaluation measures on all tasks together, of `Played` episodes.
        """
        self.estimator = estimator or Estimator()
        super().__init__(
            environment=environment,
            model=model,
            path=path,
            values=self.estimator.learns_values,
            measures=measures,
        )

    def support_loss(
        self, params: Params, task: Any, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        return self.surrogate(self.predict(params, task, context), support=True)

    def predict(
        self, params: Params, task: Any, context: Context, norm: Norm | None = None
    ) -> Played:
        return self.seen(params, self.rollout(params, task, context.generator))

    def judge(self, prediction: Played, task: Any) -> dict[str, Tensor]:
        rollout = prediction.rollout
        loss = self.surrogate(prediction, support=False)
        if prediction.values is not None:
            expected = discounted(rollout.rewards, self.environment.discount)
            error = (prediction.values - expected) * rollout.alive
            loss = loss + self.estimator.value_weight * error.square().mean((1, 2))
        if prediction.entropies is not None:
            entropy = (prediction.entropies * rollout.alive).mean((1, 2))
            loss = loss - self.estimator.entropy * entropy
        return {"loss": loss, "return": rollout.rewards.sum(2).mean(1)}

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        return self.judge(self.predict(params, task, context), task)

    def seen(self, params: Params, rollout: Rollout) -> Played:
        """Episodes as the policy of `params` sees them."""
        outputs = self.outputs(params, rollout)
        policy = self.distribution(params, outputs)
        values = outputs[..., -1] if self.values else None
        weights = advantages(
            rollout,
            self.environment.discount,
            self.estimator.gae,
            None if values is None else values.detach(),
        )
        entropy = entropies(policy) if self.estimator.entropy else None
        return Played(rollout, log_probs(policy, rollout.actions), weights, values, entropy)

    def surrogate(self, played: Played, support: bool) -> Tensor:
        """[T] whose gradient is the policy gradient, negated."""
        alive, weight = played.rollout.alive, played.advantages
        steps = torch.full_like(alive[:, 0, 0], alive[0].numel())
        if support:
            steps = alive.sum((1, 2))
            deviation = (weight.square().sum((1, 2)) / steps).sqrt()
            weight = weight / (deviation + 1e-8)[:, None, None]
        return -self.gains(played, weight, support).sum((1, 2)) / steps

    def gains(self, played: Played, weight: Tensor, support: bool) -> Tensor:
        """[T, N, H] whose gradients are those of the actions' chances, by their weights."""
        return played.log_probs * weight

    def recorded(self, *, clip: float | None, sampling: bool) -> Callable[[], Problem]:
        tape: list[Played] = []
        return lambda: Recorded(self, tape, clip, sampling)


class Recorded(Episodes):
    """Episodes of a tape: played if it is empty, and else seen again in the order of the calls.

    Advantages stay those of the policy that acted. An action weighs by the ratio of its chance to
    that with which it was taken: r_t A_t in support losses if `sampling`, and in query losses
    min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t).
    """

    def __init__(
        self, problem: Episodes, tape: list[Played], clip: float | None, sampling: bool
    ) -> None:
        vars(self).update(vars(problem))
        self._seen_again = iter(tape) if tape else None
        self._tape, self._clip, self._sampling = tape, clip, sampling

    def predict(
        self, params: Params, task: Any, context: Context, norm: Norm | None = None
    ) -> Played:
        if self._seen_again is not None:
            kept = next(self._seen_again)
            now = self.seen(params, kept.rollout)
            return now._replace(advantages=kept.advantages, acted=kept.acted)
        played = super().predict(params, task, context, norm)
        acted = played.log_probs.detach()
        self._tape.append(Played(played.rollout, acted, played.advantages, acted=acted))
        return played._replace(acted=acted)

    def gains(self, played: Played, weight: Tensor, support: bool) -> Tensor:
        assert played.acted is not None
        if support and not self._sampling:
            return super().gains(played, weight, support)
        ratio = (played.log_probs - played.acted).exp()
        if support or self._clip is None:
            return ratio * weight
        clipped = ratio.clamp(1 - self._clip, 1 + self._clip)
        return torch.minimum(ratio * weight, clipped * weight)
