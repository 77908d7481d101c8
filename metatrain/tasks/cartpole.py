"""CartPole with varied physics (Barto, Sutton, Anderson 1983; the numbers of gymnasium)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import radians
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, InputError, Model, Norm, Split
from metatrain.metrics import RETURN, Metric
from metatrain.problems.advantages import Estimator
from metatrain.problems.episodes import Episodes
from metatrain.problems.trials import in_trials
from metatrain.tasks.generated import Generated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = 0.02  # of a step
FARTHEST, STEEPEST = 2.4, radians(12)  # of the cart and of the pole: beyond them an episode ends
STARTS = 0.05  # the largest number of a state at the start


class Physics(NamedTuple):
    """T carts with their poles."""

    gravity: Tensor  # [T] m/s^2
    cart_mass: Tensor  # [T] kg
    pole_mass: Tensor  # [T] kg
    half_length: Tensor  # [T] m, of the pole
    force: Tensor  # [T] N to the right of the second action, to the left of the first


@dataclass(frozen=True, kw_only=True)
class CartPole(Generated):
    """Balance a pole on a cart whose physics, and which button pushes where, are not known.

    Steps and ends are those of gymnasium's CartPole-v1. Each step pays 1. A policy sees position,
    speed, angle and its speed, position and angle as shares of those at which an episode ends.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN
    observations: ClassVar[int] = 4
    actions: ClassVar[int] = 2
    discrete: ClassVar[bool] = True

    name: Literal["cartpole"] = "cartpole"
    gravity: tuple[float, float] = bounded((5.0, 15.0), above=0, most=1000)
    """Least and most gravity, in m/s^2."""
    cart_mass: tuple[float, float] = bounded((0.5, 2.0), above=0, most=1000)
    """Least and most mass of the cart, in kg."""
    pole_mass: tuple[float, float] = bounded((0.05, 0.2), above=0, most=1000)
    """Least and most mass of the pole, in kg."""
    half_length: tuple[float, float] = bounded((0.25, 1.0), above=0, most=1000)
    """Least and most half of the pole's length, in m."""
    force: tuple[float, float] = bounded((5.0, 15.0), above=0, most=1000)
    """Least and most force of a push, in N."""
    reversed: float = bounded(0.5, least=0, most=1)
    """Share of the carts whose buttons are exchanged."""
    horizon: int = bounded(200, least=1, most=10_000)
    """Steps after which an episode ends."""
    trial: int = bounded(1, least=1, most=10_000)
    """Episodes of a trial, over which a memory lasts."""
    episodes: int = bounded(20, least=1, most=10**6)
    """Trials of each cart that are played for a gradient or a score."""
    discount: float = bounded(0.99, least=0, most=1)
    """Weight, in gradients, of a reward one step later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in Physics._fields:
            span = getattr(self, name)
            if span[0] > span[1]:
                raise InputError(name, got=list(span), expected="the least value first")

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Physics:
        drawn = torch.rand(count, 6, generator=generator).unbind(1)
        spans = (getattr(self, name) for name in Physics._fields)
        physics = Physics(*(a + (b - a) * u for (a, b), u in zip(spans, drawn[:5], strict=True)))
        sign = 1 - 2 * (drawn[5] < self.reversed).float()
        return physics._replace(force=sign * physics.force)

    def start(self, task: Physics, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        drawn = torch.rand(len(task.force), self.episodes, 4, generator=generator)
        state = STARTS * (2 * drawn.to(task.force.device) - 1)
        return state, _seen(state)

    def step(
        self, task: Physics, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gravity, cart, pole, length, force = (leaf[:, None] for leaf in task)
        _, speed, angle, turning = state.unbind(-1)
        sine, cosine, mass = angle.sin(), angle.cos(), cart + pole
        push = (action[..., 1] - action[..., 0]) * force
        pushed = (push + pole * length * turning**2 * sine) / mass
        turned = (gravity * sine - cosine * pushed) / (length * (4 / 3 - pole * cosine**2 / mass))
        moved = pushed - pole * length * turned * cosine / mass
        change = torch.stack([speed, moved, turning, turned], -1)
        state = state + SECONDS * change
        ended = (state[..., 0].abs() > FARTHEST) | (state[..., 2].abs() > STEEPEST)
        return state, _seen(state), torch.ones_like(push), ended

    def baselines(self, task: Physics) -> dict[str, Tensor]:
        """Returns of random pushes, and of who knows the buttons and pushes below the pole."""
        found = {}
        for name in ("random", "controller"):
            generator = torch.Generator().manual_seed(0)
            state, _ = self.start(task, generator)
            alive = torch.ones(state.shape[:2], device=state.device)
            total = torch.zeros_like(alive)
            for _ in range(self.horizon):
                right = _leans_right(state) == (task.force[:, None] > 0)
                drawn = torch.rand(alive.shape, generator=generator).to(state.device) < 0.5
                chosen = drawn if name == "random" else right
                action = torch.stack([~chosen, chosen], -1).to(state.dtype)
                state, _, reward, ended = self.step(task, state, action, generator)
                total, alive = total + reward * alive, alive * ~ended
            found[name] = total.mean(1)
        return found

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        environment = in_trials(self, self.trial)
        return Episodes(environment=environment, model=model, path=path, estimator=self.estimator)

    def picture(self, problem: Episodes, adapt: Adapt, context: Context) -> Figure:
        """The share of 100 carts whose pole stands after each step, before and after adaptation.

        Of trials of several episodes it is the share that go on.
        """
        from metatrain import figures

        task = self.sample(context.generator, 100, context.ticket.split)
        adapted = adapt(task)
        shown = [adapted[0], adapted[-1]] if len(adapted) > 1 else adapted
        lines = [
            (step, problem.rollout(params, task, context.generator).alive.mean((0, 1)))
            for step, params in shown
        ]
        return figures.trial(
            lines,
            {},
            "CartPole with varied physics and buttons",
            ("step of the episode", "share of poles that stand")
            if self.trial == 1
            else ("step of the trial", "share of trials that go on"),
        )


def _seen(state: Tensor) -> Tensor:
    x, speed, angle, turning = state.unbind(-1)
    return torch.stack([x / FARTHEST, speed, angle / STEEPEST, turning], -1)


def _leans_right(state: Tensor) -> Tensor:
    """Whether the pole will fall to the right, or the cart is too far there."""
    x, speed, angle, turning = state.unbind(-1)
    return angle + 0.5 * turning + 0.02 * x + 0.05 * speed > 0
