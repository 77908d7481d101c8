"""Conjugate gradients (Hestenes and Stiefel 1952), for all tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def solve(
    product: Callable[[Sequence[Tensor]], Sequence[Tensor]], b: Sequence[Tensor], steps: int
) -> list[Tensor]:
    """Solve product(x) = b for each task, [T, *shape] each.

    A task takes no step along a direction without positive curvature.
    """
    x = [torch.zeros_like(part) for part in b]
    r, p, square = b, b, _dot(b, b)
    for _ in range(steps):
        ap = product(p)
        curvature = _dot(p, ap)
        far = torch.where(curvature > 0, square / curvature, 0.0)
        x, r = _plus(x, far, p), _plus(r, -far, ap)
        before, square = square, _dot(r, r)
        p = _plus(r, torch.where(before > 0, square / before, 0.0), p)
    return x


def _dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """[T]"""
    return torch.stack([(p * q).flatten(1).sum(1) for p, q in zip(a, b, strict=True)]).sum(0)


def _plus(a: Sequence[Tensor], factor: Tensor, b: Sequence[Tensor]) -> list[Tensor]:
    """a + factor b, a factor for each task."""
    return [p + factor.view(-1, *[1] * (q.dim() - 1)) * q for p, q in zip(a, b, strict=True)]
