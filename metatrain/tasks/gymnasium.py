"""Environments of gymnasium, with varied attributes or a goal for their speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from threading import get_ident
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import ComputePath, InputError, Model, Norm, Split
from metatrain.metrics import RETURN, Metric
from metatrain.problems.advantages import Estimator
from metatrain.problems.episodes import Episodes
from metatrain.problems.functional import trying
from metatrain.tasks.generated import Generated

SEEDS = 2**31 - 1  # from which an episode's is drawn


class Worlds(NamedTuple):
    """T environments."""

    attributes: Tensor  # [T, len(varied)] their values
    goals: Tensor  # [T] the wanted speed or direction, else 0


class Running(NamedTuple):
    """N episodes of each world, in gymnasium's objects, which a step changes."""

    environments: list[Any]  # T * N
    over: np.ndarray  # [T * N] whether an episode ended


@dataclass(frozen=True, kw_only=True)
class Gymnasium(Generated):
    """Any registered environment whose observations are numbers, a distribution of tasks over it.

    Tasks differ in attributes of the environment, each drawn uniformly, or in a goal: the speed to
    run at, or the direction to run in (Finn et al. 2017, section 5.3: 0 to 2, forward or back). An
    episode starts by a seed that the ticket's generator draws, so tickets stay functions of their
    seed, if the environment is one of its. Numbers of an action are clipped to [-1, 1], which are
    the ends of the environment's range. It runs on the CPU, one environment after the other.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = RETURN

    name: Literal["gymnasium"] = "gymnasium"
    environment: str
    """Registered name of the environment, such as `Pendulum-v1` or `HalfCheetah-v5`."""
    varied: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Attributes of the environment that tasks vary: least and most, such as `{m: [0.5, 2]}`."""
    goal: Literal["none", "velocity", "direction"] = "none"
    """Reward: the environment's own, being at a speed, or running in a direction."""
    horizon: int = bounded(200, least=1, most=10_000)
    """Steps after which an episode ends."""
    episodes: int = bounded(20, least=1, most=10**6)
    """Episodes of each task that are played for a gradient or a score."""
    discount: float = bounded(0.99, least=0, most=1)
    """Weight, in gradients, of a reward one step later."""
    estimator: Estimator = field(default_factory=Estimator)
    """Advantages in gradients, such as `{gae: 0.95}`."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for name, (least, most) in self.varied.items():
            if not (name.isidentifier() and not name.startswith("_")):
                raise InputError("a name in varied", got=name, expected="that of an attribute")
            if not -1e30 < least <= most < 1e30:
                raise InputError(f"varied.{name}", got=[least, most], expected="least, most")
        if ":" in self.environment:  # gymnasium would import what is before it
            expected = "the name of a registered environment"
            raise InputError("environment", got=self.environment, expected=expected)

    @property
    def observations(self) -> int:
        return _spaces(self.environment)[0]

    @property
    def actions(self) -> int:
        return _spaces(self.environment)[1]

    @property
    def discrete(self) -> bool:
        return _spaces(self.environment)[2] is None

    def check(self, split: Split) -> None:
        """Refuse an environment that is not there, or lacks an attribute or a speed."""
        made = _make(self.environment)
        for name in self.varied:
            if not _varies(made.unwrapped, name):
                raise InputError(
                    "a name in varied",
                    got=name,
                    expected=f"a number that {self.environment} has as an attribute to change",
                )
        if self.goal != "none":
            made.reset(seed=0)
            if "x_velocity" not in made.step(made.action_space.sample())[4]:
                raise InputError(
                    f"{self.environment} does not tell its speed", remedy="set family.goal to none"
                )

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Worlds:
        drawn = torch.rand(count, len(self.varied) + 1, generator=generator)
        spans = torch.tensor([*self.varied.values()], dtype=torch.float32).view(-1, 2)
        attributes = torch.lerp(spans[:, 0], spans[:, 1], drawn[:, 1:])
        goals = {
            "none": 0 * drawn[:, 0],
            "velocity": 2 * drawn[:, 0],
            "direction": 1 - 2 * (drawn[:, 0] < 0.5).float(),
        }
        return Worlds(attributes, goals[self.goal])

    def start(self, task: Worlds, generator: torch.Generator) -> tuple[Running, Tensor]:
        size = len(task.goals), self.episodes
        seeds = torch.randint(SEEDS, size, generator=generator).flatten().tolist()
        values = task.attributes.tolist()
        environments = _several(self.environment, tuple(self.varied), get_ident(), len(seeds))
        seen = []
        for i, (environment, seed) in enumerate(zip(environments, seeds, strict=True)):
            for name, value in zip(self.varied, values[i // self.episodes], strict=True):
                setattr(environment.unwrapped, name, value)
            with self._trying():
                seen.append(environment.reset(seed=seed)[0])
        state = Running(environments, np.zeros(len(seeds), bool))
        return state, _tensor(seen, size, task.goals)

    def step(
        self, task: Worlds, state: Running, action: Tensor, generator: torch.Generator
    ) -> tuple[Running, Tensor, Tensor, Tensor]:
        _, _, span = _spaces(self.environment)
        chosen = action.flatten(0, 1).cpu().numpy()
        goals = task.goals.tolist()
        seen, rewards = [], []
        over = state.over.copy()
        for i, environment in enumerate(state.environments):
            if over[i]:
                seen.append(np.zeros(self.observations))
                rewards.append(0.0)
                continue
            taken = int(chosen[i].argmax()) if span is None else _within(chosen[i], span)
            with self._trying():
                observation, reward, ended, cut, told = environment.step(taken)
            seen.append(observation)
            rewards.append(self._reward(float(reward), told, goals[i // self.episodes]))
            over[i] = ended or cut
        size = action.shape[:2]
        paid, ended = (_tensor(each, size, task.goals)[..., 0] for each in (rewards, over))
        return state._replace(over=over), _tensor(seen, size, task.goals), paid, ended > 0

    def baselines(self, task: Worlds) -> dict[str, Tensor]:
        return {}

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Episodes:
        return Episodes(environment=self, model=model, path=path, estimator=self.estimator)

    def _trying(self) -> AbstractContextManager[None]:
        """Say in a sentence what an environment raises, such as for a mass of zero."""
        who = f"the environment {self.environment}"
        return trying(who, "in an episode", "family.varied, or choose another environment")

    def _reward(self, reward: float, told: Mapping[str, Any], goal: float) -> float:
        if self.goal == "none":
            return reward
        speed, cost = float(told["x_velocity"]), float(told.get("reward_ctrl", 0.0))
        return cost + (-abs(speed - goal) if self.goal == "velocity" else goal * speed)


def _make(name: str) -> Any:
    """A new environment of gymnasium, without its limit of steps."""
    if find_spec("gymnasium") is None:
        raise InputError(
            "family gymnasium needs the package gymnasium",
            remedy="pip install 'ray-metatrain[rl]'",
        )
    import gymnasium

    try:
        return gymnasium.make(name, max_episode_steps=-1, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"gymnasium cannot make the environment {name!r} ({reason})",
            remedy="give the name of one that is registered, with its packages installed",
        ) from error


@lru_cache(maxsize=64)
def _spaces(name: str) -> tuple[int, int, tuple[np.ndarray, np.ndarray] | None]:
    """Numbers of an observation and of an action, and an action's range; None: one is chosen."""
    made = _make(name)
    from gymnasium.spaces import Box, Discrete

    seen, taken = made.observation_space, made.action_space
    if not (isinstance(seen, Box) and len(seen.shape) == 1):
        raise InputError(
            f"observations of {name}", got=str(seen), expected="a Box of one dimension"
        )
    if isinstance(taken, Discrete) and taken.start == 0:
        return seen.shape[0], int(taken.n), None
    if isinstance(taken, Box) and len(taken.shape) == 1 and taken.is_bounded():
        return seen.shape[0], taken.shape[0], (taken.low, taken.high)
    expected = "a Discrete space, or a bounded Box of one dimension"
    raise InputError(f"actions of {name}", got=str(taken), expected=expected)


def _varies(environment: Any, name: str) -> bool:
    """Whether an attribute is a number that can be changed: some are computed from others."""
    value = getattr(environment, name, None)
    if not isinstance(value, int | float):
        return False
    try:
        setattr(environment, name, value)
    except AttributeError:
        return False
    return True


@lru_cache(maxsize=8)
def _kept(name: str, varied: tuple[str, ...], thread: int) -> list[Any]:
    """A thread's environments, which its episodes use one after the other."""
    return []


def _several(name: str, varied: tuple[str, ...], thread: int, count: int) -> list[Any]:
    kept = _kept(name, varied, thread)
    kept += [_make(name) for _ in range(count - len(kept))]
    return kept[:count]


def _within(action: np.ndarray, span: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Numbers in [-1, 1], outside of which they are clipped, as those of the environment."""
    least, most = span
    share = (action.clip(-1, 1) + 1) / 2
    return (least + share * (most - least)).astype(least.dtype)


def _tensor(each: Sequence[Any] | np.ndarray, size: Sequence[int], like: Tensor) -> Tensor:
    """Numbers of all episodes [T, N, ...], where the tasks are."""
    flat = torch.from_numpy(np.asarray(each, dtype=np.float32))
    return flat.view(*size, -1).to(like.device)
