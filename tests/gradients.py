"""Gradients to compare with: of functions by their differences, and as a network takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from cases import SINUSOID, config, context

from metatrain.core import Algorithm, Meta, Params
from metatrain.inference import Learned
from metatrain.start import prepare

TABULAR = {"name": "tabular", "columns": [2, 12], "classes": 4}
LINEAR = {"name": "linear_regression", "inputs": 12}


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


def gradient_descent(inputs: int, rate: float, targets: int = 1) -> Params:
    """A layer of linear attention that takes a step of descent on the mean squared error.

    Tokens are (x, y), keys and queries are x, values are y (von Oswald et al. 2023, proposition 1).
    """
    width = inputs + targets
    x = torch.diag(torch.tensor([1.0] * inputs + [0.0] * targets))
    y = torch.eye(width) - x
    weights = {
        "example": torch.eye(width)[:, :inputs],
        "target": torch.eye(width)[:, inputs:],
        "blocks.0.attention.query": x,
        "blocks.0.attention.key": x,
        "blocks.0.attention.value": y,
        "blocks.0.attention.mixed": 2 * rate * width**0.5 * y,
        "out": torch.eye(width)[inputs:],
    }
    zeros = {f"{name}.bias": torch.zeros(len(w)) for name, w in weights.items()}
    tokens = {"prior": torch.zeros(width), "asked": torch.zeros(width)}
    found = {f"{name}.weight": w for name, w in weights.items()} | zeros | tokens
    return {f"head.{name}": p.double() for name, p in found.items()}


def descending(family: dict[str, Any], rate: float) -> Learned:
    """A network of linear attention that takes one step of descent from zero on a table's rows."""
    inputs = family.get("inputs") or family["columns"][1]
    targets = family.get("classes", 1)
    head = {"name": "transformer", "width": inputs + targets, "depth": 1, "heads": 1}
    model = {"name": "mlp", "hidden": [], "head": head | {"attention": "linear"}}
    case = SINUSOID | {"family": family, "model": model, "algorithm": {"name": "in_context"}}
    recipe = config(case).recipe()
    weights = {n: p.float() for n, p in gradient_descent(inputs, rate, targets).items()}
    assert weights.keys() == prepare(recipe).meta.model.keys()
    return Learned(recipe, Meta(weights, {}, {}), "made up")
