"""Layers that networks share. All take the parameters and inputs of T tasks at once as well."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCALE = 10.0  # of cosines, before training


class LinearLayer(nn.Linear):
    """Also takes the weights and inputs of T tasks at once, [T, out, in] and [T, N, in]."""

    takes_tasks = True  # see metatrain.problems.functional.call

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.dim() == 2:
            return super().forward(x)
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class Layers(nn.Sequential):
    """Layers that all take tasks at once, or have no weights."""

    takes_tasks = True


class CosineLayer(nn.Module):
    """scale * cos(x, weight_k) for each class k (Gidaris and Komodakis 2018, section 3.2)."""

    takes_tasks = True

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, features))
        self.scale = nn.Parameter(torch.tensor(SCALE))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale[..., None, None] * cosines(x, self.weight)


class AttentionLayer(nn.Module):
    """Log-probabilities of classes: the support examples' classes, weighted by attention to them.

    The weight of example i is softmax_i(scale * cos(x, support_i)) (Vinyals et al. 2016, equation
    2). `support` [S, features] and `targets` [S, outputs] are parameters that an algorithm replaces
    by the features and the one-hot classes of a task's S support examples.
    """

    takes_tasks = True

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.support = nn.Parameter(torch.empty(1, features))
        self.targets = nn.Parameter(torch.full((1, outputs), 1 / outputs))
        self.scale = nn.Parameter(torch.tensor(SCALE))
        nn.init.xavier_uniform_(self.support)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.scale[..., None, None] * cosines(x, self.support)  # [..., N, S]
        each = logits.log_softmax(-1)[..., None] + self.targets.log()[..., None, :, :]
        return each.logsumexp(-2)


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """[..., N, M] cosines of the angles between rows of x [..., N, F] and of y [..., M, F]."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT
