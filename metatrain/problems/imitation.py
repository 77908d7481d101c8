"""Imitation as algorithms see it: an expert's actions to predict, and a policy that acts."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from metatrain.core import ComputePath, Context, InputError, Model, Norm, Params, Task
from metatrain.measures import Measure
from metatrain.metrics import mean_squared_error
from metatrain.problems.advantages import Estimator, advantages
from metatrain.problems.environment import Environment, Rollout, State, check_environment
from metatrain.problems.supervised import Supervised


class Expert(Environment, Protocol):
    """An environment with a scripted expert, whose actions are real numbers."""

    @property
    def estimator(self) -> Estimator:
        """Of a policy's gradients, of which `gae` is used."""
        ...

    def expert(self, task: Any, state: State) -> Tensor:
        """[T, N, actions] of one who knows the task and the state."""
        ...


class Demonstrations(NamedTuple):
    """T tasks: an expert's observations x and its actions y there, and what only the expert knows.

    Demonstrations of the same length follow each other: S and Q are numbers of their steps.
    """

    support_x: Tensor  # [T, S, observations]
    support_y: Tensor  # [T, S, actions]
    query_x: Tensor  # [T, Q, observations], of demonstrations that adaptation does not see
    query_y: Tensor  # [T, Q, actions]
    places: Tensor  # [T, 2] goals, which the environment rewards


class Acted(NamedTuple):
    """What a policy does at the query observations, and in episodes of its own."""

    actions: Tensor  # [T, Q, actions]
    rollout: Rollout


class Imitator(Supervised):
    """Implements core.Problem for a policy that learns a goal from demonstrations.

    Losses are those of behaviour cloning: the mean squared distance of the network's action from
    the expert's, which is the likelihood of a normal policy of fixed deviation. The query loss is
    that on demonstrations which adaptation does not see (Finn et al. 2017, arXiv 1709.04905,
    equation 2). Evaluations also act by the network's actions, and measure the return.
    """

    environment: Expert

    def __init__(self, *, environment: Expert, steps: int, model: Model, path: ComputePath) -> None:
        """Bind an environment to a network.

        steps: of a demonstration, and so of an episode in which the policy acts to learn.
        """
        self.environment, self.steps = environment, steps
        super().__init__(
            model=model,
            inputs=(environment.observations,),
            outputs=environment.actions,
            loss=mean_squared_error,
            metrics={"mse": mean_squared_error},
            norm=("none",),
            path=path,
            measures={"expert_share": Measure(self._returns, expert_share)},
        )

    def check(self, task: Any) -> None:
        super().check(task)
        check_environment(self.environment, task)

    def try_out(self, task: Any) -> Collection[str]:
        return {*super().try_out(Task(*task[:4])), "return"}

    def predict(self, params: Params, task: Any, context: Context, norm: Norm | None = None) -> Any:
        """[T, Q, actions]; in evaluations `Acted`, if the task has a goal."""
        actions = super().predict(params, task, context, norm)
        if context.ticket.work == "update" or not isinstance(task, Demonstrations):
            return actions
        return Acted(actions, self.rollout(params, task, context.generator))

    def judge(self, prediction: Any, task: Any) -> dict[str, Tensor]:
        if isinstance(prediction, Tensor):
            return super().judge(prediction, task)
        found = super().judge(prediction.actions, task)
        return found | {"return": prediction.rollout.rewards.sum(2).mean(1)}

    def baselines(self, task: Any) -> dict[str, Tensor]:
        """Returns of standing still, and of the expert without noise."""
        env = self.environment
        generator = torch.Generator().manual_seed(0)  # of where episodes start, if that varies
        rollout = demonstrated(env, task, env.horizon, 0.0, generator)
        return env.baselines(task) | {"expert": rollout.rewards.sum(2).mean(1)}

    def rollout(self, params: Params, task: Any, generator: torch.Generator) -> Rollout:
        """Act in new episodes by the network's actions."""
        env = self.environment
        return played(env, task, lambda _, x: self._forward(params, x), env.horizon, generator)

    @property
    def pair(self) -> int:
        return self.environment.observations + self.environment.actions

    def shown(self, task: Demonstrations) -> Tensor:
        return torch.cat([task.support_x, task.support_y], -1)

    def play(self, params: Params, task: Any, context: Context, deviation: float) -> Tensor:
        if not isinstance(task, Demonstrations):
            raise InputError(
                "this algorithm adapts by acting in an environment, and these examples have none",
                remedy="train with one that clones, such as maml",
            )

        def policy(_: State, observation: Tensor) -> Tensor:
            return noisy(self._forward(params, observation), deviation, context.generator)

        rollout = played(self.environment, task, policy, self.steps, context.generator)
        return torch.cat([rollout.observations, rollout.actions], -1)

    def policy_loss(
        self, params: Params, pairs: Tensor, rewards: Tensor, deviation: float
    ) -> Tensor:
        env = self.environment
        seen, actions = pairs.split([env.observations, env.actions], -1)
        rollout = Rollout(seen, actions, rewards, torch.ones_like(rewards))
        weight = advantages(rollout, env.discount, env.estimator.gae)
        weight = weight / (weight.square().mean((1, 2), keepdim=True).sqrt() + 1e-8)
        mean = self._forward(params, seen.flatten(1, 2)).view_as(actions)
        log_probs = -(actions - mean).square().sum(-1) / (2 * deviation**2)
        return -(log_probs * weight).mean((1, 2))

    def _returns(self, acted: Acted, task: Any) -> Tensor:
        """[T, 3]: the policy's return, and those that `expert_share` compares it with."""
        others = self.baselines(task)
        own = acted.rollout.rewards.sum(2).mean(1)
        return torch.stack([own, others["standing_still"], others["expert"]], -1).double()


def expert_share(returns: Tensor) -> float:
    """How far a policy's mean return is on the way from that of standing still to the expert's.

    returns: [T, 3] of the policy, of standing still and of the expert.

    It is nan if there is no way, such as in episodes that are too short to push anything.
    """
    own, still, best = returns.mean(0).tolist()
    if math.isclose(best, still, rel_tol=1e-6):
        return math.nan
    return float((own - still) / (best - still))


@torch.no_grad()
def played(
    env: Environment,
    task: Any,
    policy: Callable[[State, Tensor], Tensor],
    steps: int,
    generator: torch.Generator,
) -> Rollout:
    """Episodes of so many steps of a policy, which is given states and observations."""
    state, observation = env.start(task, generator)
    alive = torch.ones_like(observation[..., 0])
    taken = []
    for _ in range(steps):
        action = policy(state, observation)
        state, following, reward, ended = env.step(task, state, action, generator)
        taken.append((observation, action, reward * alive, alive))
        observation, alive = following, alive * ~ended
    return Rollout(*(torch.stack(parts, 2) for parts in zip(*taken, strict=True)))


def demonstrated(
    env: Expert, task: Any, steps: int, noise: float, generator: torch.Generator
) -> Rollout:
    """Episodes of the expert, whose actions deviate by noise."""
    return played(
        env, task, lambda s, _: noisy(env.expert(task, s), noise, generator), steps, generator
    )


def noisy(action: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Draw around actions."""
    drawn = torch.randn(action.shape, generator=generator).to(action.device)
    return action + deviation * drawn
