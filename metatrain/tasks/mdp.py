"""Random tabular MDPs (Duan et al. 2016, arXiv 1611.02779, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, Model, Norm, Split
from metatrain.metrics import RETURN, Metric
from metatrain.problems.advantages import Estimator
from metatrain.problems.episodes import Episodes
from metatrain.problems.trials import in_trials
from metatrain.tasks.generated import Generated

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Tables(NamedTuple):
    """T MDPs."""

    rewards: Tensor  # [T, states, actions] means
    chances: Tensor  # [T, states, actions, states] of the next state


@dataclass(frozen=True, kw_only=True)
class MDP(Generated):
    """A trial is some episodes of an MDP that is not known, each from the first state on.

    The reward of an action in a state is N(m, 1) with a mean m ~ N(1, 1), and the next state is
    drawn from a flat Dirichlet distribution, both drawn for each MDP. A policy sees the state.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN
    discrete: ClassVar[bool] = True

    name: Literal["mdp"] = "mdp"
    states: int = bounded(10, least=2, most=1000)
    """States of an MDP."""
    actions: int = bounded(5, least=2, most=1000)
    """Actions in each state."""
    horizon: int = bounded(10, least=1, most=10_000)
    """Steps of an episode."""
    trial: int = bounded(10, least=1, most=10_000)
    """Episodes of a trial, over which a memory lasts."""
    episodes: int = bounded(2, least=1, most=10**6)
    """Trials of each MDP that are played for a gradient or a score."""
    discount: float = bounded(0.99, least=0, most=1)
    """Weight, in gradients, of a reward one step later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def observations(self) -> int:
        return self.states

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Tables:
        size = count, self.states, self.actions
        rewards = 1 + torch.randn(size, generator=generator)
        # Exponential variables over their sum: uniform on the simplex.
        waits = -torch.rand(*size, self.states, generator=generator).clamp(min=1e-30).log()
        return Tables(rewards, waits / waits.sum(-1, keepdim=True))

    def start(self, task: Tables, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = len(task.rewards), self.episodes, self.states
        first = torch.zeros(size, device=task.rewards.device)
        first[..., 0] = 1
        return first, first

    def step(
        self, task: Tables, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        size = state.shape[:2]
        noise = torch.randn(size, generator=generator).to(state.device)
        drawn = torch.rand(size, generator=generator).to(state.device)
        mean = torch.einsum("tns,tna,tsa->tn", state, action, task.rewards)
        chances = torch.einsum("tns,tna,tsaz->tnz", state, action, task.chances)
        chosen = (chances.cumsum(-1) < drawn[..., None]).sum(-1).clamp(max=self.states - 1)
        following = torch.nn.functional.one_hot(chosen, self.states).to(state.dtype)
        return following, following, mean + noise, torch.zeros_like(chosen, dtype=torch.bool)

    def baselines(self, task: Tables) -> dict[str, Tensor]:
        """Expected returns of random actions, and of who knows the MDP (value iteration)."""
        random = optimal = torch.zeros_like(task.rewards[..., 0])
        for _ in range(self.horizon):
            random = (task.rewards + (task.chances @ random[:, None, :, None])[..., 0]).mean(2)
            optimal = (task.rewards + (task.chances @ optimal[:, None, :, None])[..., 0]).amax(2)
        return {"random": random[:, 0], "optimal": optimal[:, 0]}

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        environment = in_trials(self, self.trial)
        return Episodes(environment=environment, model=model, path=path, estimator=self.estimator)

    def picture(self, problem: Episodes, adapt: Adapt, context: Context) -> Figure:
        """The return of each episode of trials of many MDPs."""
        from metatrain import figures

        task = self.sample(context.generator, 100, context.ticket.split)
        step, params = adapt(task)[-1]
        rewards = problem.rollout(params, task, context.generator).rewards.mean((0, 1))
        levels = {name: float(value.mean()) for name, value in self.baselines(task).items()}
        return figures.trial(
            [(step, rewards.view(self.trial, self.horizon).sum(1))],
            levels,
            f"MDPs of {self.states} states: mean return of each of {self.trial} episodes",
            ("episode of the trial", "mean return"),
        )
