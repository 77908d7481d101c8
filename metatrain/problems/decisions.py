"""Decisions as algorithms see them: the best action to predict from what others did, and to try."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from metatrain.core import ComputePath, Context, InputError, Model, Norm, Params, Task
from metatrain.measures import Measure
from metatrain.metrics import accuracy, cross_entropy
from metatrain.models.heads import PRIOR, SUPPORT, TARGETS
from metatrain.problems.environment import Environment, Rollout, check_environment
from metatrain.problems.functional import call, part
from metatrain.problems.supervised import Supervised


class Histories(NamedTuple):
    """T bandits: pulls of somebody else, what they paid, and the best arm."""

    support_x: Tensor  # [T, S, arms] of pulls, in any order
    support_y: Tensor  # [T, S, 1] their rewards
    query_x: Tensor  # [T, 1, arms] zeros: nothing is asked but which arm is best
    query_y: Tensor  # [T, 1] the best arm, int64
    probabilities: Tensor  # [T, arms] of a reward of 1


class Decided(NamedTuple):
    """What is believed of the best arm, and a trial in which arms are pulled by such beliefs."""

    logits: Tensor  # [T, 1, arms]
    rollout: Rollout


class Decisions(Supervised):
    """Implements core.Problem for a network that reads pulls and predicts the best arm.

    The loss is the cross entropy of the best arm (Lee et al. 2023, arXiv 2306.14892, equation 2).
    Evaluations also act: before each pull the network reads what it has read so far, the arm is
    drawn from its probabilities, and the pull and its reward are read with the others from then on
    (the paper's algorithm 1). A network that knows the posterior so is Thompson sampling.
    """

    environment: Environment

    def __init__(
        self,
        *,
        environment: Environment,
        model: Model,
        path: ComputePath,
        measures: Mapping[str, Measure],
    ) -> None:
        """Bind an environment of one episode at once to a network.

        measures: by name, what an evaluation measures on all tasks together, of `Decided`.
        """
        self.environment = environment
        super().__init__(
            model=model,
            inputs=(environment.actions,),
            outputs=environment.actions,
            feedback=1,
            loss=cross_entropy,
            metrics={"best_arm": accuracy},
            norm=("none",),
            path=path,
            measures=measures,
        )

    def init(self, generator: torch.Generator) -> Params:
        found = super().init(generator)
        if PRIOR not in found:
            raise InputError(
                "pulls are read as a set, which this network cannot",
                remedy="set model.head.name to transformer and algorithm.name to in_context",
            )
        return found

    def check(self, task: Any) -> None:
        check_environment(self.environment, task)

    def try_out(self, task: Any) -> Collection[str]:
        return {*super().try_out(Task(*task[:4])), "return"}

    def predict(self, params: Params, task: Any, context: Context, norm: Norm | None = None) -> Any:
        """[T, 1, arms]; in evaluations `Decided`, if the tasks are bandits."""
        logits = super().predict(params, task, context, norm)
        if context.ticket.work == "update" or not isinstance(task, Histories):
            return logits
        return Decided(logits, self.rollout(params, task, context.generator))

    def judge(self, prediction: Any, task: Any) -> dict[str, Tensor]:
        if isinstance(prediction, Tensor):
            return super().judge(prediction, task)
        found = super().judge(prediction.logits, task)
        return found | {"return": prediction.rollout.rewards.sum(2).mean(1)}

    def baselines(self, task: Any) -> dict[str, Tensor]:
        return self.environment.baselines(task)

    @torch.no_grad()
    def rollout(self, params: Params, task: Histories, generator: torch.Generator) -> Rollout:
        """A trial of each bandit, in which `params` read their own pulls."""
        env = self.environment
        state, observation = env.start(task, generator)
        steps = []
        for _ in range(env.horizon):
            chances = self._forward(params, task.query_x).softmax(-1)  # [T, 1, arms]
            drawn = torch.rand(len(chances), 1, 1, generator=generator).to(chances.device)
            chosen = (chances.cumsum(-1) < drawn).sum(-1).clamp(max=env.actions - 1)
            action = one_hot(chosen, env.actions).to(chances.dtype)
            state, following, reward, _ = env.step(task, state, action, generator)
            steps.append((observation, action, reward, torch.ones_like(reward)))
            observation = following
            features = call(self._part("body"), self.path, part(params, "body."), action)
            params = params | {
                SUPPORT: torch.cat([params[SUPPORT], features], 1),
                TARGETS: torch.cat([params[TARGETS], reward[..., None].to(chances.dtype)], 1),
            }
        return Rollout(*(torch.stack(parts, 2) for parts in zip(*steps, strict=True)))
