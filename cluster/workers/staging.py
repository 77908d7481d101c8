"""Arrays on their way to a GPU, together and without a wait of the host, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes


class Staged:
    """Memory on a device for tensors of given shapes and types, which is filled in one copy."""

    def __init__(self, like: Sequence[Tensor], device: torch.device) -> None:
        self._slots: list[tuple[int, int, torch.dtype, torch.Size]] = []
        end = 0
        for each in like:
            size = each.numel() * each.element_size()
            self._slots.append((end, size, each.dtype, each.shape))
            end += -(-size // ALIGNMENT) * ALIGNMENT
        self._there = torch.empty(end, dtype=torch.uint8, device=device)
        self.tensors = list(self._views(self._there))

    def fill(self, given: Sequence[Tensor]) -> None:
        """Copy tensors of the host, by pinned memory that nobody else has before the copy ends."""
        if not self._slots:
            return
        pinned = self._there.device.type == "cuda"
        here = torch.empty(len(self._there), dtype=torch.uint8, pin_memory=pinned)
        for mine, each in zip(self._views(here), given, strict=True):
            mine.copy_(each)
        self._there.copy_(here, non_blocking=True)

    def _views(self, flat: Tensor) -> Iterator[Tensor]:
        for start, size, dtype, shape in self._slots:
            yield flat[start : start + size].view(dtype).view(shape)


def on_host(there: Tensor) -> Tensor:
    """A tensor on the host, from a GPU by pinned memory."""
    if there.device.type == "cpu":
        return there
    here = there.to("cpu", non_blocking=True)  # into pinned memory
    torch.cuda.current_stream().synchronize()
    return here


def staged(tasks: Any, device: torch.device) -> Any:
    """Tasks, a NamedTuple of tensors, on a device; those that are there already stay."""
    if all(leaf.device.type == device.type for leaf in tasks):
        return tasks
    here = [leaf for leaf in tasks if leaf.device.type != device.type]
    memory = Staged(here, device)
    memory.fill(here)
    there = iter(memory.tensors)
    return type(tasks)(
        *(leaf if leaf.device.type == device.type else next(there) for leaf in tasks)
    )
