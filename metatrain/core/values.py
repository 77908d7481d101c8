"""The values that travel: parameters, tasks, tickets, updates and scores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.errors import InputError

Params = dict[str, Tensor]  # name -> tensor, named as Module.named_parameters names them
# Whose statistics normalise a query example.
Norm = Literal["transductive", "support", "support+1", "running", "none"]
# How a ticket's tasks are computed, chosen once, by the driver: all in one batch of tensors, or one
# after the other, in plain PyTorch or with the kernels of metatrain.ops.
ComputePath = Literal["batched", "reference", "fused"]
Split = Literal["train", "val", "test"]
# What a ticket is for: training, validation in training, evaluation.
Work = Literal["update", "validate", "score"]
# Tasks -> (inner step, their parameters), from step 0 to the last.
Adapt = Callable[[Any], list[tuple[int, Params]]]
# Metadata of a dataclass's field: adaptation does not use it, so an evaluation cannot change it.
TRAINING_ONLY: Mapping[str, Any] = {"training_only": True}
OWN = "own."  # begins the names of what an algorithm tracks and no network has
# Begins the names of those of them that updates write entry by entry, such as a replay memory: the
# learner takes the entries that an update changed, and no mean.
KEPT = "own.kept."


class Meta(NamedTuple):
    """What is meta-learned: what the learner publishes and a checkpoint stores.

    An update's direction has no `frozen`.
    """

    model: Params  # the initialisation; goes to the forward pass
    algorithm: Params  # the algorithm's own, such as learned inner rates; descended like `model`
    # tracked, such as running statistics: replaced by the mean of the updates' state (but see KEPT)
    state: Params
    frozen: Params = {}  # parameters that the network does not train

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
        return f"<Meta: {', '.join(f'{part} {size:,} numbers' for part, size in held.items())}>"


class Task(NamedTuple):
    """Supervised tasks, T at once. Other kinds of families bring their own type."""

    support_x: Tensor  # [T, S, *in]
    support_y: Tensor  # [T, S, *out]
    query_x: Tensor  # [T, Q, *in]
    query_y: Tensor  # [T, Q, *out]

    def __repr__(self) -> str:
        shapes = (f"{name} {list(leaf.shape)}" for name, leaf in self._asdict().items())
        return f"<Task: {', '.join(shapes)}>"


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


class Context(NamedTuple):
    """All that a ticket fixes besides its tasks."""

    ticket: Ticket
    generator: torch.Generator  # for mini-batches and rollouts; a retry of the ticket repeats it


class Update(NamedTuple):
    """What a worker computes from a ticket's tasks."""

    direction: Meta  # to descend; mean over the ticket's tasks
    tasks: int  # its weight in the learner's mean
    # means over the tasks, such as loss_after; a worker sends numbers
    metrics: Mapping[str, float | Tensor]


class Scores(NamedTuple):
    """What a worker measures on a ticket's tasks."""

    steps: list[int]  # the inner steps measured; 0 is before adaptation, the last is the result
    curves: dict[Norm, dict[str, Tensor]]  # of each norm of the problem: metric -> [T, len(steps)]
    baselines: dict[str, Tensor]  # of what does not learn, such as nearest neighbour: name -> [T]
    # of each norm, after the last step: measure -> [T, ...], from which it is computed
    pooled: dict[Norm, dict[str, Tensor]] = {}
    # of each norm, if there is an ensemble: predictions [T, K, Q, *out] and weights [T, K]
    members: dict[Norm, dict[str, Tensor]] = {}


class Member(NamedTuple):
    """A network of an ensemble for each task."""

    params: Params  # adapted, [T, *shape] each
    task: Any  # whose support set it adapted to
    weight: Tensor  # [T] its share of the prediction, before shares are divided by their sum


def generator_for(seed: int, ticket: Ticket, use: str) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments.

    use: what the numbers are for, such as "tasks"; each use has numbers of its own.

    Validation and evaluation of one seed draw alike.
    """
    work = "score" if ticket.work == "validate" else ticket.work
    key = f"{seed}/{work}/{ticket.split}/{ticket.step}/{ticket.part}/{use}"
    key += f"/{ticket.variant}" if ticket.variant else ""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def take(task: Any, index: int) -> Any:
    """Task `index` of T, as T = 1."""
    return type(task)(*(leaf[index : index + 1] for leaf in task))


def joined(parts: Sequence[Any]) -> Any:
    """The tasks of several groups, in order, as one."""
    return type(parts[0])(*map(torch.cat, zip(*parts, strict=True)))


def count(task: Any) -> int:
    """T."""
    return int(task[0].shape[0])


def to_device(tree: Any, device: torch.device) -> Any:
    """A NamedTuple of tensors, or of dicts of them, on another device."""

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, dict):
            return {key: moved(value) for key, value in leaf.items()}
        return leaf.to(device) if isinstance(leaf, Tensor) else leaf

    return type(tree)(*map(moved, tree))


def together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of one type on a device, sent as one for which the host does not wait."""
    if device.type == "cpu":
        return list(tensors)
    flat = torch.cat([each.flatten() for each in tensors])
    there = flat.pin_memory().to(device, non_blocking=True)
    parts = there.split([each.numel() for each in tensors])
    return [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)]


def arriving(numbers: Mapping[Any, float | Tensor]) -> Callable[[], dict[Any, float]]:
    """Send numbers of a GPU to the host together; whoever calls the result waits for them."""
    there = {key: v for key, v in numbers.items() if isinstance(v, Tensor) and v.is_cuda}
    if not there:
        return lambda: {key: float(value) for key, value in numbers.items()}
    here = torch.stack([*there.values()]).to("cpu", non_blocking=True)
    sent = torch.cuda.Event()
    sent.record()

    def read() -> dict[Any, float]:
        sent.synchronize()
        found = dict(zip(there, here.tolist(), strict=True))
        return {key: float(found.get(key, value)) for key, value in numbers.items()}

    return read
