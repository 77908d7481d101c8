"""The relation module: a network that compares pairs of features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatrain.models.blocks import Block
from metatrain.models.layers import LinearLayer
from metatrain.models.normalisation import BatchStatistics, rows_each


class RelationLayer(nn.Module):
    """Scores of the relation between features and each class: scores([c_k, x]) for class k.

    c_k is the mean of the support features of class k. Sung et al. 2018 add them (section 3.2),
    which is the same function with other weights in the first layer. `support` [S, features] and
    `targets` [S, outputs] are parameters that an algorithm replaces by the features and the one-hot
    classes of a task's S support examples.
    """

    def __init__(self, features: int, outputs: int, scores: nn.Module) -> None:
        """scores: gives [..., M, 1] of pairs [..., M, 2 * features]."""
        super().__init__()
        self.support = nn.Parameter(torch.zeros(1, features))
        self.targets = nn.Parameter(torch.full((1, outputs), 1 / outputs))
        self.scores = scores
        self.takes_tasks = getattr(scores, "takes_tasks", False)

    def forward(self, x: Tensor) -> Tensor:
        """Features [..., N, F] -> [..., N, outputs]."""
        classes = self.targets.mT @ self.support / self.targets.sum(-2)[..., None]
        shape = (*x.shape[:-1], *classes.shape[-2:])
        pairs = classes[..., None, :, :].expand(shape), x[..., None, :].expand(shape)
        norms = [m for m in self.scores.modules() if isinstance(m, BatchStatistics)]
        with rows_each(norms, shape[-2]):
            scores: Tensor = self.scores(torch.cat(pairs, -1).flatten(-3, -2))
        return scores.view(shape[:-1])


class PairScores(nn.Module):
    """Two blocks of convolution on the maps of a pair, and two linear layers (section 3.4).

    Features that are no maps get the linear layers alone.
    """

    takes_tasks = True  # see metatrain.problems.functional.call

    def __init__(self, shape: Sequence[int], filters: int, hidden: int) -> None:
        super().__init__()
        self.shape = (2 * shape[0], *shape[1:])
        self.blocks, features = nn.Sequential(), math.prod(self.shape)
        if len(shape) == 3:
            _, height, width = shape
            for channels in (self.shape[0], filters):
                halves = min(height, width) > 1
                self.blocks.append(Block(channels, filters, "max" if halves else "none"))
                height, width = (height // 2, width // 2) if halves else (height, width)
            features = filters * height * width
        self.hidden = LinearLayer(features, hidden)
        self.out = LinearLayer(hidden, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """[..., M, 2 F] -> [..., M, 1]."""
        maps = pairs.unflatten(-1, self.shape)
        for block in self.blocks:
            maps = block(maps)
        scores: Tensor = self.out(F.relu(self.hidden(maps.flatten(pairs.dim() - 1))))
        return scores
