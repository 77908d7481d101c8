"""Densities of numbers as a network says them: the probabilities of buckets."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad


class Bars:
    """A density that is flat in each bucket but the two outer ones, which have half-normal tails.

    N(0, deviation^2) has the same mass in all buckets (Müller et al. 2022, arXiv 2112.10510,
    section 4). Half of what is in a tail lies where half of that normal distribution's tail does.

    Shapes: T tasks, N examples, B buckets.
    """

    def __init__(self, buckets: int, deviation: float) -> None:
        def quantile(shares: Tensor) -> Tensor:
            return (deviation * torch.special.ndtri(shares)).float()

        places = torch.arange(1, buckets, dtype=torch.float64)
        self.borders = quantile(places / buckets)  # [B - 1], between the buckets
        tail = torch.tensor([1 - 0.5 / buckets, 1 - 1 / buckets, 0.75], dtype=torch.float64)
        middle, border, quartile = torch.special.ndtri(tail).tolist()
        self.tail = deviation * (middle - border) / quartile  # the half normal's deviation
        # By device and type, since a copy to a GPU cannot be recorded.
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def _borders(self, like: Tensor) -> Tensor:
        key = like.device, like.dtype
        if key not in self._copies:
            self._copies[key] = self.borders.to(like)
        return self._copies[key]

    def nll(self, logits: Tensor, target: Tensor) -> Tensor:
        """[T] mean of -log density, of logits [T, N, B] at targets [T, N, 1]."""
        borders = self._borders(target)
        bucket = torch.searchsorted(borders, target.contiguous())  # [T, N, 1]
        flat = pad(-borders.diff().log(), (1, 1))[bucket]
        beyond = torch.maximum(borders[0] - target, target - borders[-1]) / self.tail
        tail = math.log(2 / math.pi) / 2 - math.log(self.tail) - beyond.square() / 2
        within = torch.where(beyond > 0, tail, flat)
        return -(logits.log_softmax(-1).gather(-1, bucket) + within).flatten(1).mean(1)

    def mean(self, logits: Tensor) -> Tensor:
        """[T, N, 1]: the means of the densities of logits [T, N, B]."""
        borders, tail = self._borders(logits), self.tail * math.sqrt(2 / math.pi)
        middles = (borders[1:] + borders[:-1]) / 2
        centres = torch.cat([borders[:1] - tail, middles, borders[-1:] + tail])
        return logits.softmax(-1) @ centres[:, None]
