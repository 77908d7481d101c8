"""Attention of examples to a support set, with or without its full context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metatrain.models.layers import SCALE, LinearLayer, cosines
from metatrain.models.memory import lstm


class AttentionLayer(nn.Module):
    """Log-probabilities of classes: the support examples' classes, weighted by attention to them.

    The weight of example i is softmax_i(scale * cos(x, support_i)) (Vinyals et al. 2016, section
    2.1.1). `support` [S, features] and `targets` [S, outputs] are parameters that an algorithm
    replaces by the features and the one-hot classes of a task's S support examples.
    """

    takes_tasks = True  # see metatrain.problems.functional.call

    def __init__(self, features: int, outputs: int, reads: int = 0) -> None:
        """Attend to features as they are, or after so many `reads` of the full context."""
        super().__init__()
        self.support = nn.Parameter(torch.empty(1, features))
        self.targets = nn.Parameter(torch.full((1, outputs), 1 / outputs))
        self.scale = nn.Parameter(torch.tensor(SCALE))
        nn.init.xavier_uniform_(self.support)
        self.context = Context(features, reads) if reads else None

    def forward(self, x: Tensor) -> Tensor:
        support = self.support
        if self.context is not None:
            x, support = self.context(x, support, self.targets)
        logits = self.scale[..., None, None] * cosines(x, support)  # [..., N, S]
        each = logits.log_softmax(-1)[..., None] + self.targets.log()[..., None, :, :]
        return each.logsumexp(-2)


class Context(nn.Module):
    """Full context embeddings: features that know the support set (the paper's appendix A).

        g_i = forward LSTM_i(g') + backward LSTM_i(g') + g'_i             (A.2)
        h_k = LSTM(f', [h_{k-1}, r_{k-1}]) + f',  f = h_K                 (equations 3 and 4)
        r_k = sum_i softmax_i(h_k . g_i) g_i                              (equations 5 and 6)

    f' and g' are the features of a query and a support example, K is `reads`. States start at 0.
    The LSTMs read the support set class by class, and within a class in the given order.
    """

    def __init__(self, features: int, reads: int) -> None:
        super().__init__()
        self.reads = reads
        self.forwards = Cell(features, features)
        self.backwards = Cell(features, features)
        self.query = Cell(features, 2 * features)

    def forward(self, x: Tensor, support: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Features x [..., N, F] and support [..., S, F] in the context of targets [..., S, C]."""
        order = targets.argmax(-1).argsort(dim=-1, stable=True)[..., None]
        own = support.take_along_dim(order, -2)
        g = own + self.forwards.read(own) + self.backwards.read(own.flip(-2)).flip(-2)
        h, c = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.reads):
            r = (h @ g.mT).softmax(-1) @ g
            h, c = self.query(self.query.features(x), torch.cat([h, r], -1), c)
            h = h + x
        return h, g.take_along_dim(order.argsort(-2), -2)


class Cell(nn.Module):
    """An LSTM's cell, whose output is as wide as its features."""

    def __init__(self, features: int, recurrent: int) -> None:
        super().__init__()
        self.features = LinearLayer(features, 4 * features)
        self.recurrent = LinearLayer(recurrent, 4 * features)

    def forward(self, gates: Tensor, recurrent: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next h and c [..., N, F]; gates are what `features` makes of the input."""
        return lstm(gates + self.recurrent(recurrent), c)

    def read(self, x: Tensor) -> Tensor:
        """h [..., S, F] after each example of a sequence x [..., S, F]."""
        h = c = torch.zeros_like(x[..., :1, :])
        outputs = []
        for gates in self.features(x).split(1, -2):
            h, c = self(gates, h, c)
            outputs.append(h)
        return torch.cat(outputs, -2)
