"""Meta-LSTM (Ravi and Larochelle 2017, https://openreview.net/forum?id=rJY0-Kcll)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

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
from metatrain.bounds import bounded, check_bounds
from metatrain.core import TRAINING_ONLY, Context, Meta, Params, Problem, Update


@dataclass(frozen=True, kw_only=True)
class MetaLSTM:
    """Learn an optimizer: an LSTM whose cell state is the parameters of a task's network.

        theta_t = f_t * theta_{t-1} - i_t * grad L(theta_{t-1})           (equation 2)
        i_t = sigmoid(W_I [g_t, theta_{t-1}, i_{t-1}] + b_I)
        f_t = sigmoid(W_F [g_t, theta_{t-1}, f_{t-1}] + b_F)
        g_t = LSTM(grad L(theta_{t-1}), L(theta_{t-1}))

    All coordinates share the LSTM, which gets gradient and loss on a logarithmic scale, and have
    states of their own. theta_0, the initial cell state, is learned as `Meta.model`, the rest as
    `Meta.algorithm`. The gates start as in the authors' code: f from sigmoid(4..6), so that most
    of theta stays, and i from sigmoid(-5..-4), a small rate.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["meta_lstm"] = "meta_lstm"
    inner_steps: int = bounded(least=1, most=10_000)
    """Steps on the whole support set."""
    units: int = bounded(20, least=1, most=1024)
    """Units of the LSTM that reads gradients and losses."""
    first_order: bool = field(default=True, metadata=TRAINING_ONLY)
    """Hold the inner gradients constant, as the paper does."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_whole(problem, generator)
        gates = {
            "forget.weight": uniform((self.units + 2,), generator),
            "forget.bias": uniform((), generator, 4.0, 6.0),
            "input.weight": uniform((self.units + 2,), generator),
            "input.bias": uniform((), generator, -5.0, -4.0),
        }
        return Meta(model, lstm_weights(4, self.units, generator) | gates, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._descend(problem, meta, task, context, differentiable=False)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        adapt = partial(self._descend, differentiable=not self.first_order)
        return inner_loop.mean_gradient(adapt, problem, meta, tasks, context)

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context, differentiable: bool
    ) -> Iterator[Params]:
        phi, names, w = inner_loop.start(meta, task), list(meta.model), meta.algorithm
        theta = flat(phi, names)  # [T, P]
        h = c = theta.new_zeros(*theta.shape, self.units)
        i = f = torch.zeros_like(theta)
        yield phi
        for _ in range(self.inner_steps):
            ((loss, slope),) = gradients(
                lambda phi: [problem.support_loss(phi, task, context)],
                phi,
                names,
                differentiable=differentiable,
            )
            seen = preprocessed(torch.stack([slope, loss[:, None].expand_as(slope)], -1))
            h, c = lstm(w, seen.flatten(-2), h, c)
            i, f = (
                torch.sigmoid(
                    torch.cat([h, torch.stack([theta, gate], -1)], -1) @ w[f"{name}.weight"]
                    + w[f"{name}.bias"]
                )
                for name, gate in (("input", i), ("forget", f))
            )
            theta = f * theta - i * slope
            phi = phi | unflat(theta, phi, names)
            yield phi
