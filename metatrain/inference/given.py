"""Examples and labels that people hold in memory, as the network gets them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metatrain.core import InputError, RawExamples
from metatrain.problems.supervised import Supervised

if TYPE_CHECKING:
    from metatrain.core import TaskFamily


def examples_of(family: TaskFamily, problem: Supervised, raw: Any) -> Tensor:
    """Return examples as the network gets them: [N, *in]."""
    if isinstance(family, RawExamples):
        return family.examples(raw)
    return array_of(raw, "examples", tuple(problem.inputs))


def array_of(raw: Any, what: str, shape: tuple[int, ...]) -> Tensor:
    """Return [N, *shape] float32 of an array, tensor, DataFrame or list; `what` names it."""
    _refuse_unordered(raw, what)
    if isinstance(raw, np.ma.MaskedArray) and np.ma.is_masked(raw):
        raise InputError(f"{what} have masked values", remedy="leave these examples out")
    if isinstance(raw, Tensor):
        raw = raw.detach().cpu()
    elif isinstance(raw, Iterable) and not hasattr(raw, "__array__"):
        raw = list(raw)
    try:
        given = np.array(raw)
        if given.dtype == np.bool_ or (
            given.dtype == object and any(isinstance(v, bool) for v in given.flat)
        ):
            raise InputError(f"{what} are true and false", remedy="give numbers, such as 1 and 0")
        with np.errstate(over="ignore"):
            array = torch.from_numpy(given.astype(np.float32))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{what} must be numbers, got {type(raw).__name__} ({error})", remedy="convert them"
        ) from error
    if array.dim() == 1 and shape == (1,):
        array = array[:, None]
    if array.shape[1:] != shape or not array.dim():
        expected = ", ".join(map(str, shape))
        raise InputError(f"{what} have the shape {list(array.shape)}, expected [N, {expected}]")
    if not bool(array.isfinite().all()):
        raise InputError(
            f"{what} have values that are not finite", remedy="leave these examples out"
        )
    return array


def labels_of(raw: Any, examples: int) -> list[Any]:
    """Return one label for each example, as plain values."""
    _refuse_unordered(raw, "labels")
    if isinstance(raw, str | bytes) or not isinstance(raw, Iterable):
        raise InputError(
            f"labels must be a list with one for each example, got {type(raw).__name__}"
        )
    labels = [label.item() if getattr(label, "ndim", None) == 0 else label for label in raw]
    if any(getattr(label, "ndim", 0) or isinstance(label, list | tuple) for label in labels):
        raise InputError(
            "labels must be one number or string for each example, not vectors",
            remedy="pass class indices",
        )
    if len(labels) != examples:
        raise InputError(
            f"there are {examples} examples but {len(labels)} labels",
            remedy="give one label for each example",
        )
    if any(map(is_missing, labels)):
        raise InputError("a label is missing (None or nan)", remedy="give each example its label")
    return labels


def classes_of(labels: list[Any]) -> list[Any]:
    """Return the different labels, sorted."""
    try:
        return sorted(set(labels))
    except TypeError as error:
        raise InputError(
            f"labels must be numbers or strings, all of one kind ({error})", remedy="convert them"
        ) from error


def is_missing(value: Any) -> bool:
    """Whether a value is None, nan or pandas' NA."""
    try:
        return value is None or bool(value != value)  # nan equals nothing
    except TypeError:  # pandas' NA is neither equal nor not
        return True


def _refuse_unordered(raw: Any, what: str) -> None:
    if isinstance(raw, set | frozenset):
        raise InputError(f"{what} are a set, which has no order", remedy="give a list")
