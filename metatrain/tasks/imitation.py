"""Goals that are known from demonstrations (Finn et al. 2017, arXiv 1709.04905)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import torch
from pydantic import Field

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import Adapt, ComputePath, Context, InputError, Model, Norm, Split
from metatrain.metrics import RETURN, Metric
from metatrain.names import counted, described
from metatrain.problems.advantages import Estimator
from metatrain.problems.imitation import Demonstrations, Imitator, demonstrated
from metatrain.tasks.generated import Generated
from metatrain.tasks.navigation import Navigation
from metatrain.tasks.pushing import Pushing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAVIGATION = Navigation()


@dataclass(frozen=True, kw_only=True)
class Imitation(Generated):
    """Do as an expert, whose goal is known only from a few demonstrations.

    A demonstration is `steps` observations of a scripted expert, each with the action that it took:
    its script's, with noise. An expert that has arrived stays. The support set is demonstrations of
    one goal, the query set further ones of the same goal. In evaluations the policy also acts by
    itself, by the network's actions: the return is the result.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN

    name: Literal["imitation"] = "imitation"
    environment: Annotated[Navigation | Pushing, Field(discriminator="name")] = NAVIGATION
    """The environment, `navigation` or `pushing`, with its keys."""
    demonstrations: int = bounded(10, least=1, most=EXAMPLES)
    """Demonstrations of the support set."""
    queries: int = bounded(10, least=1, most=EXAMPLES)
    """Demonstrations of the query set."""
    steps: int = bounded(20, least=1, most=EXAMPLES)
    """Steps of a demonstration."""
    noise: float = bounded(0.1, least=0, most=100)
    """Standard deviation of the expert's actions around its script's."""

    def __post_init__(self) -> None:
        check_bounds(self)
        estimator = self.environment.estimator
        if estimator != Estimator(gae=estimator.gae):
            raise InputError(
                "environment.estimator",
                got=described(estimator),
                expected="gae alone: imitation has neither values nor an entropy to learn",
            )

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Demonstrations:
        """x [T, N * steps, observations] and y [T, N * steps, actions], float32."""
        goals = self.environment.sample(generator, count, split)
        shown = replace(self.environment, episodes=self.demonstrations + self.queries)
        rollout = demonstrated(shown, goals, self.steps, self.noise, generator)
        x, y = rollout.observations.flatten(1, 2), rollout.actions.flatten(1, 2)
        known = self.demonstrations * self.steps
        return Demonstrations(x[:, :known], y[:, :known], x[:, known:], y[:, known:], *goals)

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Imitator:
        return Imitator(environment=self.environment, steps=self.steps, model=model, path=path)

    def picture(self, problem: Imitator, adapt: Adapt, context: Context) -> Figure:
        """Ways to three goals: the expert's, and the policy's before and after adaptation."""
        from metatrain import figures

        env, generator = self.environment, context.generator
        task = self.sample(generator, 3, context.ticket.split)
        adapted = adapt(task)
        walks = [(n, problem.rollout(phi, task, generator)) for n, phi in (adapted[0], adapted[-1])]
        expert = demonstrated(env, task, env.horizon, self.noise, generator)
        return figures.walks(
            task.places,
            [(step, w.observations[..., -2:], w.alive) for step, w in walks],
            f"Ways to goals that {counted(self.demonstrations, 'demonstration')} showed",
            expert=(expert.observations[..., -2:], expert.alive),
        )

    def describe(self) -> str:
        return (
            f"imitation of {counted(self.demonstrations, 'demonstration')} of {self.steps} steps, "
            f"noise {self.noise}, {self.environment.describe()}, acting without noise"
        )
