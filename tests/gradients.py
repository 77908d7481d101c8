"""One way to hold a meta-gradient to the function that it is the gradient of."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from cases import context

from metatrain.core import Algorithm, Meta, Params


def assert_meta_gradient(
    algorithm: Algorithm,
    problem: Any,
    meta: Meta,
    tasks: Any,
    part: str = "model",
    *,
    adapt: Callable[[Meta], Iterable[Params]] | None = None,
    every_step: bool = False,
    tolerance: float = 1e-4,
    h: float = 1e-6,
) -> Params:
    """Assert that an update is the slope of the query loss along random directions, and return it.

    `meta` and `tasks` are of double precision. What is moved is a `part` of meta; the loss is that
    after the last step of `adapt`, the algorithm's own by default, or the mean over `every_step`.
    """
    gradient: Params = getattr(algorithm.update(problem, meta, tasks, context()).direction, part)
    steps = adapt or (lambda moved: algorithm.adapt(problem, moved, tasks, context()))

    def loss(moved: Params) -> float:
        found = list(steps(meta._replace(**{part: moved})))
        losses = [
            problem.query(phi, tasks, context())["loss"].mean()
            for phi in found[0 if every_step else -1 :]
        ]
        return float(torch.stack(losses).mean())

    params: Params = getattr(meta, part)
    g = torch.Generator().manual_seed(2)
    for _ in range(3):
        v = {name: torch.randn(p.shape, generator=g, dtype=p.dtype) for name, p in params.items()}
        up, down = (
            loss({name: p + s * h * v[name] for name, p in params.items()}) for s in (1, -1)
        )
        slope, found = (up - down) / (2 * h), float(sum((gradient[n] * v[n]).sum() for n in v))
        assert abs(slope - found) < tolerance * max(abs(found), 1e-3), (slope, found)
    return gradient
