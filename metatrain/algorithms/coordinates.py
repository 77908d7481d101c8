"""Small networks that treat each coordinate of a network's parameters alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from metatrain.core import Params

CUT = 10.0  # p: below e^-p a number is scaled, above it its logarithm is taken


def flat(params: Params, names: Iterable[str]) -> Tensor:
    """[T, P]: the named parameters [T, *shape] of each task in one row."""
    return torch.cat([params[name].flatten(1) for name in names], 1)


def unflat(rows: Tensor, like: Params, names: Sequence[str]) -> Params:
    """The parameters that `flat` put into rows."""
    parts = rows.split([like[name][0].numel() for name in names], 1)
    return {
        name: part.view(-1, *like[name].shape[1:]) for name, part in zip(names, parts, strict=True)
    }


def gradients(
    losses: Callable[[Params], Sequence[Tensor]],
    phi: Params,
    names: Sequence[str],
    *,
    differentiable: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Each loss [T] at phi, and its gradient [T, P] with respect to the named parameters.

    differentiable: whether both can be differentiated with respect to what phi was computed from.
    """
    if not differentiable:
        phi = phi | {name: phi[name].detach().requires_grad_() for name in names}
    found = []
    with torch.enable_grad():
        for loss in losses(phi):
            slopes = torch.autograd.grad(
                loss.sum(),
                [phi[name] for name in names],
                retain_graph=True,
                create_graph=differentiable,
                materialize_grads=True,
            )
            row = flat(dict(zip(names, slopes, strict=True)), names)
            found.append((loss if differentiable else loss.detach(), row))
    return found


def preprocessed(x: Tensor) -> Tensor:
    """[..., 2]: the size and the sign of numbers of any magnitude.

    (log |x| / p, sign x) if |x| >= e^-p, else (-1, e^p x), with p = 10 (Andrychowicz et al. 2016,
    arXiv 1606.04474, appendix A).
    """
    least = math.exp(-CUT)
    size = x.abs().clamp(min=least).log() / CUT
    return torch.stack([size, torch.where(x.abs() >= least, x.sign(), x / least)], -1)


def uniform(
    shape: Sequence[int], generator: torch.Generator, low: float = -0.01, high: float = 0.01
) -> Tensor:
    """Numbers of a uniform distribution."""
    return torch.empty(tuple(shape)).uniform_(low, high, generator=generator)


def lstm_weights(inputs: int, units: int, generator: torch.Generator) -> Params:
    """Small weights of an LSTM that remembers at first."""
    bias = torch.zeros(4 * units)
    bias[units : 2 * units] = 1.0
    size = 1 / math.sqrt(units)
    weight = uniform((4 * units, inputs + units), generator, -size, size)
    return {"lstm.weight": weight, "lstm.bias": bias}


def lstm(weights: Params, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The next h and c [..., units] of an LSTM that reads x [..., inputs]."""
    gates = torch.cat([x, h], -1) @ weights["lstm.weight"].mT + weights["lstm.bias"]
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
