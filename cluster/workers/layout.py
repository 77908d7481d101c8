"""How meta-parameters lie in memory: one flat array, in which they also travel."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from metatrain.core import ComputePath, Meta, Params

ALIGNMENT = 16  # float32 values: 64 bytes, so that a parameter lies alike in every process


class Layout:
    """The one flat float32 array of meta-parameters, and of directions.

    Directions have no frozen parameters. On the fused path the weights of convolutions lie
    channels last, as its kernels read them.
    """

    def __init__(self, meta: Meta, path: ComputePath = "reference") -> None:
        self._last = path == "fused"
        self._shapes = {name: p.shape for name, p in meta.flat().items()}
        # Of each parameter, and of the gap after it.
        sizes = [(shape.numel(), -shape.numel() % ALIGNMENT) for shape in self._shapes.values()]
        self._sizes = [size for pair in sizes for size in pair]
        self.size = sum(self._sizes)

    def flatten(self, meta: Meta) -> Tensor:
        """A new array, where the parameters are: [size], or the beginning of it for a direction."""
        given = meta.flat()
        size = sum(self._sizes[: 2 * self._count(given)])
        flat = torch.zeros(size, device=next(iter(given.values())).device)
        views = self._views(flat)
        # As many parameters as a network has would be as many kernels of a GPU.
        torch._foreach_copy_([*views.values()], [given[name] for name in views])
        return flat

    def unflatten(self, flat: Tensor) -> Meta:
        """Views of such an array."""
        return Meta.unflat(self._views(flat))

    def _count(self, given: Params) -> int:
        """How many parameters lie before the first that is not given."""
        lacking = (i for i, name in enumerate(self._shapes) if name not in given)
        return next(lacking, len(self._shapes))

    def _views(self, flat: Tensor) -> Params:
        sizes = self._sizes
        if len(flat) < self.size:
            ends = [*accumulate(sizes)]
            sizes = sizes[: ends.index(len(flat)) + 1]
        pieces = flat.split(sizes)[::2]
        return {
            name: self._view(piece, shape)
            for piece, (name, shape) in zip(pieces, self._shapes.items(), strict=False)
        }

    def _view(self, part: Tensor, shape: torch.Size) -> Tensor:
        if not (self._last and len(shape) == 4):
            return part.view(shape)
        wide, narrow, height, width = shape
        return part.view(wide, height, width, narrow).permute(0, 3, 1, 2)
