"""Two small networks of images: one makes an image from another, one tells made from real."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from metatrain.algorithms.coordinates import uniform
from metatrain.core import Params

CONTRAST = 8.0  # of what the generator starts from: 0 and 1 become 0.02 and 0.98
PENALTY = 10.0  # weight of the discriminator's slopes
TINY = 1e-12  # so that a slope of zero has a derivative
GENERATOR, DISCRIMINATOR = "generator.", "discriminator."  # how the names of weights begin


def fresh(channels: int, filters: int, noise: int, generator: torch.Generator) -> Params:
    """Weights of both; the generator starts near the identity.

    channels: of an image.
    filters: of the widest images between layers; half as wide ones have twice as many.
    noise: channels of the noise.
    """
    wide = 2 * filters
    layers = {
        f"{GENERATOR}half": (filters, channels),
        f"{GENERATOR}quarter": (wide, filters),
        f"{GENERATOR}mix": (wide, wide + noise),
        f"{GENERATOR}widen": (filters, wide + filters),
        f"{GENERATOR}out": (channels, filters + channels),
        f"{DISCRIMINATOR}half": (filters, 2 * channels),
        f"{DISCRIMINATOR}quarter": (wide, filters),
        f"{DISCRIMINATOR}out": (1, wide),
    }
    found = {}
    for name, (outputs, inputs) in layers.items():
        size = math.sqrt(6 / (9 * inputs))  # He et al. 2015
        found[f"{name}.weight"] = uniform((outputs, inputs, 3, 3), generator, -size, size)
        found[f"{name}.bias"] = torch.zeros(outputs)
    found[f"{GENERATOR}out.weight"].zero_()
    return found


def make(weights: Params, images: Tensor, generator: torch.Generator) -> Tensor:
    """One image of each: [T, N, C, H, W] in 0..1 of as many in 0..1, with noise of its own.

    A U-net (Ronneberger et al. 2015, arXiv 1505.04597), as in Antoniou et al. 2017.
    """

    def layer(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return _convolve(weights, GENERATOR + name, x, stride)

    x = images.flatten(0, 1)
    half = F.relu(layer("half", x, 2))
    quarter = F.relu(layer("quarter", half, 2))
    channels = weights[f"{GENERATOR}mix.weight"].shape[1] - quarter.shape[1]
    shape = len(x), channels, *quarter.shape[2:]
    noise = 2 * torch.rand(shape, generator=generator).to(x) - 1
    mixed = F.relu(layer("mix", torch.cat([quarter, noise], 1)))
    widened = F.relu(layer("widen", torch.cat([_doubled(mixed, half), half], 1)))
    change = layer("out", torch.cat([_doubled(widened, x), x], 1))
    # A clamp would end all slopes as soon as the images are black.
    return torch.sigmoid(CONTRAST * (x - 0.5) + change).view_as(images)


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


def realness(weights: Params, images: Tensor, others: Tensor) -> Tensor:
    """[T * N] logits that `others` of the classes of `images` are real, [T, N, C, H, W] both."""
    x = torch.cat([images, others], 2).flatten(0, 1)
    for name in ("half", "quarter"):
        x = F.leaky_relu(_convolve(weights, DISCRIMINATOR + name, x, 2), 0.2)
    return _convolve(weights, f"{DISCRIMINATOR}out", x, 2).mean((1, 2, 3))


def _convolve(weights: Params, name: str, x: Tensor, stride: int) -> Tensor:
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding=1)


def _doubled(x: Tensor, like: Tensor) -> Tensor:
    """Images of twice the sides, cut to those of others."""
    height, width = like.shape[-2:]
    return x.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., :height, :width]
