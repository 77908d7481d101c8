"""A transformer over a support set, without positions."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TransformerLayer(nn.Module):
    """Predict examples from the support set, which it reads as a set.

    A support example is a token W x + V y, an example that is asked for W x + u, and one token more
    is always there. All tokens attend to that one and to the support set, so that no example that
    is asked for is seen by another one (Müller et al. 2022, arXiv 2112.10510, section 3).

    `support` [S, features] and `targets` [S, feedback] are parameters that an algorithm replaces by
    those of a task; S may be 0. With `linear` attention, layers have neither softmax nor norm nor
    hidden units (von Oswald et al. 2023, arXiv 2212.07677).
    """

    takes_tasks = True  # see metatrain.problems.functional.call

    def __init__(
        self,
        features: int,
        outputs: int,
        feedback: int,
        *,
        width: int,
        depth: int,
        heads: int,
        linear: bool,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        self.support = nn.Parameter(torch.empty(0, features))
        self.targets = nn.Parameter(torch.empty(0, feedback))
        self.example, self.target = SharedLinear(features, width), SharedLinear(feedback, width)
        self.prior, self.asked = (nn.Parameter(torch.zeros(width)) for _ in range(2))
        self.blocks = nn.ModuleList(Block(width, heads, linear) for _ in range(depth))
        self.out = SharedLinear(width, outputs)
        self.linear, self.standardise = linear, standardise

    def forward(self, x: Tensor) -> Tensor:
        """[..., N, features] -> [..., N, outputs]."""
        known: Tensor = self.support
        if self.standardise:
            x, known, varies = standardised(x, known)
            share = varies.float().mean(-1, keepdim=True).clamp(min=1 / x.shape[-1])
            x, known = x * share.rsqrt(), known * share.rsqrt()  # the larger, the fewer vary
        support = self.example(known) + self.target(self.targets)
        asked = self.example(x) + self.asked[..., None, :]
        prior = self.prior[..., None, :].expand_as(asked[..., :1, :])
        tokens = torch.cat([prior, support, asked], -2)
        seen = 1 + support.shape[-2]
        for block in self.blocks:
            tokens = block(tokens, seen)
        found = tokens[..., seen:, :]
        predicted: Tensor = self.out(found if self.linear else normed(found))
        return predicted


class Block(nn.Module):
    """Attention to the first tokens, then hidden units, each added to what it reads."""

    def __init__(self, width: int, heads: int, linear: bool) -> None:
        super().__init__()
        self.attention, self.linear = Attention(width, heads, linear), linear
        if not linear:
            self.wide, self.narrow = SharedLinear(width, 4 * width), SharedLinear(4 * width, width)

    def forward(self, tokens: Tensor, seen: int) -> Tensor:
        """Tokens [..., N, width], of which the first are `seen`."""
        if self.linear:
            return tokens + self.attention(tokens, tokens[..., :seen, :])
        known = normed(tokens)
        tokens = tokens + self.attention(known, known[..., :seen, :])
        return tokens + self.narrow(F.gelu(self.wide(normed(tokens))))


class Attention(nn.Module):
    """Attention of tokens [..., N, width] to others, of several heads."""

    def __init__(self, width: int, heads: int, linear: bool) -> None:
        super().__init__()
        self.heads, self.linear = heads, linear
        self.query = SharedLinear(width, width)
        self.key, self.value = SharedLinear(width, width), SharedLinear(width, width)
        self.mixed = SharedLinear(width, width)

    def forward(self, tokens: Tensor, seen: Tensor, absent: Tensor | None = None) -> Tensor:
        """What tokens read of those that are seen and not `absent` [..., 1, 1, seen]."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # [..., heads, N, width / heads]
            for part in (self.query(tokens), self.key(seen), self.value(seen))
        )
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        if absent is not None:
            logits = logits.masked_fill(absent, -torch.inf)
        weights = logits / seen.shape[-2] if self.linear else logits.softmax(-1)
        mixed: Tensor = self.mixed((weights @ value).transpose(-2, -3).flatten(-2))
        return mixed


def standardised(x: Tensor, support: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features [..., N, F] with the support set's mean 0 and deviation 1, within -10..10.

    Also which features vary there [..., 1, F]; the others become 0.
    """
    examples = max(support.shape[-2], 1)
    mean = support.sum(-2, keepdim=True) / examples
    variance = (support - mean).square().sum(-2, keepdim=True) / examples
    varies = variance > 1e-10
    scale = torch.where(varies, variance.clamp(min=1e-10).rsqrt(), 0.0)
    x, support = (((part - mean) * scale).clamp(-10, 10) for part in (x, support))
    return x, support, varies


def normed(x: Tensor) -> Tensor:
    """Each token with mean 0 and variance 1; the layer that follows can scale it."""
    return F.layer_norm(x, x.shape[-1:])


class SharedLinear(nn.Linear):
    """Also takes the weights of T tasks at once; if they are the same, as one product."""

    takes_tasks = True

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if weight.dim() > 2:
            if weight.stride(0):
                each = torch.baddbmm(bias[:, None], x.flatten(1, -2), weight.mT)
                return each.unflatten(1, x.shape[1:-1])
            weight, bias = One.apply(weight), One.apply(bias)
            x = x.contiguous()  # else sums of a slice would have an order of their own
        return F.linear(x, weight, bias)


class One(torch.autograd.Function):
    """The first of T equal tensors, which are one in memory.

    Each gets a T-th of the gradient, so that their sum is right. Indexing would write zeros for all
    others, as many as T networks have parameters.
    """

    @staticmethod
    def forward(ctx: Any, tensors: Tensor) -> Tensor:
        ctx.size = len(tensors)
        return tensors[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient / ctx.size).expand(ctx.size, *gradient.shape)
