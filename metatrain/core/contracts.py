"""The contracts of families, models and algorithms, and the setting of a ticket."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metatrain.core.attacks import Attack, Part
from metatrain.core.problems import Problem
from metatrain.core.values import (
    Adapt,
    ComputePath,
    Context,
    Member,
    Meta,
    Norm,
    Params,
    Purpose,
    Split,
    Ticket,
    Update,
    generator_for,
)
from metatrain.metrics import Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TaskFamily(Protocol):
    """A distribution over tasks: a frozen dataclass such as Sinusoid(shots=10).

    A family without data gets `check`, `resolved` and `describe` from tasks.generated.Generated.
    """

    @property
    def metric(self) -> Metric:
        """The metric people read: one of those that the bound problem measures."""
        ...

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Any:
        """Draw `count` tasks of a split."""
        ...

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Problem:
        """The problem of learning these tasks with a model. `norm[0]` also normalises training."""
        ...

    def check(self, split: Split) -> None:
        """Raise InputError if the split cannot give such tasks."""
        ...

    def resolved(self) -> TaskFamily:
        """The family as a run records it: its bundle binds it without its data."""
        ...

    def describe(self) -> str:
        """The part of a protocol line that names the tasks."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """A family that shows what adaptation does."""

    def picture(self, problem: Any, adapt: Adapt, context: Context) -> Figure:
        """Draw tasks with the context's generator, and show them before and after adaptation.

        problem: one that the family bound.
        """
        ...


@runtime_checkable
class Resident(Protocol):
    """A family whose data can lie on a device."""

    def resident(self, device: torch.device) -> TaskFamily:
        """The same family with its data, and so its samples, on the device."""
        ...


@runtime_checkable
class RawExamples(Protocol):
    """A family that takes a user's examples as they are: paths of images, rows of a table."""

    def examples(self, raw: Any) -> Tensor:
        """[N, *in]: N examples as the family's tasks have them; InputError if they cannot be."""
        ...


@runtime_checkable
class RawNumbers(Protocol):
    """A family whose targets are numbers on a scale of its own."""

    def targets(self, raw: Any) -> Tensor:
        """[N, outputs]: N targets as the family's tasks have them; InputError if they cannot be."""
        ...

    def predictions(self, output: Tensor) -> Tensor:
        """[N] or [N, outputs]: the network's outputs [N, outputs] in the units of the data."""
        ...


class Units(NamedTuple):
    """Means and deviations of the columns and of the targets that a family makes."""

    mean: float = 0.0
    deviation: float = 1.0
    target_mean: float = 0.0
    target_deviation: float = 1.0


@runtime_checkable
class AnyTable(Protocol):
    """A family of made tables, whose columns have no unit or order of their own.

    So other tables, brought to its units, are tasks like its own.
    """

    def units(self, columns: int) -> Units:
        """Return the units of its tables of so many columns."""
        ...


class Model(Protocol):
    """A network's hyper-parameters: a frozen dataclass such as MLP(hidden=(40, 40))."""

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """Build the network: a `body` that gives features [N, F], and a `head` on them.

        inputs: the shape of an example.
        outputs: numbers that the network predicts.
        feedback: the length of the vector that a recurrent network receives after each example:
            the target, or the action and the reward. Other networks do not use it.
        """
        ...


class Corruption(Protocol):
    """A change of images that knows no network, such as noise."""

    @property
    def part(self) -> Part:
        """The examples that change."""
        ...

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images [T, N, C, H, W] in 0..1, changed."""
        ...

    def describe(self) -> str:
        """Say what changes and how far, for a protocol line."""
        ...


class Algorithm(Protocol):
    """A meta-learning algorithm: a frozen dataclass such as MAML(inner_lr=0.4, inner_steps=1)."""

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        """Draw the meta-parameters to start from.

        Raises InputError if the algorithm cannot learn this problem.
        """
        ...

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        """Yield the tasks' parameters before adaptation, then after each inner step.

        They are values, without a graph.
        """
        ...

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        """The direction that makes adaptation to such tasks better."""
        ...


@runtime_checkable
class Making(Protocol):
    """An algorithm that makes examples, which people may want to see."""

    def make(self, meta: Meta, x: Tensor, generator: torch.Generator) -> Tensor:
        """[T, N, *in]: one made of each example, as the network gets them."""
        ...


@runtime_checkable
class Phased(Protocol):
    """An algorithm whose updates depend on the outer step, such as by weights that anneal."""

    def phase(self, step: int) -> Hashable:
        """Return a value that is equal for steps whose updates are the same computation.

        A GPU may repeat a recorded update for another step of its phase. An update of a phased
        algorithm may read `context.ticket.step`; any other that reads it is never repeated.
        """
        ...


@runtime_checkable
class Ticketed(Protocol):
    """An algorithm that keeps something of each of a step's tickets, such as a replay."""

    @property
    def tickets(self) -> int:
        """How many tickets a step must have."""
        ...


class Ensemble(Protocol):
    """Several networks for each task, whose predictions an evaluation mixes."""

    @property
    def name(self) -> str: ...

    @property
    def members(self) -> int:
        """How many predictions are mixed."""
        ...

    def adapted(
        self, problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
    ) -> Iterator[Member]:
        """Yield the members that these meta-parameters give."""
        ...


class Setting(NamedTuple):
    """What tickets of one purpose are computed with."""

    purpose: Purpose
    split: Split
    family: TaskFamily
    algorithm: Algorithm
    norm: tuple[Norm, ...]
    seed: int
    tasks: int  # a step's, or an evaluation's
    tasks_per_ticket: int
    corruption: Corruption | None = None  # of the examples
    attack: Attack | None = None  # on the network, after the corruption
    ensemble: Ensemble | None = None  # besides the single network

    def tickets(self, step: int = 0) -> list[Ticket]:
        """All tickets of this purpose, in the order in which their answers are added.

        Test tasks are for the final evaluation only.
        """
        if self.split == "test" and self.purpose.work != "score":
            raise ValueError(f"tasks of the test split are asked for {self.purpose.work}")
        parts = -(-self.tasks // self.tasks_per_ticket)
        work, variant = self.purpose
        return [Ticket(work, self.split, step, part, variant) for part in range(parts)]

    def sample(self, ticket: Ticket) -> Any:
        """Draw the tasks of a ticket."""
        count = min(self.tasks_per_ticket, self.tasks - ticket.part * self.tasks_per_ticket)
        return self.family.sample(generator_for(self.seed, ticket, "tasks"), count, ticket.split)
