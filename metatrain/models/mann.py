"""A memory-augmented network: it writes where its memory is least used (Santoro et al. 2016)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metatrain.models.memory import lstm

DECAY = 0.99  # of a slot's usage, per example
SCALE = 10.0  # of cosines, before training
SMALL = 1e-3  # added to squared lengths, so that the cosine of an empty slot has a slope


class MANNLayer(nn.Module):
    """An LSTM that reads a memory M of slots by their content, and a linear map of both.

        K_i = cos(k, M_i),   w^r = softmax_i(scale * K_i)                 (equations 2 and 3)
        r = sum_i w^r_i M_i                                               (equation 4)
        w^u <- decay * w^u + w^r + w^w                                    (equation 5)
        w^w = sigmoid(a) * w^r_before + (1 - sigmoid(a)) * w^lu           (equation 7)
        M_i <- M_i + w^w_i k                                              (equation 8)

    (arXiv 1605.06065, section 3.) The LSTM gives each reading head a key k and a gate a. w^lu is a
    slot for each head, the least used ones, which are emptied before they are written. An example
    is read before it is written, since the key that is most like its own is its own. The paper has
    no scale. `hidden` is the whole state, and `previous` the target of the example before: as
    parameters their values at the start, as arguments of `forward` their values now.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        feedback: int,
        *,
        units: int,
        slots: int,
        width: int,
        reads: int,
    ) -> None:
        super().__init__()
        # Features and feedback have layers of their own: in one layer, few numbers of feedback
        # would hardly count.
        self.features = nn.Linear(features, 4 * units)
        self.feedback = nn.Linear(feedback, 4 * units, bias=False)
        self.recurrent = nn.Linear(units + reads * width, 4 * units)
        self.keys = nn.Linear(units, reads * width)
        self.gates = nn.Linear(units, reads)
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.out = nn.Linear(units + reads * width, outputs)
        nn.init.ones_(self.features.bias[units : 2 * units])  # remember at first
        # What the state holds: h, c, M, w^r, w^u, r.
        self.shapes = (units,), (units,), (slots, width), (reads, slots), (slots,), (reads, width)
        start = [torch.zeros(shape) for shape in self.shapes]
        start[2] += 1e-6
        start[4] += torch.arange(slots) * 1e-6  # the first slot is the least used one
        self.hidden = nn.Parameter(torch.cat([part.flatten() for part in start]))
        self.previous = nn.Parameter(torch.zeros(feedback))

    def forward(
        self, features: Tensor, hidden: Tensor | None = None, previous: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """features [N, F] -> [N, outputs].

        With the states [N, H] and targets [N, feedback] of N readers it also returns their next
        states [N, H].
        """
        now = (self.hidden if hidden is None else hidden).expand(len(features), -1)
        feedback = (self.previous if previous is None else previous).expand(len(features), -1)
        parts = now.split([math.prod(shape) for shape in self.shapes], -1)
        h, c, memory, read_weights, usage, read = (
            part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)
        )
        seen = self.features(features) + self.feedback(feedback)
        h, c = lstm(seen + self.recurrent(torch.cat([h, read.flatten(-2)], -1)), c)
        keys = torch.tanh(self.keys(h)).unflatten(-1, read.shape[-2:])  # [N, reads, width]
        weights_before = read_weights
        read_weights = (self.scale * self._cosines(keys, memory)).softmax(-1)
        read = read_weights @ memory
        gates = torch.sigmoid(self.gates(h))[..., None]
        least = (-usage).topk(read.shape[-2], dim=-1).indices[..., None]  # [N, reads, 1]
        least_used = (least == torch.arange(usage.shape[-1], device=usage.device)).to(usage.dtype)
        write_weights = gates * weights_before + (1 - gates) * least_used  # [N, reads, slots]
        memory = memory * (1 - least_used.sum(-2))[..., None] + write_weights.mT @ keys
        usage = DECAY * usage + (read_weights + write_weights).sum(-2)
        out = self.out(torch.cat([h, read.flatten(-2)], -1))
        if hidden is None:
            return out
        state = h, c, *(part.flatten(1) for part in (memory, read_weights, usage, read))
        return out, torch.cat(state, -1)

    @staticmethod
    def _cosines(keys: Tensor, memory: Tensor) -> Tensor:
        """[N, reads, slots]."""
        lengths = ((x.square().sum(-1) + SMALL).rsqrt() for x in (keys, memory))
        by_key, by_slot = lengths
        return keys @ memory.mT * by_key[..., None] * by_slot[..., None, :]
