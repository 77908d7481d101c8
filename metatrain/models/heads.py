"""Heads: what turns a body's features into outputs, for any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from metatrain.bounds import bounded, check_bounds
from metatrain.core import InputError
from metatrain.models import layers, memory
from metatrain.models.attention import AttentionLayer
from metatrain.models.cells import CellsLayer
from metatrain.models.fast import FastLayer
from metatrain.models.mann import MANNLayer
from metatrain.models.relation import PairScores, RelationLayer
from metatrain.models.snail import SNAILLayer
from metatrain.models.transformer import TransformerLayer

# Parameters of heads that an algorithm gives values of each task, as a network names them:
WEIGHT, BIAS = "head.weight", "head.bias"  # [T, outputs, F], [T, outputs]
SUPPORT, TARGETS = "head.support", "head.targets"  # [T, S, F], [T, S, outputs]
SCORES = "head.scores."  # how names begin of a network that scores pairs
FAST = "head.fast"  # [T, S, outputs, F + 1]
HIDDEN, PREVIOUS = "head.hidden", "head.previous"  # [T, H], [T, feedback]
PRIOR = "head.prior"  # [T, width]: of a network that reads a support set as a whole
# Of a policy by values of actions, [T, episodes] or [T, 1]: the share of random actions.
EPSILON = "epsilon"


@dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear map of the features."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["linear"] = "linear"

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        """The head in place of a linear one.

        feedback: numbers that follow each example which it reads.
        shape: of the features before they are flattened, such as [channels, height, width].
        """
        return linear


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """scale * cos(features, weight of the class), with a learned scale.

    Gidaris and Komodakis 2018, arXiv 1804.09458, section 3.2.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["cosine"] = "cosine"

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        return layers.CosineLayer(linear.in_features, linear.out_features)


@dataclass(frozen=True, kw_only=True)
class Attention:
    """The classes of the support examples, weighted by softmax(scale * cosine of the features).

    Vinyals et al. 2016, arXiv 1606.04080, section 2.1. The scale is learned and starts at 10; the
    paper has none.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["attention"] = "attention"
    reads: int = bounded(0, least=0, most=100)
    """Times that a query reads the support set (full context embeddings); 0: no context."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        return AttentionLayer(linear.in_features, linear.out_features, self.reads)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """A network that scores the relation of an example's features and each class's mean features.

    Sung et al. 2018, arXiv 1711.06025. If the body gives maps, two blocks of convolution read them.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["pairs"] = "pairs"
    filters: int = bounded(64, least=1, most=1024)
    """Channels of the blocks."""
    hidden: int = bounded(8, least=1, most=4096)
    """Units of the layer before the score."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        scores = PairScores(shape, self.filters, self.hidden)
        return RelationLayer(linear.in_features, linear.out_features, scores)


@dataclass(frozen=True, kw_only=True)
class Fast:
    """A linear map, and fast ones of the support examples, weighted by attention to them.

    Munkhdalai and Yu 2017, arXiv 1703.00837. The scale of the cosines is learned and starts at 10.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["fast"] = "fast"

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        return FastLayer(linear.in_features, linear.out_features)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A recurrent cell, which keeps what it read, and a linear map of its output."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["memory"] = "memory"
    cell: memory.Cell = "lstm"
    """`rnn`, `gru`, `lstm`, or `none`: a layer that keeps only the last target."""
    hidden: int = bounded(64, least=1, most=4096)
    """Units of the cell."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        sizes = linear.in_features, linear.out_features, feedback
        return memory.MemoryLayer(*sizes, self.cell, self.hidden)


@dataclass(frozen=True, kw_only=True)
class MANN:
    """An LSTM with a memory of slots, and a linear map of both (Santoro et al. 2016)."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["mann"] = "mann"
    hidden: int = bounded(200, least=1, most=4096)
    """Units of the LSTM."""
    slots: int = bounded(128, least=1, most=4096)
    """Slots of the memory."""
    width: int = bounded(40, least=1, most=4096)
    """Numbers in a slot."""
    reads: int = bounded(4, least=1, most=64)
    """Heads that read and write, each with a key of its own."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.reads > self.slots:
            raise InputError("reads", got=self.reads, expected=f"at most slots, {self.slots}")

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        sizes = linear.in_features, linear.out_features, feedback
        return MANNLayer(
            *sizes, units=self.hidden, slots=self.slots, width=self.width, reads=self.reads
        )


@dataclass(frozen=True, kw_only=True)
class SNAIL:
    """Temporal convolutions and attention over the whole episode (Mishra et al. 2018)."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["snail"] = "snail"
    width: int = bounded(128, least=4, most=1024)
    """Channels of a convolution; the keys of the attention are 1/2, 2 and 4 times as wide."""
    length: int = bounded(32, least=2, most=10_000)
    """Examples that the convolutions reach back; attention reaches all."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        sizes = linear.in_features, linear.out_features, feedback
        return SNAILLayer(*sizes, width=self.width, length=self.length)


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A transformer that reads the support set, in any order (Müller et al. 2022)."""

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["transformer"] = "transformer"
    width: int = bounded(64, least=1, most=4096)
    """Numbers of a token."""
    depth: int = bounded(4, least=1, most=64)
    """Layers."""
    heads: int = bounded(4, least=1, most=64)
    """Heads of a layer's attention; they divide `width`."""
    attention: Literal["softmax", "linear"] = "softmax"
    """`softmax`, or `linear`: layers of attention alone, without norms and hidden units."""
    standardise: bool = False
    """Whether each feature is standardised by the support set, such as columns of tables."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_heads(self.heads, self.width)

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        return TransformerLayer(
            linear.in_features,
            linear.out_features,
            feedback,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            linear=self.attention == "linear",
            standardise=self.standardise,
        )


@dataclass(frozen=True, kw_only=True)
class Cells:
    """A transformer that reads each cell of a table, in any order of rows and columns.

    Hollmann et al. 2025; Pfefferle et al. 2025, arXiv 2511.03634.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["cells"] = "cells"
    width: int = bounded(96, least=1, most=4096)
    """Numbers of a token."""
    depth: int = bounded(3, least=1, most=64)
    """Layers."""
    heads: int = bounded(4, least=1, most=64)
    """Heads of a layer's attention; they divide `width`."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_heads(self.heads, self.width)

    def module(self, linear: nn.Linear, feedback: int, shape: Sequence[int]) -> nn.Module:
        sizes = linear.in_features, linear.out_features, feedback
        return CellsLayer(*sizes, width=self.width, depth=self.depth, heads=self.heads)


def check_heads(heads: int, width: int) -> None:
    """Refuse heads of attention among which the numbers of a token cannot be divided."""
    if width % heads:
        raise InputError("heads", got=heads, expected=f"a divisor of width, {width}")


LINEAR = Linear()
Head = Annotated[
    Linear | Cosine | Attention | Pairs | Fast | Memory | MANN | SNAIL | Transformer | Cells,
    Field(discriminator="name"),
]


class Net(nn.Module):
    """A body that gives features [N, F], and a head on them."""

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.takes_tasks = all(getattr(part, "takes_tasks", False) for part in (body, head))

    def forward(self, x: Tensor) -> Tensor:
        predicted: Tensor = self.head(self.body(x))
        return predicted
