"""How meta-parameters lie in memory: one flat array, in which they also travel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metatrain.core import ComputePath, Meta

ALIGNMENT = 16  # float32 values: 64 bytes, so that a parameter lies alike in every process


class Layout:
    """The one flat float32 array of meta-parameters, and of directions.

    Directions have no frozen parameters. On the fused path the weights of convolutions lie
    channels last, as its kernels read them.
    """

    def __init__(self, meta: Meta, path: ComputePath = "reference") -> None:
        self._last = path == "fused"
        self._slots: list[tuple[str, int, torch.Size]] = []  # (flat name, offset, shape)
        self.size = 0
        for name, p in meta.flat().items():
            self._slots.append((name, self.size, p.shape))
            self.size += -(-p.numel() // ALIGNMENT) * ALIGNMENT

    def flatten(self, meta: Meta) -> Tensor:
        """A new array, where the parameters are: [size], or the beginning of it for a direction."""
        given = meta.flat()
        size = next((start for name, start, _ in self._slots if name not in given), self.size)
        flat = torch.zeros(size, device=given[self._slots[0][0]].device)
        views = dict(self._views(flat))
        # As many parameters as a network has would be as many kernels of a GPU.
        torch._foreach_copy_([*views.values()], [given[name] for name in views])
        return flat

    def unflatten(self, flat: Tensor) -> Meta:
        """Views of such an array."""
        return Meta.unflat(dict(self._views(flat)))

    def _views(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, start, shape in self._slots:
            if start + shape.numel() <= len(flat):
                yield name, self._view(flat[start : start + shape.numel()], shape)

    def _view(self, part: Tensor, shape: torch.Size) -> Tensor:
        if not (self._last and len(shape) == 4):
            return part.view(shape)
        wide, narrow, height, width = shape
        return part.view(wide, height, width, narrow).permute(0, 3, 1, 2)
