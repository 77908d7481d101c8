"""Encoders of texts, which come as rows of bytes with zeros after their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.bounds import bounded, check_bounds
from metatrain.core import InputError
from metatrain.models import heads
from metatrain.models.layers import Layers, LinearLayer

VOCABULARY = 256  # bytes; zero is no byte of a text
PRIME = 2_654_435_761  # Knuth's multiplicative hash


@dataclass(frozen=True, kw_only=True)
class TextBag:
    """A bag of n-grams of bytes, which are weighed or embedded, and a head.

        features_g = w_g c_g,  c_g = log(1 + count(g)) / |log(1 + count)|
        features = sum_g v_g c_g             if they are embedded (Joulin et al. 2017, 1607.01759)

    An n-gram g of 1 to `longest` bytes has the bucket that a hash gives it, which others may share.
    The weights w_g start at 1: prototypical networks with a cosine head then are the nearest
    centroid of n-grams, and they learn which n-grams tell classes apart.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["text_bag"] = "text_bag"
    buckets: int = bounded(4096, least=1, most=1 << 20)
    """Embeddings, which n-grams share by a hash."""
    longest: int = bounded(3, least=1, most=7)
    """Bytes of the longest n-gram."""
    width: int | None = bounded(None, least=1, most=8192)
    """Numbers of an embedding; `null`: each bucket is a feature, with a learned weight."""
    head: heads.Head = heads.LINEAR
    """What turns the features into outputs."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, bytes] -> [N, outputs]."""
        check_texts(self.name, inputs)
        bag = Weights(self.buckets) if self.width is None else Embeddings(self.buckets, self.width)
        body = Layers(Ngrams(self.buckets, self.longest), bag)
        return _net(body, self.head, self.width or self.buckets, outputs, feedback)


@dataclass(frozen=True, kw_only=True)
class TextConv:
    """Embedded bytes, convolutions with ReLU, the maximum over places (Kim 2014), and a head."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["text_conv"] = "text_conv"
    width: int = bounded(32, least=1, most=1024)
    """Numbers of a byte's embedding."""
    filters: tuple[int, ...] = bounded((128, 128), least=1, most=4096)
    """Channels of each convolution."""
    kernel: int = bounded(5, least=1, most=64)
    """Places that a convolution sees."""
    head: heads.Head = heads.LINEAR
    """What turns the last channels into outputs."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 1 <= len(self.filters) <= 32:
            raise InputError("filters", got=list(self.filters), expected="those of 1 to 32 layers")

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, bytes] -> [N, outputs]."""
        check_texts(self.name, inputs)
        layers: list[nn.Module] = [Bytes(self.width), Channels()]
        for narrow, wide in pairwise([self.width, *self.filters]):
            layers += [nn.Conv1d(narrow, wide, self.kernel, padding="same"), nn.ReLU()]
        body = nn.Sequential(*layers, Largest())
        return _net(body, self.head, self.filters[-1], outputs, feedback)


@dataclass(frozen=True, kw_only=True)
class TextGRU:
    """Embedded bytes, a GRU that reads them (Cho et al. 2014, arXiv 1406.1078), and a head.

    Features are the mean of its states at the bytes of the text.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["text_gru"] = "text_gru"
    width: int = bounded(32, least=1, most=1024)
    """Numbers of a byte's embedding."""
    hidden: int = bounded(64, least=1, most=4096)
    """Units of the GRU."""
    head: heads.Head = heads.LINEAR
    """What turns the mean state into outputs."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, bytes] -> [N, outputs]."""
        check_texts(self.name, inputs)
        return _net(Reader(self.width, self.hidden), self.head, self.hidden, outputs, feedback)


@dataclass(frozen=True, kw_only=True)
class ByteMLP:
    """Embedded bytes side by side, hidden layers, and a head (Bengio et al. 2003).

    It predicts the byte that follows: the family `language` gives it the bytes before.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["byte_mlp"] = "byte_mlp"
    width: int = bounded(16, least=1, most=1024)
    """Numbers of a byte's embedding."""
    hidden: tuple[int, ...] = bounded((256,), least=1, most=8192)
    """Widths of the hidden layers."""
    head: heads.Head = heads.LINEAR
    """What turns the last hidden layer into outputs."""
    weights: str | None = None
    """Where the initial weights are: a safetensors file, or the folder of a run."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not 1 <= len(self.hidden) <= 32:
            raise InputError("hidden", got=list(self.hidden), expected="those of 1 to 32 layers")

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, bytes] -> [N, outputs]."""
        check_texts(self.name, inputs)
        layers: list[nn.Module] = [Bytes(self.width), nn.Flatten(-2)]
        for narrow, wide in pairwise([inputs[0] * self.width, *self.hidden]):
            layers += [LinearLayer(narrow, wide), nn.ReLU()]
        return _net(Layers(*layers), self.head, self.hidden[-1], outputs, feedback)


class Ngrams(nn.Module):
    """The counts of a text's n-grams; it has no parameters."""

    def __init__(self, buckets: int, longest: int) -> None:
        super().__init__()
        self.buckets, self.longest = buckets, longest

    def forward(self, x: Tensor) -> Tensor:
        return counts(x, self.buckets, self.longest)


class Weights(nn.Module):
    """A weight of each feature, 1 at first. It takes those of T tasks at once as well."""

    takes_tasks = True  # see metatrain.problems.functional.call

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.unsqueeze(-2)


class Embeddings(nn.Module):
    """The sum of embeddings, weighed by features. It takes those of T tasks at once as well."""

    takes_tasks = True

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(features, width))
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Bytes(nn.Module):
    """An embedding [..., width] of each byte. It takes the weights of T tasks at once as well."""

    takes_tasks = True  # see metatrain.problems.functional.call

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(VOCABULARY, width))
        nn.init.normal_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        ids = x.long()
        if self.weight.dim() == 2:
            return F.embedding(ids, self.weight)
        tasks, bytes_, width = self.weight.shape
        first = bytes_ * torch.arange(tasks, device=x.device)
        ids = ids + first.view(-1, *[1] * (x.dim() - 1))
        return F.embedding(ids, self.weight.reshape(-1, width))


class Channels(nn.Module):
    """Places and channels exchanged, for convolutions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT


class Largest(nn.Module):
    """The maximum over places, [..., channels, places] -> [..., channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(-1)


class Reader(nn.Module):
    """A GRU, written out: torch's has no batching rule for vmap."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = Bytes(width)
        self.input = nn.Linear(width, 3 * hidden)
        self.recurrent = nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.recurrent.in_features)
        there, total = (x > 0).to(x.dtype), torch.zeros_like(h)
        for now, is_byte in zip(
            self.input(self.embedding(x)).unbind(1), there.unbind(1), strict=True
        ):
            (x_r, x_z, x_n), (h_r, h_z, h_n) = now.chunk(3, -1), self.recurrent(h).chunk(3, -1)
            z = torch.sigmoid(x_z + h_z)
            h = (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * h
            total = total + is_byte[:, None] * h
        return total / there.sum(1, keepdim=True).clamp(min=1)


def counts(x: Tensor, buckets: int, longest: int) -> Tensor:
    """[..., buckets]: log(1 + count) of the n-grams of up to `longest` bytes, of length 1.

    x: [..., bytes] texts with zeros after their end.
    """
    ids = x.long()
    code = ids
    kind = x.dtype if x.is_floating_point() else torch.float32
    found = torch.zeros(*x.shape[:-1], buckets, dtype=kind, device=x.device)
    for n in range(1, min(longest, x.shape[-1]) + 1):
        if n > 1:
            code = code[..., :-1] * VOCABULARY + ids[..., n - 1 :]
        bucket = ((code * PRIME + n) >> 15).remainder(buckets) if n > 1 else ids.remainder(buckets)
        found = found.scatter_add(-1, bucket, (ids[..., n - 1 :] > 0).to(kind))
    return F.normalize(found.log1p(), dim=-1)


def check_texts(name: str, inputs: Sequence[int]) -> None:
    """Refuse a network of texts for examples of another shape."""
    if len(inputs) != 1:
        raise InputError(
            f"{name} reads texts, and these examples have the shape {list(inputs)}",
            remedy="choose another model, or set family.name to texts",
        )


def _net(
    body: nn.Module, head: heads.Head, features: int, outputs: int, feedback: int
) -> nn.Module:
    # A linear head is drawn in any case, so that bodies are alike whatever their head.
    return heads.Net(body, head.module(LinearLayer(features, outputs), feedback, [features]))
