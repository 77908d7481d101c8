"""SNAIL: temporal convolutions and attention over an episode (Mishra et al. 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class SNAILLayer(nn.Module):
    """Predict an example from the sequence of all examples before it, with their targets.

    The layers are attention, convolutions, attention, convolutions, attention, and a linear map
    (arXiv 1707.03141, appendix A); each appends its output to its input. They see (x_1, y_1), ...,
    (x_t, y_t), (x, 0), behind a token that is learned.

    `hidden` is the sequence x_0, y_0, x_1, ..., x_t and `previous` is y_t: as parameters the token,
    as arguments of `forward` their values now. So `hidden` grows with what is read.
    """

    keeps_all = True  # its next state is hidden, previous and features in a row

    def __init__(
        self, features: int, outputs: int, feedback: int, *, width: int, length: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        size, depth = features + feedback, math.ceil(math.log2(length))
        for keys in (width // 2, 2 * width, 4 * width):
            self.layers.append(Attention(size, keys))
            size += keys // 2
            if keys < 4 * width:  # each convolution reaches twice as far as the one before
                self.layers.extend(Dense(size + i * width, width, 2**i) for i in range(depth))
                size += width * depth
        self.out = nn.Linear(size, outputs)
        self.hidden = nn.Parameter(torch.zeros(features))
        self.previous = nn.Parameter(torch.zeros(feedback))

    def forward(
        self, features: Tensor, hidden: Tensor | None = None, previous: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """features [N, F] -> [N, outputs].

        With the sequences [N, H] and targets [N, feedback] of N readers it also returns the longer
        sequences.
        """
        if hidden is None or previous is None:  # all ask after the same sequence
            sequence, questions = torch.cat([self.hidden, self.previous])[None], features[None]
        else:
            sequence, questions = torch.cat([hidden, previous], -1), features[:, None]
        feedback = len(self.previous)
        known = sequence.unflatten(-1, (-1, features.shape[-1] + feedback))
        tokens = torch.cat([known, pad(questions, (0, feedback))], 1)
        out = self.read(tokens, known.shape[1])[:, known.shape[1] :].flatten(0, 1)
        return out if hidden is None else (out, torch.cat([sequence, features], -1))

    def read(self, tokens: Tensor, known: int) -> Tensor:
        """tokens [B, known + Q, F + feedback] -> [B, known + Q, outputs].

        The last Q places of a sequence are questions, each as if it followed the known places.
        """
        for layer in self.layers:
            tokens = layer(tokens, known)
        predicted: Tensor = self.out(tokens)
        return predicted


class Attention(nn.Module):
    """Append what each place reads from itself and the known places before it.

    Keys begin as queries do, so a place reads at first from those that are like it. With a start of
    their own the network stays at chance for a long time.
    """

    def __init__(self, size: int, keys: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(size, keys), nn.Linear(size, keys)
        self.value = nn.Linear(size, keys // 2)
        self.key.load_state_dict(self.query.state_dict())

    def forward(self, x: Tensor, known: int) -> Tensor:
        """[B, n, size] -> [B, n, size + keys / 2]."""
        query, key = self.query(x), self.key(x)
        logits = query @ key.mT / math.sqrt(query.shape[-1])
        place = torch.arange(x.shape[1], device=x.device)
        unseen = ((place >= known) | (place > place[:, None])) & (place != place[:, None])
        weights = logits.masked_fill(unseen, -math.inf).softmax(-1)
        return torch.cat([x, weights @ self.value(x)], -1)


class Dense(nn.Module):
    """Append a gated causal convolution over a place and the one `dilation` places before it."""

    def __init__(self, size: int, width: int, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.here, self.before = nn.Linear(size, 2 * width), nn.Linear(size, 2 * width, bias=False)

    def forward(self, x: Tensor, known: int) -> Tensor:
        """[B, n, size] -> [B, n, size + width]."""
        earlier = pad(x[:, :known], (0, 0, self.dilation, 0))[:, : known + 1]
        before = self.before(earlier)
        asked = before[:, known:].expand(-1, x.shape[1] - known, -1)
        level, gate = (self.here(x) + torch.cat([before[:, :known], asked], 1)).chunk(2, -1)
        return torch.cat([x, torch.tanh(level) * torch.sigmoid(gate)], -1)
