"""The contracts of families, models, problems and algorithms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metatrain.core.values import (
    Adapt,
    ComputePath,
    Context,
    Meta,
    Norm,
    Params,
    Purpose,
    Split,
    Ticket,
    Update,
    count,
    take,
)
from metatrain.errors import InputError
from metatrain.measures import Measure
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

    @property
    def inputs(self) -> Sequence[int]:
        """The shape of an example as the network gets it."""
        ...

    def support_size(self, task: Any) -> int:
        """S, from which mini-batches are drawn."""
        ...

    def embed(self, params: Params, task: Any, context: Context) -> tuple[Tensor, Tensor]:
        """Features [T, S, F] and labels [T, S, feedback] of the support examples.

        Classes are one-hot vectors.
        """
        ...

    def in_floats(self, task: Any) -> tuple[Labelled, Any]:
        """The tasks with examples as the network gets them, and the problem of such tasks.

        An algorithm may change these examples, and take gradients with respect to them.
        """
        ...

    def with_loss(self, loss: Callable[[Tensor, Tensor], Tensor]) -> Problem:
        """The same problem with another loss [T] of predictions [T, Q, *out] and labels [T, Q]."""
        ...

    def read(self, params: Params, task: Any, context: Context) -> Iterator[Params]:
        """Yield `params`, then with the network's memory after each support example."""
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
class Phased(Protocol):
    """An algorithm whose updates depend on the outer step, such as by weights that anneal."""

    def phase(self, step: int) -> Hashable:
        """Return a value that is equal for steps whose updates are the same computation.

        A GPU may repeat a recorded update for another step of its phase. An update of a phased
        algorithm may read `context.ticket.step`; any other that reads it is never repeated.
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

    def tickets(self, step: int = 0) -> list[Ticket]:
        """All tickets of this purpose, in the order in which their answers are added.

        Test tasks are for the final evaluation only.
        """
        if self.split == "test" and self.purpose.work != "score":
            raise ValueError(f"tasks of the test split are asked for {self.purpose.work}")
        parts = -(-self.tasks // self.tasks_per_ticket)
        work, variant = self.purpose
        return [Ticket(work, self.split, step, part, variant) for part in range(parts)]


def chunks(problem: Problem, tasks: Any) -> list[Any]:
    """The tasks in groups that are computed at once: all, or each on its own to save memory."""
    return [tasks] if problem.path == "batched" else [take(tasks, i) for i in range(count(tasks))]
