"""Delayed match to sample: whether a picture is the one that was shown a while ago."""

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


class Delays(NamedTuple):
    """T tasks."""

    steps: Tensor  # [T] from the sample to the probe, at least 1


class Trial(NamedTuple):
    """Where N trials are, and what they show."""

    time: Tensor  # [T, N] steps since the sample
    samples: Tensor  # [T, N] which picture was shown first
    probes: Tensor  # [T, N] which one is shown after the delay


@dataclass(frozen=True, kw_only=True)
class DelayedMatch(Generated):
    """See a sample, wait, see a probe, and say whether it is the same.

    The task is old in animal learning (Blough 1959). A policy sees one of `pictures` at first,
    nothing for a while, then a probe, which is the sample in half of the trials. The action at the
    probe pays 1 if it is right and ends the trial; earlier ones do nothing. The delay is a task's,
    the pictures are a trial's.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN
    actions: ClassVar[int] = 2  # another one, the same
    discrete: ClassVar[bool] = True

    name: Literal["delayed_match"] = "delayed_match"
    pictures: int = bounded(2, least=2, most=1000)
    """Pictures that a sample can be."""
    shortest: int = bounded(5, least=1, most=10_000)
    """Steps of the shortest delay."""
    longest: int = bounded(5, least=1, most=10_000)
    """Steps of the longest delay; tasks have all between them."""
    episodes: int = bounded(10, least=1, most=10**6)
    """Trials of each task for a gradient or a score."""
    discount: float = bounded(0.98, least=0, most=1)
    """Weight, in gradients and values, of a reward one step later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_longest(self.shortest, self.longest)

    @property
    def observations(self) -> int:
        return self.pictures

    @property
    def horizon(self) -> int:
        return self.longest + 1

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Delays:
        return Delays(torch.randint(self.shortest, self.longest + 1, (count,), generator=generator))

    def start(self, task: Delays, generator: torch.Generator) -> tuple[Trial, Tensor]:
        size, device = (len(task.steps), self.episodes), task.steps.device
        samples = torch.randint(self.pictures, size, generator=generator).to(device)
        further = torch.randint(1, self.pictures, size, generator=generator).to(device)
        differs = torch.randint(2, size, generator=generator).to(device)
        probes = (samples + further * differs) % self.pictures
        trial = Trial(torch.zeros_like(samples), samples, probes)
        return trial, self._seen(task, trial)

    def step(
        self, task: Delays, state: Trial, action: Tensor, generator: torch.Generator
    ) -> tuple[Trial, Tensor, Tensor, Tensor]:
        asked = state.time >= task.steps[:, None]
        right = (action.argmax(-1) == 1) == (state.samples == state.probes)
        trial = state._replace(time=state.time + 1)
        return trial, self._seen(task, trial), (asked & right).float(), asked

    def _seen(self, task: Delays, trial: Trial) -> Tensor:
        """[T, N, pictures]: the picture that is shown now."""
        first, last = trial.time == 0, trial.time >= task.steps[:, None]
        shown = torch.where(first, trial.samples, trial.probes)
        shown = torch.nn.functional.one_hot(shown, self.pictures).float()
        return shown * (first | last)[..., None]

    def baselines(self, task: Delays) -> dict[str, Tensor]:
        """The return of the right answer, and that of a guess."""
        best = torch.ones_like(task.steps, dtype=torch.float32)
        return {"guess": best / 2, "best": best}

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        return Episodes(environment=self, model=model, path=path, estimator=self.estimator)
