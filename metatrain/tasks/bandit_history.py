"""Bandits known from somebody else's pulls (Lee et al. 2023, arXiv 2306.14892)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, Model, Norm, Split
from metatrain.measures import Measure, mean
from metatrain.metrics import RETURN, Metric, cross_entropy
from metatrain.problems.decisions import Decided, Decisions, Histories
from metatrain.tasks.bandit import Bandit, regrets
from metatrain.tasks.generated import Generated, check_shots, drawn_shots

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class BanditHistory(Generated):
    """Predict the best arm of a bandit from pulls of somebody else; in evaluations, pull arms.

    Each arm pays 1 with a probability p ~ U[0, 1]. The pulls that are read are independent of each
    other: a task's probabilities of the arms are drawn from a Dirichlet distribution, and mixed
    with one arm in a share from U[0, 1], as in the paper's bandits. In evaluations the network then
    plays a trial of `pulls` pulls of its own. The return is the reward of the trial.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN

    name: Literal["bandit_history"] = "bandit_history"
    arms: int = bounded(5, least=2, most=1000)
    """Arms of a bandit."""
    pulls: int = bounded(10, least=1, most=10_000)
    """Pulls of a trial in evaluations."""
    shots: tuple[int, int] = bounded((0, 10), least=0, most=EXAMPLES)
    """Least and most pulls that are read of a bandit; those of a ticket have as many."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_shots(self.shots)

    @cached_property
    def bandit(self) -> Bandit:
        """The environment: one trial of each bandit."""
        return Bandit(arms=self.arms, pulls=self.pulls, episodes=1)

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Histories:
        """support [T, S, arms] and [T, S, 1], float32."""
        shots = drawn_shots(generator, self.shots)
        chances = torch.rand(count, self.arms, generator=generator)
        spread = torch.empty(count, self.arms).exponential_(generator=generator)
        spread = spread / spread.sum(1, keepdim=True)
        favourite = one_hot(torch.randint(self.arms, (count,), generator=generator), self.arms)
        share = torch.rand(count, 1, generator=generator)
        policy = ((1 - share) * spread + share * favourite).cumsum(1)[:, None]  # [T, 1, arms]
        drawn = torch.rand(count, shots, 1, generator=generator)
        arms = (policy < drawn).sum(-1).clamp(max=self.arms - 1)
        paid = torch.rand(count, shots, generator=generator) < chances.gather(1, arms)
        nothing = torch.zeros(count, 1, self.arms)
        x, y = one_hot(arms, self.arms).float(), paid.float()[..., None]
        return Histories(x, y, nothing, chances.argmax(1, keepdim=True), chances)

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Decisions:
        return Decisions(
            environment=self.bandit,
            model=model,
            path=path,
            measures={"regret": Measure(regret, mean), "excess": Measure(excess, mean)},
        )

    def picture(self, problem: Decisions, adapt: Adapt, context: Context) -> Figure:
        """The mean reward of each pull over many bandits, and the regret up to it."""
        task = self.sample(context.generator, 500, context.ticket.split)
        adapted = adapt(task)
        played = [
            (n, problem.rollout(params, task, context.generator))
            for n, params in (adapted[0], adapted[-1])
        ]
        return self.bandit.trials(task, played)


def regret(decided: Decided, task: Histories) -> Tensor:
    """[T] the pseudo-regret of a trial."""
    return regrets(decided.rollout.actions, task).sum(2).mean(1)


def excess(decided: Decided, task: Histories) -> Tensor:
    """[T] nats of the best arm above those of the exact posterior."""
    best = posterior(task)[:, None].clamp(min=1e-300).log()
    return cross_entropy(decided.logits.double(), task.query_y) - cross_entropy(best, task.query_y)


def posterior(task: Any) -> Tensor:
    """[T, arms]: the probability that an arm is best, given the pulls that are read.

    An arm that paid s times in n pulls has p ~ Beta(s + 1, n - s + 1), so that it is best with

        int f_k(p) prod_{j != k} F_j(p) dp,

    of densities f and distribution functions F. Both are polynomials in p, whose integral the
    quadrature of Gauss and Legendre gives exactly.
    """
    from scipy.special import betainc, betaln, xlog1py, xlogy

    x, y = task.support_x.cpu().double().numpy(), task.support_y.cpu().double().numpy()
    pulled, paid = (each.sum(1)[..., None] for each in (x, x * y))  # [T, arms, 1]
    arms, degree = x.shape[2], x.shape[1] + x.shape[2]
    nodes, weights = np.polynomial.legendre.leggauss(degree // 2 + 1)
    p = (nodes + 1) / 2
    a, b = paid + 1, pulled - paid + 1
    density = np.exp(xlogy(a - 1, p) + xlog1py(b - 1, -p) - betaln(a, b))
    below = betainc(a, b, p)
    others = np.stack([np.delete(below, k, 1).prod(1) for k in range(arms)], 1)
    return torch.from_numpy((density * others * weights / 2).sum(-1)).to(task.query_y.device)
