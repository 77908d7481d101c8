"""Bernoulli bandits (Duan et al. 2016, arXiv 1611.02779, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, Model, Norm, Split
from metatrain.measures import Measure, mean
from metatrain.metrics import RETURN, Metric
from metatrain.problems.advantages import Estimator
from metatrain.problems.environment import Rollout
from metatrain.problems.episodes import Episodes, Played
from metatrain.tasks import exploration
from metatrain.tasks.generated import Generated

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Arms(NamedTuple):
    """T bandits."""

    probabilities: Tensor  # [T, arms] of a reward of 1


def regrets(actions: Tensor, task: Any) -> Tensor:
    """[T, N, pulls]: what a pull is expected to pay less than a pull of the best arm would.

    actions: [T, N, pulls, arms].
    task: with `probabilities`.
    """
    chances = (actions * task.probabilities[:, None, None]).sum(-1)
    return task.probabilities.amax(1)[:, None, None] - chances


def pseudo_regret(played: Played, task: Arms) -> Tensor:
    """[T] the regret of a trial's pulls; the mean over a task's trials.

    Bubeck and Cesa-Bianchi 2012, arXiv 1204.5721, section 1.
    """
    return regrets(played.rollout.actions, task).sum(2).mean(1)


@dataclass(frozen=True, kw_only=True)
class Bandit(Generated):
    """An episode is a trial of `pulls` pulls of `arms` arms.

    Each arm pays 1 with a probability p ~ U[0, 1]. The return is the reward of the whole trial;
    that of a random choice is pulls / 2. A policy sees nothing. With a memory it sees its actions
    and their rewards.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN
    observations: ClassVar[int] = 1
    discrete: ClassVar[bool] = True

    name: Literal["bandit"] = "bandit"
    arms: int = bounded(5, least=2, most=10_000)
    """Arms of a bandit."""
    pulls: int = bounded(10, least=1, most=10_000)
    """Pulls of a trial."""
    episodes: int = bounded(10, least=1, most=10**6)
    """Trials of each bandit that are played for a gradient or a score."""
    discount: float = bounded(0.99, least=0, most=1)
    """Weight, in gradients, of a reward one pull later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def actions(self) -> int:
        return self.arms

    @property
    def horizon(self) -> int:
        return self.pulls

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Arms:
        return Arms(torch.rand(count, self.arms, generator=generator))

    def start(self, task: Arms, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = len(task.probabilities), self.episodes, 1
        nothing = torch.ones(size, device=task.probabilities.device)
        return nothing, nothing

    def step(
        self, task: Arms, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chance = (action * task.probabilities[:, None]).sum(-1)
        reward = (torch.rand(chance.shape, generator=generator).to(chance.device) < chance).float()
        return state, state, reward, torch.zeros_like(reward, dtype=torch.bool)

    def baselines(self, task: Arms) -> dict[str, Tensor]:
        """Expected returns of random pulls, of who knows the best arm, and of strategies.

        The strategies are those of metatrain.tasks.exploration, in as many trials.
        """
        chances = task.probabilities
        found = exploration.strategies(chances, self.pulls, self.episodes)
        return {
            "random": self.pulls * chances.mean(1),
            "best_arm": self.pulls * chances.amax(1),
            **{name: each.sum(1).to(chances.device) for name, each in found.items()},
        }

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        return Episodes(
            environment=self,
            model=model,
            path=path,
            estimator=self.estimator,
            measures={"regret": Measure(pseudo_regret, mean)},
        )

    def picture(self, problem: Episodes, adapt: Adapt, context: Context) -> Figure:
        """The mean reward of each pull over many bandits, and the regret up to it."""
        task = self.sample(context.generator, 500, context.ticket.split)
        adapted = adapt(task)
        shown = [adapted[0], adapted[-1]] if len(adapted) > 1 else adapted
        return self.trials(
            task, [(n, problem.rollout(params, task, context.generator)) for n, params in shown]
        )

    def trials(self, task: Any, played: Sequence[tuple[int, Rollout]]) -> Figure:
        """Show trials of tasks with `probabilities`, each with the inner steps before it."""
        from metatrain import figures

        chances, best = task.probabilities, task.probabilities.amax(1)
        paid = exploration.strategies(chances, self.pulls, self.episodes)
        paid["random"] = chances.mean(1)[:, None].expand(-1, self.pulls)
        others = {name: (best[:, None].cpu() - p.cpu()).mean(0) for name, p in paid.items()}
        return figures.trial_and_regret(
            [(n, rollout.rewards.mean((0, 1))) for n, rollout in played],
            {"random": float(chances.mean()), "best arm": float(best.mean())},
            [(n, regrets(rollout.actions, task).mean((0, 1))) for n, rollout in played],
            others,
            f"{self.arms}-armed bandits, {self.pulls} pulls",
        )

    def describe(self) -> str:
        return f"bandit {self.arms} arms {self.pulls} pulls, {self.episodes} trials/task"
