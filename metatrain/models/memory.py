"""Recurrent cells that read a task's examples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Cell = Literal["rnn", "gru", "lstm", "none"]
GATES: dict[Cell, int] = {"none": 1, "rnn": 1, "gru": 3, "lstm": 4}


class MemoryLayer(nn.Module):
    """A cell on features and on what followed the example before; a linear map of its output.

    `hidden` and `previous` are the memory: as parameters its value at the start, as arguments of
    `forward` its value now. Cells are written out: torch's have no batching rule for vmap, and
    cuDNN's cannot be differentiated twice.
    """

    def __init__(self, features: int, outputs: int, feedback: int, cell: Cell, width: int) -> None:
        super().__init__()
        self.cell = cell
        # Features and feedback have layers of their own: in one layer, few numbers of feedback
        # would hardly count.
        self.features = nn.Linear(features, GATES[cell] * width)
        self.feedback = nn.Linear(feedback, GATES[cell] * width, bias=False)
        self.recurrent = nn.Linear(width, GATES[cell] * width) if cell != "none" else None
        self.out = nn.Linear(width, outputs)
        if cell == "lstm":  # remember at first (Jozefowicz et al. 2015)
            nn.init.ones_(self.features.bias[width : 2 * width])
        states = 2 if cell == "lstm" else 1  # of an LSTM h and c
        self.hidden = nn.Parameter(torch.zeros(states * width))
        self.previous = nn.Parameter(torch.zeros(feedback))

    def forward(
        self, features: Tensor, hidden: Tensor | None = None, previous: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """features [N, F] -> [N, outputs].

        With the memories [N, H] and [N, feedback] of N readers it also returns their next hidden
        states [N, H].
        """
        now = (self.hidden if hidden is None else hidden).expand(len(features), -1)
        feedback = (self.previous if previous is None else previous).expand(len(features), -1)
        h, next_hidden = self._step(self.features(features) + self.feedback(feedback), now)
        return self.out(h) if hidden is None else (self.out(h), next_hidden)

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
        h, c = lstm(x + self.recurrent(h), c)
        return h, torch.cat([h, c], -1)


def lstm(x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM's next h and c, of the sums x [..., 4 * units] that its gates get."""
    i, f, g, o = x.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c
