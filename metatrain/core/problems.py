"""The contract of problems: a family bound to a model, and what some of them can besides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from metatrain.core.attacks import Attack
from metatrain.core.values import ComputePath, Context, Norm, Params, count, take
from metatrain.errors import InputError
from metatrain.measures import Measure


class Problem(Protocol):
    """A family bound to a model: all that an algorithm knows of data and network.

    `params` are all that a network needs to predict for T tasks: each tensor has a leading T. Among
    them may be what is no weight: the state of a memory, or running statistics.
    """

    @property
    def path(self) -> ComputePath: ...

    @property
    def norm(self) -> Sequence[Norm]:
        """The examples whose statistics normalise a query example, training's first.

        ("none",) if the network normalises nothing by statistics.
        """
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Draw the parameters that are trained, without a leading T."""
        ...

    def frozen(self, generator: torch.Generator) -> Params:
        """Draw the parameters that are not trained: those with `requires_grad_(False)`."""
        ...

    def state(self) -> Params:
        """The start of what training tracks: running statistics if the norm is "running"."""
        ...

    def statistics(self, params: Params, tasks: Any) -> Params:
        """The state that these tasks alone would give; of each task with its parameters."""
        ...

    def support_loss(
        self, params: Params, task: Any, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        """[T] mean loss on the support set.

        batch: [T, B] indices of a mini-batch, by default all of the support set.
        """
        ...

    @property
    def measures(self) -> Mapping[str, Measure]:
        """Measures of all tasks together, by name."""
        ...

    def predict(self, params: Params, task: Any, context: Context, norm: Norm | None = None) -> Any:
        """Predict the query set: [T, Q, *out], or of a policy the episodes that it plays.

        norm: whose statistics normalise the query examples; the first of `self.norm` by default.
        """
        ...

    def judge(self, prediction: Any, task: Any) -> dict[str, Tensor]:
        """Measure a prediction, [T] each: "loss", which has a graph, and the metrics."""
        ...

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        """Predict the query set, then judge the prediction."""
        ...

    def check(self, task: Any) -> None:
        """Raise InputError if the tasks do not fit this problem."""
        ...

    def try_out(self, task: Any) -> Collection[str]:
        """Compute a few tasks and return the names of the metrics.

        Raises InputError if the network, the loss or a metric cannot compute them.
        """
        ...

    def baselines(self, task: Any) -> dict[str, Tensor]:
        """[T] each: the metric of methods that learn nothing."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """A problem of labelled examples, on which an algorithm may compute by itself."""

    @property
    def classes(self) -> bool:
        """Whether labels are classes; else they are numbers."""
        ...

    def support_size(self, task: Any) -> int:
        """S, from which mini-batches are drawn."""
        ...

    def embed(self, params: Params, task: Any, context: Context) -> tuple[Tensor, Tensor]:
        """Features [T, S, F] and labels [T, S, feedback] of the support examples.

        Classes are one-hot vectors.
        """
        ...

    def with_loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Problem:
        """The same problem with another loss [T] of predictions [T, Q, *out] and labels [T, Q]."""
        ...

    def read(self, params: Params, task: Any, context: Context) -> Iterator[Params]:
        """Yield `params`, then with the network's memory after each support example."""
        ...


@runtime_checkable
class Attackable(Problem, Protocol):
    """A problem of examples that an attack can move."""

    @property
    def pixels(self) -> bool:
        """Whether examples, as the network gets them, are numbers in 0..1."""
        ...

    @property
    def inputs(self) -> Sequence[int]:
        """The shape of an example."""
        ...

    def in_floats(self, task: Any) -> tuple[Attackable, Any]:
        """The tasks with examples as the network gets them, and the problem of such tasks."""
        ...

    def attack_support(self, attack: Attack, params: Params, task: Any, context: Context) -> Any:
        """The tasks, in floats, with support examples that `params` fit worse."""
        ...

    def attack_queries(self, attack: Attack) -> Problem:
        """The same problem; it moves query examples against the parameters that predict them.

        It takes tasks in floats.
        """
        ...


@runtime_checkable
class Demonstrated(Protocol):
    """A problem of demonstrations, in whose environment the policy can act without rewards.

    A pair is an observation with the action that was taken there.
    """

    @property
    def pair(self) -> int:
        """D, the numbers in a pair."""
        ...

    def shown(self, task: Any) -> Tensor:
        """[T, S, D] pairs of the expert, in the support set."""
        ...

    def play(self, params: Params, task: Any, context: Context, deviation: float) -> Tensor:
        """[T, N, H, D] pairs of new episodes of the policy, which are as long as demonstrations.

        deviation: of its actions around those of its network.
        """
        ...

    def policy_loss(
        self, params: Params, pairs: Tensor, rewards: Tensor, deviation: float
    ) -> Tensor:
        """[T] whose gradient is the policy gradient, negated, of normalised advantages.

        pairs: of episodes, as `play` gives them.
        rewards: [T, N, H] of the pairs.
        """
        ...


@runtime_checkable
class Acting(Problem, Protocol):
    """A problem whose network acts in episodes of an environment, N of them in each task."""

    @property
    def environment(self) -> Any:
        """A metatrain.problems.environment.Environment."""
        ...

    def rollout(self, params: Params, task: Any, generator: torch.Generator) -> Any:
        """Act in new episodes, a metatrain.problems.environment.Rollout."""
        ...

    def memory(self, params: Params) -> tuple[Tensor, ...]:
        """The initial memory [T, N, H] and feedback [T, N, actions + 1], () without a memory."""
        ...

    def act(
        self, params: Params, observation: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The network's outputs [T, N, actions], and (the next memory,) or ()."""
        ...


@runtime_checkable
class Recordable(Problem, Protocol):
    """A problem whose episodes can be seen again by the policies of other parameters."""

    def recorded(self, *, clip: float | None, sampling: bool) -> Callable[[], Problem]:
        """Return what gives the same problem again: the first plays, the others see its episodes.

        Losses weigh actions by the ratios of their chances to those with which they were taken.

        clip: change of a ratio above which a query loss gains nothing, or None.
        sampling: whether support losses have ratios as well.
        """
        ...


def labelled(problem: Problem, remedy: str = "choose another algorithm") -> Labelled:
    """A problem as one of labelled examples; InputError if it is none."""
    if not isinstance(problem, Labelled):
        raise InputError(
            "this algorithm computes on labelled examples, and these tasks have none",
            remedy=remedy,
        )
    return problem


def attackable(problem: Problem, remedy: str = "choose another algorithm") -> Attackable:
    """A problem as one whose examples can be moved; InputError if they are no pixels."""
    if not (isinstance(problem, Attackable) and problem.pixels):
        raise InputError(
            "attacks and corruptions change pixels, and the examples of these tasks are none",
            remedy=remedy,
        )
    return problem


def acting(problem: Problem) -> Acting:
    """A problem as one of episodes with actions to choose from; InputError if it is none."""
    if not (isinstance(problem, Acting) and problem.environment.discrete):
        raise InputError(
            "this algorithm learns the values of a few actions, and these tasks have none",
            remedy="choose another algorithm",
        )
    return problem


def demonstrated(problem: Problem) -> Demonstrated:
    """A problem as one of demonstrations; InputError if it is none."""
    if not isinstance(problem, Demonstrated):
        raise InputError(
            "this algorithm learns from demonstrations, and these tasks have none",
            remedy="set family.name to imitation, or choose another algorithm",
        )
    return problem


def recordable(problem: Problem) -> Recordable:
    """A problem as one of episodes; InputError if it is none."""
    if not isinstance(problem, Recordable):
        raise InputError(
            "proximal steps are of episodes, and these tasks have none",
            remedy="leave algorithm.proximal out",
        )
    return problem


def chunks(problem: Problem, tasks: Any) -> list[Any]:
    """The tasks in groups that are computed at once: all, or each on its own to save memory."""
    return [tasks] if problem.path == "batched" else [take(tasks, i) for i in range(count(tasks))]
