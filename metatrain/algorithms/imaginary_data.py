"""Support sets with made images (Wang et al. 2018, arXiv 1801.05401)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metatrain.algorithms import image_maker, inner_loop, made_images
from metatrain.algorithms.prototypical import Prototypical
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import (
    TRAINING_ONLY,
    Attackable,
    Context,
    InputError,
    Meta,
    Params,
    Problem,
    Update,
    attackable,
)


@dataclass(frozen=True, kw_only=True)
class ImaginaryData:
    """Prototypical networks whose support set S gets images that a generator G makes of it.

        S* = S and (G(x, z_j), y) for each (x, y) in S and j = 1, ..., made
        L = mean over queries of -log p(y | x, S*)
        L_G = mean over S of -D(x, G(x, z))
        L_D = mean over S of D(x, G(x, z)) - D(x, x') + 10 (|grad_x'' D(x, x'')| - 1)^2

    p is that of prototypical networks, z uniform noise, x' a query image of the class of x, and x''
    between x' and G(x, z). The network descends L, G descends L + adversarial * L_G, and the
    discriminator D descends L_D. Wang et al. have no D, and their G makes features. D gets pairs,
    so that copies of x fail; this and L_D are DAGAN's (Antoniou et al. 2017, arXiv 1711.04340).
    Images must be in 0..1, as those of `fewshot` are.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["imaginary_data"] = "imaginary_data"
    made: int = bounded(1, least=0, most=100)
    """Images made of each support image; 0: none, as prototypical networks."""
    adversarial: float = bounded(0.1, least=0, most=RATE, metadata=TRAINING_ONLY)
    """Weight of the discriminator's judgement beside the query loss, for the generator."""
    noise: int = bounded(8, least=1, most=1024)
    """Channels of the noise that made images differ by."""
    filters: int = bounded(16, least=1, most=1024)
    """Channels of the generator's and the discriminator's widest images."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        start = Prototypical().init(problem, generator)
        if not (isinstance(problem, Attackable) and problem.pixels and len(problem.inputs) == 3):
            raise InputError(
                "imaginary_data makes images in 0..1, and these tasks have none",
                remedy="set algorithm.name to prototypical",
            )
        made = image_maker.fresh(problem.inputs[0], self.filters, self.noise, generator)
        return start._replace(algorithm=made)

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        there, floats = attackable(problem).in_floats(task)
        larger = made_images.enlarged(meta.algorithm, floats, self.made, context.generator)
        return Prototypical().adapt(there, meta, larger, context)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        there, floats = attackable(problem).in_floats(tasks)
        stateless = meta._replace(state={})
        update = inner_loop.mean_gradient(self.adapt, there, stateless, floats, context)
        direction, weights = update.direction, meta.algorithm
        if meta.state:  # of all that the network sees, so of made images as well
            with torch.no_grad():
                larger = made_images.enlarged(weights, floats, self.made, context.generator)
            direction = direction._replace(state=inner_loop.tracked(there, meta, larger))
        if not self.made:
            return update._replace(direction=direction)
        weights = {name: p.detach().requires_grad_() for name, p in weights.items()}
        l_g, l_d = made_images.losses(weights, floats, context.generator)
        slopes = torch.autograd.grad(self.adversarial * l_g + l_d, [*weights.values()])
        pairs = zip(direction.algorithm.items(), slopes, strict=True)
        direction = direction._replace(algorithm={name: p + slope for (name, p), slope in pairs})
        losses = {"generator_loss": l_g.detach(), "discriminator_loss": l_d.detach()}
        return update._replace(direction=direction, metrics={**update.metrics, **losses})

    def make(self, meta: Meta, x: Tensor, generator: torch.Generator) -> Tensor:
        return image_maker.make(meta.algorithm, x, generator)
