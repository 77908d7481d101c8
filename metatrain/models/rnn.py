"""A network with a memory, for learners that adapt by reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from metatrain.core import InputError
from metatrain.models.conv import Conv4
from metatrain.models.mlp import MLP

GATES = {"none": 1, "rnn": 1, "gru": 3, "lstm": 4}


class Memory(nn.Module):
    """A recurrent cell on (features, what followed the example before), and a linear map of its
    output.

    `hidden` and `previous` are the memory: as parameters what it is at the start, given to
    `forward` what it is now. Cells are written out: torch's have no batching rule for vmap, and
    cuDNN's cannot be differentiated twice.
    """

    def __init__(self, features: int, outputs: int, feedback: int, cell: str, width: int) -> None:
        super().__init__()
        self.cell = cell
        # Features and feedback have layers of their own: in one of both, few numbers of feedback
        # would hardly count.
        self.features = nn.Linear(features, GATES[cell] * width)
        self.feedback = nn.Linear(feedback, GATES[cell] * width, bias=False)
        self.recurrent = nn.Linear(width, GATES[cell] * width) if cell != "none" else None
        self.out = nn.Linear(width, outputs)
        if cell == "lstm":
            nn.init.ones_(
                self.features.bias[width : 2 * width]
            )  # remember at first (Jozefowicz et al. 2015)
        self.hidden = nn.Parameter(
            torch.zeros(2 * width if cell == "lstm" else width)
        )  # of an LSTM h and c
        self.previous = nn.Parameter(torch.zeros(feedback))

    def forward(
        self, features: Tensor, hidden: Tensor | None = None, previous: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """features [N, F] -> [N, outputs]; with the memories [N, H] and [N, feedback] of N readers
        their new H, too.
        """
        now = (self.hidden if hidden is None else hidden).expand(len(features), -1)
        told = (self.previous if previous is None else previous).expand(len(features), -1)
        h, after = self._step(self.features(features) + self.feedback(told), now)
        return self.out(h) if hidden is None else (self.out(h), after)

    def _step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The cell's output, and its next memory."""
        if self.recurrent is None:
            return torch.tanh(x), hidden
        if self.cell == "rnn":
            h = torch.tanh(x + self.recurrent(hidden))
            return h, h
        if self.cell == "gru":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, -1), self.recurrent(hidden).chunk(3, -1)
            z = torch.sigmoid(x_z + h_z)
            h = (1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n) + z * hidden
            return h, h
        h, c = hidden.chunk(2, -1)
        i, f, g, o = (x + self.recurrent(h)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, torch.cat([h, c], -1)


class MemoryNet(nn.Module):
    """A body, and a memory as its head."""

    def __init__(self, body: nn.Module, head: Memory) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        predicted: Tensor = self.head(self.body(x))
        return predicted


@dataclass(frozen=True, kw_only=True)
class RNN:
    """A recurrent cell with `hidden` units on the features of a body: another network without its
    head.

    `cell` "none" is a layer of that width which keeps nothing but the last target: what a memory
    has to beat. `weights` is where the initial weights are: a safetensors file, or a run's folder.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["rnn"] = "rnn"
    cell: Literal["rnn", "gru", "lstm", "none"] = "lstm"
    hidden: int = 64
    body: Annotated[MLP | Conv4, Field(discriminator="name")]
    weights: str | None = None

    def __post_init__(self) -> None:
        if self.body.weights is not None:
            raise InputError(
                "body.weights would not be read",
                remedy=("give the weights of the whole network as model.weights"),
            )

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        """[N, *inputs] -> [N, outputs], from the memory as it is at the start."""
        net = self.body.module(inputs, outputs, feedback)
        features = net.get_parameter("head.weight").shape[1]
        return MemoryNet(
            net.get_submodule("body"), Memory(features, outputs, feedback, self.cell, self.hidden)
        )
