"""An actor's answers on their way to the driver: numpy arrays in place of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.workers.layout import Layout
from cluster.workers.staging import on_host
from cluster.workers.usage import Spent
from metatrain.core import Scores, Update


class SentUpdate(NamedTuple):
    """An update."""

    direction: NDArray[np.float32]  # flat, in the worker's layout
    tasks: int
    metrics: Mapping[str, float]


class SentScores(NamedTuple):
    """Scores."""

    fields: tuple[Any, ...]  # those of Scores, with arrays for tensors


class Answer(NamedTuple):
    """What an actor says to a ticket, and what that cost it."""

    result: SentUpdate | SentScores
    spent: Spent


def packed(result: Update | Scores, spent: Spent, layout: Layout) -> Answer:
    """A worker's result as it is sent."""
    if isinstance(result, Update):
        flat = on_host(layout.flatten(result.direction)).numpy()
        metrics = {name: float(value) for name, value in result.metrics.items()}
        return Answer(SentUpdate(flat, result.tasks, metrics), spent)
    return Answer(SentScores(tuple(_each(field, Tensor, Tensor.numpy) for field in result)), spent)


def unpacked(sent: SentUpdate | SentScores, layout: Layout) -> Update | Scores:
    """The result that was sent, in memory of its own: what arrives may belong to Ray."""
    if isinstance(sent, SentUpdate):
        direction = layout.unflatten(torch.from_numpy(sent.direction.copy()))
        return Update(direction, sent.tasks, sent.metrics)
    return Scores(*(_each(field, np.ndarray, _tensor) for field in sent.fields))


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.copy())


def _each(field: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """A field with every value of a kind converted, also in mappings in mappings."""
    if isinstance(field, dict):
        return {name: _each(value, kind, convert) for name, value in field.items()}
    return convert(field) if isinstance(field, kind) else field
