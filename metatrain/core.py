"""The vocabulary of the project: every name that two files share is defined here.

A *ticket* names a chunk of tasks. Tasks are a pure function of (seed, ticket), so data never
travels between processes: tickets go out, updates come back. An *update* is a direction for the
meta-parameters to descend.

Shapes: T tasks, S support examples, Q query examples, K inner steps. Everything that belongs to
tasks has a leading T: the tasks themselves, adapted parameters, losses and metrics. Meta-parameters
are shared by the tasks and have none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metatrain.metrics import Measure, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Params = dict[str, Tensor]  # name -> tensor, named as Module.named_parameters names them
Norm = Literal[
    "transductive", "support", "support+1", "running", "none"
]  # whose statistics normalise a query example
# How a ticket's tasks are computed, chosen once, by the driver: all in one batch of tensors, or one
# after the other, in plain PyTorch or with the kernels of metatrain.ops.
Path = Literal["batched", "reference", "fused"]
Split = Literal["train", "val", "test"]
Work = Literal[
    "update", "validate", "score"
]  # what a ticket is for: training, validation in training, evaluation
Adapt = Callable[
    [Any], list[tuple[int, Params]]
]  # tasks -> (inner step, their parameters), from step 0 to the last
# Metadata of a dataclass's field: adaptation does not use it, so that an evaluation cannot change
# anything by it.
TRAINING_ONLY: Mapping[str, Any] = {"training_only": True}


class Sentence(Exception):
    """An error whose message says all: a notebook shows that alone, and no traceback."""

    run: str | None = None  # the folder of the run that it ended
    saved = False  # whether that run has a checkpoint

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class InputError(Sentence, ValueError):
    """Refuse what the user gave, in one sentence: "WHAT is GOT, expected EXPECTED: REMEDY".

    what: the key or the file that is wrong. Without `got` it is a clause, such as "a label is
        missing".
    got: the wrong value itself; None is a value, too.
    expected: the values that are right, such as "at least 1".
    remedy: what to do next, such as "give a folder".
    """

    def __init__(
        self, what: str, *, got: object = ..., expected: str = "", remedy: str = ""
    ) -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        is_got = "" if got is ... else f" is {got!r}"
        wanted = f", expected {expected}" if expected else ""
        super().__init__(f"{what}{is_got}{wanted}" + (f": {remedy}" if remedy else ""))

    @classmethod
    def at(cls, place: str, error: Exception) -> InputError:
        """Put a place, such as a file, before an error about something in it."""
        if not isinstance(error, InputError):
            return cls(f"{place}: {error}")
        what = f"{place}: {error.what}"
        return cls(what, got=error.got, expected=error.expected, remedy=error.remedy)


def at_least(config: object, **least: float) -> None:
    """Refuse fields that are too small. Example: at_least(self, shots=1, queries=1)"""
    for name, bound in least.items():
        value = getattr(config, name)
        if not value >= bound:  # so that nan is refused, too
            raise InputError(name, got=value, expected=f"at least {bound}")


class Meta(NamedTuple):
    """What is meta-learned: what the learner publishes and a checkpoint stores.

    An update's direction has no `frozen`.
    """

    model: Params  # the initialisation; goes to the forward pass
    algorithm: Params  # the algorithm's own, such as learned inner rates; descended like `model`
    # not descended: replaced by the weighted mean of the updates' state, such as running statistics
    state: Params
    frozen: Params = {}  # parameters that the network does not train: they stay as they are

    def flat(self) -> Params:
        """All tensors under one name each, "part.name", such as "model.head.bias"."""
        return {
            f"{part}.{name}": p
            for part, params in self._asdict().items()
            for name, p in params.items()
        }

    @classmethod
    def unflat(cls, flat: Params) -> Meta:
        """The meta-parameters that `flat` gave; InputError if a name is of no part."""
        parts: dict[str, Params] = {part: {} for part in cls._fields}
        for full, p in flat.items():
            part, _, name = full.partition(".")
            if part not in parts:
                raise InputError("a tensor's name", got=full, expected=f"one of {', '.join(parts)}")
            parts[part][name] = p
        return cls(**parts)

    def __repr__(self) -> str:
        held = {
            part: sum(p.numel() for p in params.values())
            for part, params in self._asdict().items()
            if params
        }
        return (
            f"<Meta: {', '.join(f'{part} {numbers:,} numbers' for part, numbers in held.items())}>"
        )


class Task(NamedTuple):
    """Supervised tasks, T at once. Other kinds of families bring their own type."""

    support_x: Tensor  # [T, S, *in]
    support_y: Tensor  # [T, S, *out]
    query_x: Tensor  # [T, Q, *in]
    query_y: Tensor  # [T, Q, *out]

    def __repr__(self) -> str:
        return (
            "<Task: "
            f"{', '.join(f'{name} {list(leaf.shape)}' for name, leaf in self._asdict().items())}>"
        )


class Purpose(NamedTuple):
    """What tickets are for: a kind of work, and of a recipe's further evaluations which one."""

    work: Work
    variant: str = ""  # the name of an evaluation, if it has one


class Ticket(NamedTuple):
    """Names a chunk of tasks; together with a seed it determines them."""

    work: Work
    split: Split
    step: int  # outer step; 0 for scores and validation, whose tasks are a fixed list
    part: int  # which chunk of the step's tasks
    variant: str = ""  # the name of an evaluation, if it has one

    @property
    def purpose(self) -> Purpose:
        return Purpose(self.work, self.variant)


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
        """All tickets of this purpose, in the order in which their answers are added."""
        parts = -(-self.tasks // self.tasks_per_ticket)
        work, variant = self.purpose
        return [Ticket(work, self.split, step, part, variant) for part in range(parts)]


class Context(NamedTuple):
    """All that a ticket fixes besides its tasks."""

    ticket: Ticket
    generator: (
        torch.Generator
    )  # for mini-batches, dropout, rollouts; a retry of the ticket repeats it


class Update(NamedTuple):
    """What a worker computes from a ticket's tasks."""

    direction: Meta  # to descend; mean over the ticket's tasks
    tasks: int  # its weight in the learner's mean
    metrics: Mapping[
        str, float | Tensor
    ]  # means over the tasks, such as loss_after; a worker sends numbers


class Scores(NamedTuple):
    """What a worker measures on a ticket's tasks."""

    steps: list[int]  # the inner steps measured; 0 is before adaptation, the last is the result
    curves: dict[Norm, dict[str, Tensor]]  # of each norm of the problem: metric -> [T, len(steps)]
    baselines: dict[str, Tensor]  # of what does not learn, such as nearest neighbour: name -> [T]
    # of each norm, after the last step: measure -> [T, ...], from which it is computed
    pooled: dict[Norm, dict[str, Tensor]] = {}


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

    def bind(self, model: Model, norm: Sequence[Norm], path: Path) -> Problem:
        """The problem of learning these tasks with a model. `norm[0]` also normalises training."""
        ...

    def check(self, split: Split) -> None:
        """Raise InputError if the split cannot give such tasks."""
        ...

    def resolved(self) -> TaskFamily:
        """The family as a run records it, with nothing left open: its bundle binds it without its
        data.
        """
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
    """A family that takes a user's examples as they are, such as paths of images or rows of a
    table.
    """

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
        """Build the network for examples of shape `inputs`: a `body` that gives features [N, F],
        and a `head` on them.

        What a network with a memory is told after each example that it reads has `feedback`
        numbers: the target, or the action and the reward. Other networks do not use it.
        """
        ...


class Problem(Protocol):
    """A family bound to a model: all that an algorithm knows of data and network.

    `params` are all that a network needs to predict for T tasks: each tensor has a leading T. Among
    them may be what is no weight: the state of a memory, or running statistics.
    """

    @property
    def path(self) -> Path: ...

    @property
    def norm(self) -> Sequence[Norm]:
        """Whose statistics normalise query examples; ("none",) where nothing is normalised by
        statistics.
        """
        ...

    def init(self, generator: torch.Generator) -> Params:
        """Fresh parameters that are trained, without a leading T."""
        ...

    def frozen(self, generator: torch.Generator) -> Params:
        """Fresh parameters that are not: those that the network was built with
        `requires_grad_(False)`.
        """
        ...

    def state(self) -> Params:
        """What training does not descend but tracks, as it is at the start: running statistics, if
        `norm` says so.
        """
        ...

    def statistics(self, params: Params, tasks: Any) -> Params:
        """What the tasks say that `state` should be, by shared parameters, which have no leading
        T.
        """
        ...

    def support_loss(
        self, params: Params, task: Any, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        """[T] mean loss on the support set, or on the mini-batch of it that `batch` [T, B]
        indexes.
        """
        ...

    @property
    def measures(self) -> Mapping[str, Measure]:
        """What an evaluation measures on all tasks together."""
        ...

    def predict(
        self, params: Params, task: Any, context: Context, norm: Norm | None = None
    ) -> Any:
        """Predict the query set: [T, Q, *out], or of a policy the episodes that it plays.

        norm: whose statistics normalise the query examples; the first of `self.norm` by default.
        """
        ...

    def judge(self, prediction: Any, task: Any) -> dict[str, Tensor]:
        """Measure a prediction, [T] each: "loss", which can be differentiated, and the family's
        metrics, which cannot.
        """
        ...

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        """Predict the query set, then judge the prediction."""
        ...

    def check(self, task: Any) -> None:
        """Raise InputError if the tasks are not what this problem is of."""
        ...

    def try_out(self, task: Any) -> Collection[str]:
        """The names of the metrics; InputError if the network, the loss or a metric cannot compute
        these tasks.
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
        """[T, S, F] features of the support examples and [T, S, feedback] their labels, classes
        as one-hot vectors.
        """
        ...

    def read(self, params: Params, task: Any, context: Context) -> Iterator[Params]:
        """Yield `params`, then with the network's memory after each support example."""
        ...


class Algorithm(Protocol):
    """A meta-learning algorithm: a frozen dataclass such as MAML(inner_lr=0.4, inner_steps=1)."""

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        """The meta-parameters to start from; InputError where the algorithm cannot learn this
        problem.
        """
        ...

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        """Yield the tasks' parameters before adaptation, then after each inner step: values,
        without a graph.
        """
        ...

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        """The direction that makes adaptation to such tasks better."""
        ...


@runtime_checkable
class Phased(Protocol):
    """An algorithm whose updates depend on the outer step, such as by weights that anneal."""

    def phase(self, step: int) -> Hashable:
        """Equal for outer steps whose updates are the same computation.

        A GPU may repeat a recorded update for another step of its phase. An update of a phased
        algorithm may read `context.ticket.step`; any other that reads it is never repeated.
        """
        ...


def labelled(problem: Problem) -> Labelled:
    """A problem as one of labelled examples; InputError if it is none."""
    if not isinstance(problem, Labelled):
        raise InputError(
            "this algorithm computes on labelled examples, and these tasks have none",
            remedy="choose another algorithm",
        )
    return problem


def generator_for(seed: int, ticket: Ticket, purpose: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments; validation and evaluation of one
    seed draw alike.
    """
    work = "score" if ticket.work == "validate" else ticket.work
    key = f"{seed}/{work}/{ticket.split}/{ticket.step}/{ticket.part}/{purpose}"
    key += f"/{ticket.variant}" if ticket.variant else ""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def take(task: Any, index: int) -> Any:
    """Task `index` of T, as T = 1."""
    return type(task)(*(leaf[index : index + 1] for leaf in task))


def count(task: Any) -> int:
    """T."""
    return int(task[0].shape[0])


def chunks(problem: Problem, tasks: Any) -> list[Any]:
    """The tasks in groups that are computed at once: all, or each on its own, so that memory stays
    that of one.
    """
    return [tasks] if problem.path == "batched" else [take(tasks, i) for i in range(count(tasks))]


def to_device(tree: Any, device: torch.device) -> Any:
    """A NamedTuple of tensors, or of dicts of them, on another device."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, dict):
            return {key: moved(value) for key, value in leaf.items()}
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return type(tree)(*map(moved, tree))
