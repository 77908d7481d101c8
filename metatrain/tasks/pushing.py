"""Pushing an object to a goal in the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, Model, Norm, Split
from metatrain.metrics import RETURN, Metric
from metatrain.problems.advantages import Estimator
from metatrain.problems.episodes import Episodes
from metatrain.tasks.generated import Generated
from metatrain.tasks.navigation import Goals, Navigation, walked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FASTEST = 0.1  # of the pusher, in each coordinate and step
RADIUS = 0.1  # of the object, a disc
AWAY = 0.3  # of the pusher from the object at the start
NEAR = 0.02  # in each coordinate: there
ROUND = 1.3 * RADIUS  # at which the expert goes round the object
TURN = 0.7  # of the expert around the object in a step, in radians
PUSH = 0.7 * FASTEST  # of the object in a step, by the expert
ALIGNED = 0.2  # radians from the line through object and goal at which the expert pushes


@dataclass(frozen=True, kw_only=True)
class Pushing(Generated):
    """Push a disc from the origin to a goal ~ U[-0.5, 0.5]^2 that is not seen.

    The pusher is a point. An episode starts with it 0.3 from the disc, in any direction. An action
    is its velocity, as in `Navigation`. A disc of radius 0.1 that the pusher would be inside of
    moves until the pusher touches its edge: there is much friction and no inertia. A policy sees
    both places. The reward is minus the distance of the disc from the goal; an episode ends within
    0.02 of the goal in both coordinates, or after `horizon` steps.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN
    observations: ClassVar[int] = 4
    actions: ClassVar[int] = 2
    discrete: ClassVar[bool] = False

    name: Literal["pushing"] = "pushing"
    horizon: int = bounded(50, least=1, most=10_000)
    """Steps after which an episode ends."""
    episodes: int = bounded(20, least=1, most=10**6)
    """Episodes of each goal that are played for a gradient or a score."""
    discount: float = bounded(0.99, least=0, most=1)
    """Weight, in gradients, of a reward one step later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Goals:
        return Navigation().sample(generator, count, split)

    def start(self, task: Goals, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        angle = 2 * math.pi * torch.rand(len(task.places), self.episodes, generator=generator)
        pusher = AWAY * _direction(angle)
        both = torch.cat([pusher, torch.zeros_like(pusher)], -1).to(task.places.device)
        return both, both

    def step(
        self, task: Goals, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        pusher, disc = state.split(2, -1)
        pusher = pusher + FASTEST * action.clamp(-1, 1)
        apart = disc - pusher
        distance = apart.norm(dim=-1, keepdim=True)
        disc = disc + apart / distance.clamp(min=1e-6) * (RADIUS - distance).clamp(min=0)
        away = disc - task.places[:, None]
        both = torch.cat([pusher, disc], -1)
        return both, both, -away.norm(dim=-1), (away.abs() < NEAR).all(-1)

    def expert(self, task: Goals, state: Tensor) -> Tensor:
        """Go round the disc to the side that is opposite of the goal, then push."""
        pusher, disc = state.split(2, -1)
        way = task.places[:, None] - disc
        left = way.norm(dim=-1, keepdim=True)
        ahead = way / left.clamp(min=1e-6)
        push = disc + ahead * (left.clamp(max=PUSH) - RADIUS) - pusher
        now, behind = _angle(pusher - disc), _angle(-ahead)
        turn = torch.remainder(behind - now + math.pi, 2 * math.pi) - math.pi
        walk = disc + ROUND * _direction(now + turn.clamp(-TURN, TURN)) - pusher
        pushes = (push.abs().amax(-1) <= FASTEST) | (turn.abs() < ALIGNED)
        velocity = torch.where(pushes[..., None], push, walk) / FASTEST
        velocity = velocity / velocity.abs().amax(-1, keepdim=True).clamp(min=1)
        return velocity * (way.abs() >= NEAR).any(-1, keepdim=True)

    def baselines(self, task: Goals) -> dict[str, Tensor]:
        """The return of not touching the disc."""
        return {"standing_still": -self.horizon * task.places.norm(dim=-1)}

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        return Episodes(environment=self, model=model, path=path, estimator=self.estimator)

    def picture(self, problem: Episodes, adapt: Adapt, context: Context) -> Figure:
        """Ways of the disc to three goals, before and after adaptation."""
        from metatrain import figures

        task, walks = walked(self, problem, adapt, context)
        return figures.walks(
            task.places,
            [(step, w.observations[..., 2:], w.alive) for step, w in walks],
            f"A disc pushed to goals, each adaptation step from {self.episodes} episodes",
        )

    def describe(self) -> str:
        return (
            f"pushing a disc, horizon {self.horizon}, reward -distance, {self.episodes} "
            "episodes/task"
        )


def _direction(angle: Tensor) -> Tensor:
    """[..., 2] of length 1."""
    return torch.stack([angle.cos(), angle.sin()], -1)


def _angle(direction: Tensor) -> Tensor:
    """Angles of directions [..., 2], in radians."""
    return torch.atan2(direction[..., 1], direction[..., 0])
