"""An LSTM that generates the parameters of a task's network, which then descend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop
from metatrain.algorithms.coordinates import flat, lstm, lstm_weights, unflat
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import (
    TRAINING_ONLY,
    Context,
    InputError,
    Meta,
    Params,
    Problem,
    Update,
    labelled,
)
from metatrain.models.heads import WEIGHT


@dataclass(frozen=True, kw_only=True)
class GeneratedParameters:
    """Generate a task's parameters from its support set, then descend the support loss from there.

        h_i = LSTM(h_{i-1}, (f(x_i), y_i)),   i = 1, ..., S
        phi_1 = theta + G h_S
        phi_{k+1} = phi_k - inner_lr * grad L(phi_k)

    f are the features of the initial network's body, read in the order of the support set. G and
    the LSTM are in `Meta.algorithm`. G starts at zero: adaptation then is MAML's. This generates
    parameters as hypernetworks do (Ha et al. 2017, arXiv 1609.09106).
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["generated_parameters"] = "generated_parameters"
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate."""
    inner_steps: int = bounded(1, least=1, most=10_000)
    """Inner steps, after the parameters were generated."""
    units: int = bounded(64, least=1, most=4096)
    """Units of the LSTM."""
    generates: tuple[str, ...] = ("head.*",)
    """Patterns of the parameters that are generated."""
    first_order: bool = field(default=False, metadata=TRAINING_ONLY)
    """Hold the inner gradients constant."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_whole(problem, generator)
        labelled(problem)
        if WEIGHT not in model:
            raise InputError(
                "generated_parameters reads features by the shape of a linear head",
                remedy="set model.head.name to linear",
            )
        outputs, features = model[WEIGHT].shape
        inputs = features + getattr(problem, "feedback", outputs)  # and a target or a class
        numbers = sum(model[n].numel() for n in inner_loop.adapting(list(model), self.generates))
        weights = lstm_weights(inputs, self.units, generator)
        weights["map.weight"] = torch.zeros(numbers, self.units)
        return Meta(model, weights, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._descend(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        adapt = partial(self._descend, order=1 if self.first_order else 2)
        return inner_loop.mean_gradient(adapt, problem, meta, tasks, context)

    def _descend(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        phi = inner_loop.start(meta, task)
        yield phi
        seen = torch.cat(labelled(problem).embed(phi, task, context), -1)  # [T, S, F + C]
        h = c = seen.new_zeros(len(seen), self.units)
        for example in seen.unbind(1):
            h, c = lstm(meta.algorithm, example, h, c)
        names = inner_loop.adapting(list(meta.model), self.generates)
        generated = flat(phi, names) + h @ meta.algorithm["map.weight"].mT
        yield from inner_loop.descend(
            lambda phi: problem.support_loss(phi, task, context),
            phi | unflat(generated, phi, names),
            rates=[dict.fromkeys(meta.model, self.inner_lr)] * self.inner_steps,
            order=order,
            generator=context.generator,
        )
