"""Optimizers of inner loops, which can be differentiated: each a pair of `init` and `update`.

With one rate for all parameters they make the steps of their namesakes in torch.optim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from metatrain.core import Params

Name = Literal["sgd", "momentum", "rmsprop", "adam"]
Rates = Mapping[str, float | Tensor]  # of what adapts: a number, or of the parameter's shape
# (steps so far, gradient, averages) -> (direction to descend, averages), of one parameter
Rule = Callable[..., tuple[Tensor, tuple[Tensor, ...]]]


class State(NamedTuple):
    """What an optimizer carries from step to step."""

    steps: int
    averages: tuple[Params, ...]  # of gradients, of their squares


class Optimizer(NamedTuple):
    """A pair of pure functions, which work element by element."""

    init: Callable[[Params], State]
    # (gradients, state, parameters, rates) -> (parameters, state)
    update: Callable[[Params, State, Params, Rates], tuple[Params, State]]


def sgd() -> Optimizer:
    """Descend the gradient."""
    return _optimizer(0, lambda t, g: (g, ()))


def momentum(decay: float = 0.9) -> Optimizer:
    """Descend the decaying sum of the gradients (Polyak 1964)."""

    def rule(t: int, g: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        v = decay * v + g
        return v, (v,)

    return _optimizer(1, rule)


def rmsprop(decay: float = 0.99, eps: float = 1e-8) -> Optimizer:
    """Divide the gradient by the root of the mean of its squares (Tieleman and Hinton 2012)."""

    def rule(t: int, g: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        v = decay * v + (1 - decay) * g**2
        return g / (root(v) + eps), (v,)

    return _optimizer(1, rule)


def adam(beta_1: float = 0.9, beta_2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Divide the mean of the gradients by the root of that of their squares (Kingma, Ba 2015)."""

    def rule(t: int, g: Tensor, m: Tensor, v: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        m = beta_1 * m + (1 - beta_1) * g
        v = beta_2 * v + (1 - beta_2) * g**2
        return m / (1 - beta_1**t) / (root(v / (1 - beta_2**t)) + eps), (m, v)

    return _optimizer(2, rule)


def _optimizer(averages: int, rule: Rule) -> Optimizer:
    def init(params: Params) -> State:
        if not averages:  # and no zeros, which would be as large as the parameters
            return State(0, ())
        zeros = {name: torch.zeros_like(p) for name, p in params.items()}
        return State(0, (zeros,) * averages)

    def update(g: Params, state: State, params: Params, rates: Rates) -> tuple[Params, State]:
        stepped, after = {}, tuple[Params, ...]({} for _ in state.averages)
        for name, p in params.items():
            now = (average[name] for average in state.averages)
            direction, then = rule(state.steps + 1, g[name], *now)
            stepped[name] = _descended(p, rates[name], direction)
            for average, value in zip(after, then, strict=True):
                average[name] = value
        return stepped, State(state.steps + 1, after)

    return Optimizer(init, update)


def _descended(p: Tensor, rate: float | Tensor, direction: Tensor) -> Tensor:
    """p - rate * direction as one operation, which halves those of the derivative as well."""
    if isinstance(rate, Tensor):
        return torch.addcmul(p, rate, direction, value=-1)
    return torch.sub(p, direction, alpha=rate)


def root(x: Tensor) -> Tensor:
    """The square root, with a derivative of 0 at 0, where it has none: units may be dead."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


OPTIMIZERS: Mapping[Name, Optimizer] = {
    "sgd": sgd(),
    "momentum": momentum(),
    "rmsprop": rmsprop(),
    "adam": adam(),
}
