"""An optimizer of inner loops that is an MLP, which all coordinates of a network share."""

from __future__ import annotations

import math
from functools import partial

import torch

from metatrain.algorithms.coordinates import flat, unflat, uniform
from metatrain.algorithms.inner_optimizers import Optimizer, Rates, State, root
from metatrain.core import Params

DECAYS = (0.0, 0.5, 0.9, 0.99)  # of the means of gradients
SQUARES, EPS = 0.999, 1e-8  # of the mean of their squares, as Adam has them
ADAM = DECAYS.index(0.9)


def weights(units: int, lr: float, generator: torch.Generator) -> Params:
    """An MLP of one hidden layer whose steps are those of Adam: only the constant has an effect."""
    constant = torch.zeros(1, 2 + len(DECAYS))
    constant[0, 0], constant[0, 2 + ADAM] = math.log(lr), 1.0
    return {
        "hidden.weight": uniform((len(DECAYS) + 3, units), generator, -0.5, 0.5),
        "hidden.bias": torch.zeros(1, units),
        "out.weight": torch.zeros(units, 1 + len(DECAYS)),
        "out.bias": constant,
    }


def optimizer(mlp: Params, steps: int) -> Optimizer:
    """The optimizer of networks that are trained for so many steps; it takes no rates.

    mlp: weights as `weights` gives them, or those of each task, [T, *shape].
    """
    return Optimizer(_init, partial(_update, mlp, steps))


def _init(params: Params) -> State:
    zeros = {"": torch.zeros_like(flat(params, params))}  # [T, P]: all parameters in a row
    return State(0, (zeros,) * (len(DECAYS) + 1))


def _update(
    mlp: Params, steps: int, gradients: Params, state: State, params: Params, _: Rates
) -> tuple[Params, State]:
    names, k = list(params), state.steps + 1
    g, phi = flat(gradients, names), flat(params, names)
    *means, squares = (average[""] for average in state.averages)
    means = [torch.lerp(g, m, b) for b, m in zip(DECAYS, means, strict=True)]
    squares = torch.lerp(g.square(), squares, SQUARES)
    size = root(squares / (1 - SQUARES**k)) + EPS
    u = [m / (1 - b**k) / size for b, m in zip(DECAYS, means, strict=True)]
    seen = torch.stack([g, *u, phi], -1)
    read, *of_time = mlp["hidden.weight"].split([len(DECAYS) + 1, 1, 1], -2)
    known = of_time[0] * (k / steps) + of_time[1] / k + mlp["hidden.bias"]
    hidden = torch.tanh(seen[..., 1:] @ read + known)
    out, constant = hidden @ mlp["out.weight"], mlp["out.bias"]
    # g has any size: a coefficient of its own for each coordinate would soon diverge.
    mixed = ((constant[..., 2:] + out[..., 1:]) * seen[..., 1:-1]).sum(-1)
    step = (constant[..., 0] + out[..., 0]).exp() * (constant[..., 1] * g + mixed)
    after = tuple({"": average} for average in (*means, squares))
    return unflat(phi - step, params, names), State(k, after)
