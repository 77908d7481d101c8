"""Two-dimensional navigation (Finn et al. 2017, section 5.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, Model, Norm, Split, TaskFamily
from metatrain.metrics import RETURN, Metric
from metatrain.problems.advantages import Estimator
from metatrain.problems.environment import Rollout
from metatrain.problems.episodes import Episodes
from metatrain.tasks.generated import Generated

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FASTEST = 0.1  # in each coordinate and step
NEAR = 0.01  # in each coordinate: there


class Goals(NamedTuple):
    """T places to go to."""

    places: Tensor  # [T, 2]


@dataclass(frozen=True, kw_only=True)
class Navigation(Generated):
    """Walk in the plane from the origin to a goal ~ U[-0.5, 0.5]^2 that is not seen.

    An action is a velocity of at most 0.1 in each coordinate, given as a number that is clipped to
    [-1, 1] as by the authors' normalised environment; the reward is minus the distance to the goal,
    as in their code (the paper says its square); an episode ends within 0.01 of the goal in both
    coordinates, or after `horizon` steps.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN
    observations: ClassVar[int] = 2
    actions: ClassVar[int] = 2
    discrete: ClassVar[bool] = False

    name: Literal["navigation"] = "navigation"
    horizon: int = bounded(100, least=1, most=10_000)
    """Steps after which an episode ends."""
    episodes: int = bounded(20, least=1, most=10**6)
    """Episodes of each goal that are walked for a gradient or a score."""
    discount: float = bounded(0.99, least=0, most=1)
    """Weight, in gradients, of a reward one step later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Goals:
        return Goals(torch.rand(count, 2, generator=generator) - 0.5)

    def start(self, task: Goals, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        origin = torch.zeros(len(task.places), self.episodes, 2, device=task.places.device)
        return origin, origin

    def step(
        self, task: Goals, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        place = state + FASTEST * action.clamp(-1, 1)
        away = place - task.places[:, None]
        return place, place, -away.norm(dim=-1), (away.abs() < NEAR).all(-1)

    def expert(self, task: Goals, state: Tensor) -> Tensor:
        """Go to the goal as fast as each coordinate allows."""
        return ((task.places[:, None] - state) / FASTEST).clamp(-1, 1)

    def baselines(self, task: Goals) -> dict[str, Tensor]:
        """The return of not moving at all."""
        return {"standing_still": -self.horizon * task.places.norm(dim=-1)}

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        return Episodes(environment=self, model=model, path=path, estimator=self.estimator)

    def picture(self, problem: Episodes, adapt: Adapt, context: Context) -> Figure:
        """Walks to three goals, before and after adaptation."""
        from metatrain import figures

        task, walks = walked(self, problem, adapt, context)
        return figures.walks(
            task.places,
            [(step, w.observations, w.alive) for step, w in walks],
            f"Walks to goals, each adaptation step from {self.episodes} episodes",
        )

    def describe(self) -> str:
        return (
            f"2D navigation, horizon {self.horizon}, reward -distance, {self.episodes} "
            "episodes/task"
        )


def walked(
    family: TaskFamily, problem: Episodes, adapt: Adapt, context: Context
) -> tuple[Goals, list[tuple[int, Rollout]]]:
    """Three goals, and episodes before adaptation, after its first step and after its last one."""
    task: Goals = family.sample(context.generator, 3, context.ticket.split)
    adapted = adapt(task)
    shown = [adapted[0], *adapted[1:-1][:1], adapted[-1]] if len(adapted) > 1 else adapted
    return task, [(step, problem.rollout(phi, task, context.generator)) for step, phi in shown]
