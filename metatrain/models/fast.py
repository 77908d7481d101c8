"""A head with slow and fast weights (Munkhdalai and Yu 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from metatrain.models.layers import SCALE, cosines


class FastLayer(nn.Module):
    """A linear map, and beside it the fast maps of the support examples, weighted by attention.

        a = softmax_i(scale * cos(x, support_i)),   output = W x + b + sum_i a_i (W*_i x + b*_i)

    (arXiv 1703.00837, algorithm 1.) `support` [S, features] and `fast` [S, outputs, features + 1],
    which has b* last, are parameters that an algorithm replaces for each task. The paper has no
    scale. Also takes the parameters and inputs of T tasks at once.
    """

    takes_tasks = True

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, features))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.scale = nn.Parameter(torch.tensor(SCALE))
        self.support = nn.Parameter(torch.empty(1, features))
        self.fast = nn.Parameter(torch.zeros(1, outputs, features + 1))
        nn.init.xavier_uniform_(self.weight)
        nn.init.xavier_uniform_(self.support)

    def forward(self, x: Tensor) -> Tensor:
        attention = (self.scale[..., None, None] * cosines(x, self.support)).softmax(-1)
        each = pad(x, (0, 1), value=1.0) @ self.fast.flatten(-3, -2).mT  # [..., N, S * outputs]
        fast = (attention[..., None] * each.unflatten(-1, self.fast.shape[-3:-1])).sum(-2)
        return x @ self.weight.mT + self.bias[..., None, :] + fast
