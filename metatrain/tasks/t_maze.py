"""T-mazes, in which a cue at the start says where to turn at the end (Bakker 2002)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import ComputePath, Model, Norm, Split
from metatrain.metrics import RETURN, Metric
from metatrain.problems.advantages import Estimator
from metatrain.problems.episodes import Episodes
from metatrain.tasks.generated import Generated, check_longest

FOUND, LOST = 4.0, -0.1  # rewards, as in the paper


class Corridors(NamedTuple):
    """T mazes."""

    lengths: Tensor  # [T] steps from the start to the junction


class Walk(NamedTuple):
    """Where N walks are, and what they must remember."""

    places: Tensor  # [T, N] steps from the start
    sides: Tensor  # [T, N] 0 or 1: where the goal is


@dataclass(frozen=True, kw_only=True)
class TMaze(Generated):
    """Walk a corridor to its end, and turn to the side that a cue at the start has shown.

    Bakker 2002 (Reinforcement learning with long short-term memory). A policy sees the cue at the
    start, then only whether it is in the corridor or at the junction. Actions are to go ahead and
    to turn to either side. The right turn at the junction pays 4, the wrong one -0.1; both end the
    episode. Not to move costs 0.1. The length of the corridor is a task's, the side an episode's.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN
    observations: ClassVar[int] = 4
    actions: ClassVar[int] = 3
    discrete: ClassVar[bool] = True

    name: Literal["t_maze"] = "t_maze"
    shortest: int = bounded(10, least=1, most=10_000)
    """Steps of the shortest corridor."""
    longest: int = bounded(10, least=1, most=10_000)
    """Steps of the longest corridor; tasks have all lengths between them."""
    slack: int = bounded(10, least=0, most=10_000)
    """Steps after which an episode ends, beyond those that the longest corridor needs."""
    episodes: int = bounded(10, least=1, most=10**6)
    """Walks through each maze for a gradient or a score."""
    discount: float = bounded(0.98, least=0, most=1)
    """Weight, in gradients and values, of a reward one step later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_longest(self.shortest, self.longest)

    @property
    def horizon(self) -> int:
        return self.longest + 1 + self.slack

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Corridors:
        return Corridors(
            torch.randint(self.shortest, self.longest + 1, (count,), generator=generator)
        )

    def start(self, task: Corridors, generator: torch.Generator) -> tuple[Walk, Tensor]:
        size = len(task.lengths), self.episodes
        sides = torch.randint(2, size, generator=generator).to(task.lengths.device)
        walk = Walk(torch.zeros_like(sides), sides)
        return walk, self._seen(task, walk)

    def step(
        self, task: Corridors, state: Walk, action: Tensor, generator: torch.Generator
    ) -> tuple[Walk, Tensor, Tensor, Tensor]:
        chosen = action.argmax(-1)
        at_end = state.places >= task.lengths[:, None]
        moves, turns = (chosen == 0) & ~at_end, (chosen > 0) & at_end
        walk = state._replace(places=state.places + moves.long())
        found = turns & (chosen - 1 == state.sides)
        reward = FOUND * found + LOST * ~(found | moves)
        return walk, self._seen(task, walk), reward, turns

    def _seen(self, task: Corridors, walk: Walk) -> Tensor:
        """[T, N, 4]: the cue of either side at the start, in the corridor, at the junction."""
        start, junction = walk.places == 0, walk.places >= task.lengths[:, None]
        cues = [start & (walk.sides == side) for side in (0, 1)]
        return torch.stack([*cues, ~start & ~junction, junction], -1).float()

    def baselines(self, task: Corridors) -> dict[str, Tensor]:
        """The return of the right way, and that of a guess at the junction."""
        best = torch.full_like(task.lengths, FOUND, dtype=torch.float32)
        return {"guess": (best + LOST) / 2, "best": best}

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        return Episodes(environment=self, model=model, path=path, estimator=self.estimator)
