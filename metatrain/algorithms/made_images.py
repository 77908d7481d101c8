"""Episodes with images that a generator made, and what it and its discriminator learn from them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metatrain.algorithms.image_maker import make, realness
from metatrain.core import Params

PENALTY = 10.0  # weight of the discriminator's slopes
TINY = 1e-12  # so that a slope of zero has a derivative


def enlarged(weights: Params, task: Any, count: int, generator: torch.Generator) -> Any:
    """The tasks, whose images are floats in 0..1, with so many made of each support image."""
    x, y = task.support_x, task.support_y
    if not count:
        return task
    made = make(weights, torch.cat([x] * count, 1), generator)
    return task._replace(
        support_x=torch.cat([x, made], 1), support_y=torch.cat([y] * (1 + count), 1)
    )


def losses(weights: Params, task: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """L_G, which moves no discriminator, and L_D, which moves no generator.

    task: with images in 0..1 as floats, and class numbers as labels.
    """
    images, made = task.support_x, make(weights, task.support_x, generator)
    same = task.support_y[..., None] == task.query_y[:, None]  # [T, S, Q]
    drawn = torch.rand(same.shape, generator=generator).to(images)
    chosen = (drawn + same).argmax(-1)[..., None, None, None]
    others = task.query_x.take_along_dim(chosen, 1)  # one of the class of each image
    held = {name: p.detach() for name, p in weights.items()}
    judged = realness(held, images, made).mean()
    real, fake = (realness(weights, images, x).mean() for x in (others, made.detach()))
    share = torch.rand((*same.shape[:2], 1, 1, 1), generator=generator).to(images)
    between = torch.lerp(made.detach(), others, share).requires_grad_()
    of_between = realness(weights, images, between).sum()
    (slope,) = torch.autograd.grad(of_between, between, create_graph=True)
    length = (slope.flatten(2).square().sum(-1) + TINY).sqrt()
    return -judged, fake - real + PENALTY * (length - 1).square().mean()
