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


def cosines(x: Tensor, y: Tensor) -> Tensor:
    """[..., N, M] cosines of the angles between rows of x [..., N, F] and of y [..., M, F]."""
    return F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT
