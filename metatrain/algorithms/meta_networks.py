"""Meta networks: fast weights from gradients (Munkhdalai and Yu 2017, arXiv 1703.00837)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from metatrain.algorithms import inner_loop
from metatrain.algorithms.coordinates import (
    flat,
    gradients,
    lstm,
    lstm_weights,
    preprocessed,
    unflat,
    uniform,
)
from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import TRAINING_ONLY, Context, Meta, Params, Problem, Update, labelled
from metatrain.models.heads import BIAS, FAST, SUPPORT, WEIGHT


@dataclass(frozen=True, kw_only=True)
class MetaNetworks:
    """Turn the gradients of a task's examples into weights for it, without steps of descent.

        Q* = d(grad_Q L_1, ..., grad_Q L_T)                               (for the body, Q)
        W*_i = m(grad_W L_i),   R_i = f(x_i; Q + Q*)                      (for the head, W)
        output(x) = W f(x) + sum_i softmax_i(scale * cos(R_i, f(x))) W*_i f(x)

    (Algorithm 1.) L_i is the cross-entropy of support example i. d is an LSTM and m a perceptron,
    both on each coordinate, with `Meta.algorithm` as weights. The paper has two networks, b and u;
    here u is the body and b the head on it, and fast weights of the body are added to the slow
    ones. The model must have `head: {name: fast}`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["meta_networks"] = "meta_networks"
    examples: int = bounded(5, least=1, most=EXAMPLES)
    """Most support examples whose gradients make the body's fast weights."""
    units: int = bounded(20, least=1, most=1024)
    """Units of the LSTM and of the perceptron that read gradients."""
    first_order: bool = field(default=True, metadata=TRAINING_ONLY)
    """Hold the gradients of the body constant."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        """Maps to fast weights start at zero, and so do fast weights."""
        model = inner_loop.init_without(problem, generator, (SUPPORT, FAST), "fast")
        perceptron = {
            "fast.in.weight": uniform((self.units, 2), generator, -1.0, 1.0),
            "fast.in.bias": uniform((self.units,), generator, -1.0, 1.0),
            "fast.out.weight": torch.zeros(self.units),
        }
        d = lstm_weights(2, self.units, generator) | {"map.weight": torch.zeros(self.units)}
        return Meta(model, d | perceptron, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._adapt(problem, meta, task, context, differentiable=False)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        adapt = partial(self._adapt, differentiable=not self.first_order)
        return inner_loop.mean_gradient(adapt, problem, meta, tasks, context)

    def _adapt(
        self, problem: Problem, meta: Meta, task: Any, context: Context, differentiable: bool
    ) -> Iterator[Params]:
        phi, w = inner_loop.start(meta, task), meta.algorithm
        body = [name for name in meta.model if name.startswith("body.")]
        loss = partial(self._losses, problem, task, context)
        slow = flat(phi, body)  # Q [T, P]
        h = c = slow.new_zeros(*slow.shape, self.units)
        for _, slope in gradients(loss, phi, body, differentiable=differentiable):
            h, c = lstm(w, preprocessed(slope), h, c)
        fast = phi | unflat(slow + h @ w["map.weight"], phi, body)
        features, classes = labelled(problem).embed(fast, task, context)  # R [T, S, F], [T, S, C]
        error = (features @ phi[WEIGHT].mT + phi[BIAS][:, None]).softmax(-1) - classes
        slope = error[..., None] * pad(features, (0, 1), value=1.0)[..., None, :]  # grad_W L_i
        seen = preprocessed(slope) @ w["fast.in.weight"].mT + w["fast.in.bias"]
        heads = seen.relu() @ w["fast.out.weight"]  # W* [T, S, C, F + 1]
        yield phi | {SUPPORT: features, FAST: torch.zeros_like(heads)}
        yield fast | {SUPPORT: features, FAST: heads}

    def _losses(self, problem: Problem, task: Any, context: Context, phi: Params) -> list[Tensor]:
        """[T] of each of up to `examples` support examples, from classes as different as can be."""
        features, classes = labelled(problem).embed(phi, task, context)
        logits = features @ phi[WEIGHT].mT + phi[BIAS][:, None]
        each = -(logits.log_softmax(-1) * classes).sum(-1)  # [T, S]
        return list(each[:, :: -(-each.shape[1] // self.examples)].unbind(1))
