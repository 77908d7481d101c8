"""SNAIL: temporal convolutions and attention over an episode (Mishra et al. 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class SNAILLayer(nn.Module):
    """Predict an example from the sequence of all examples before it, with their targets.

    The layers are attention, convolutions, attention, convolutions, attention, and a linear map
    (arXiv 1707.03141, section 5.1); each appends its output to its input. They see (x_1, y_1), ...,
    (x_{t-1}, y_{t-1}), (x_t, 0), behind a token that is learned.

    `hidden` is the sequence x_0, y_0, x_1, ..., x_{t-1}, and `previous` is y_{t-1}: as parameters
    the token, as arguments of `forward` their values now. So `hidden` grows with what is read.
    """

    def __init__(
        self, features: int, outputs: int, feedback: int, *, width: int, length: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        size, depth = features + feedback, math.ceil(math.log2(length))
        for keys in (width // 2, 2 * width):
            layers += [Attention(size, keys), Temporal(size + keys // 2, width, depth)]
            size += keys // 2 + width * depth
        layers.append(Attention(size, 4 * width))
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(size + 2 * width, outputs)
        self.hidden = nn.Parameter(torch.zeros(features))
        self.previous = nn.Parameter(torch.zeros(feedback))

    def forward(
        self, features: Tensor, hidden: Tensor | None = None, previous: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """features [N, F] -> [N, outputs].

        With the sequences [N, H] and targets [N, feedback] of N readers it also returns the longer
        sequences.
        """
        seen = (self.hidden if hidden is None else hidden).expand(len(features), -1)
        feedback = (self.previous if previous is None else previous).expand(len(features), -1)
        longer = torch.cat([seen, feedback, features], -1)
        token = features.shape[-1], feedback.shape[-1]
        tokens = pad(longer, (0, token[1])).unflatten(-1, (-1, sum(token)))  # [N, t + 1, F + C]
        out = self.out(self.layers(tokens)[:, -1])
        return out if hidden is None else (out, longer)


class Attention(nn.Module):
    """Append what each place of a sequence reads from itself and those before it."""

    def __init__(self, size: int, keys: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(size, keys), nn.Linear(size, keys)
        self.value = nn.Linear(size, keys // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, t, size] -> [N, t, size + keys / 2]."""
        query, key = self.query(x), self.key(x)
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        later = torch.ones_like(logits[0], dtype=torch.bool).triu(1)
        return torch.cat([x, logits.masked_fill(later, -math.inf).softmax(-1) @ self.value(x)], -1)


class Temporal(nn.Sequential):
    """Causal convolutions, each of which reaches twice as far back as the one before."""

    def __init__(self, size: int, width: int, depth: int) -> None:
        super().__init__(*(Dense(size + i * width, width, 2**i) for i in range(depth)))


class Dense(nn.Module):
    """Append a gated causal convolution over a place and the one `dilation` places before it."""

    def __init__(self, size: int, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.here, self.before = nn.Linear(size, 2 * width), nn.Linear(size, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, t, size] -> [N, t, size + width]."""
        before = pad(x, (0, 0, self.dilation, 0))[:, : x.shape[1]]
        level, gate = (self.here(x) + self.before(before)).chunk(2, -1)
        return torch.cat([x, torch.tanh(level) * torch.sigmoid(gate)], -1)
