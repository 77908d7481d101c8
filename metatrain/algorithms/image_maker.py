"""Two small networks of images: one makes an image from another, one tells made from real."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from metatrain.algorithms.coordinates import uniform
from metatrain.core import Params

CONTRAST = 8.0  # of what the generator starts from: 0 and 1 become 0.02 and 0.98
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
