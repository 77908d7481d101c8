"""Attacks: examples moved a little, so that a network's loss on them grows.

Examples are numbers in 0..1, such as pixels. Distances are the largest of any pixel (L-infinity).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds

Part = Literal["query", "support", "both"]  # of a task's examples
Loss = Callable[[Tensor], Tensor]  # examples [T, N, *in] -> [T]
STEP = 2.5  # times epsilon / steps: PGD can cross its ball (Madry et al. 2018, section 5)


@dataclass(frozen=True, kw_only=True)
class FGSM:
    """One step along the sign of the gradient (Goodfellow et al. 2015, arXiv 1412.6572).

    x_adv = x + epsilon / 255 * sign(grad_x L)
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["fgsm"] = "fgsm"
    epsilon: float = bounded(8.0, least=0, most=255)
    """Most that a pixel moves, in units of 1/255."""
    part: Part = "query"
    """The examples that move: `query`, `support` or `both`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def move(self, x: Tensor, loss: Loss, generator: torch.Generator) -> Tensor:
        """Move examples [T, N, *in] in 0..1 within their ball and 0..1, to a larger loss."""
        ball = self.epsilon / 255
        return _inside(_climbed(x, loss, ball), x, ball)

    def describe(self) -> str:
        """Say what moves and how far, for a protocol line."""
        return f"fgsm of {self.epsilon:g}/255 on {self.part}"


@dataclass(frozen=True, kw_only=True)
class PGD:
    """Steps from a random start, each back into the ball (Madry et al. 2018, arXiv 1706.06083).

    x_adv <- clip(x_adv + 2.5 epsilon / (255 steps) * sign(grad_x L))
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["pgd"] = "pgd"
    epsilon: float = bounded(8.0, least=0, most=255)
    """Most that a pixel moves, in units of 1/255."""
    steps: int = bounded(10, least=1, most=1000)
    """Steps of 2.5 * epsilon / steps each."""
    part: Part = "query"
    """The examples that move: `query`, `support` or `both`."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def move(self, x: Tensor, loss: Loss, generator: torch.Generator) -> Tensor:
        """The same; the generator draws the start."""
        ball = self.epsilon / 255
        drawn = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device)
        moved = _inside(x + ball * (2 * drawn - 1), x, ball)
        for _ in range(self.steps):
            moved = _inside(_climbed(moved, loss, STEP * ball / self.steps), x, ball)
        return moved

    def describe(self) -> str:
        """Say what moves and how far, for a protocol line."""
        return f"pgd of {self.epsilon:g}/255 in {self.steps} steps on {self.part}"


Attack = FGSM | PGD


def _climbed(x: Tensor, loss: Loss, size: float) -> Tensor:
    """A step to a larger loss; where the gradient is not a number a pixel stays."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(at).sum(), at)
    return x + size * slope.sign().nan_to_num(0.0)


def _inside(moved: Tensor, x: Tensor, ball: float) -> Tensor:
    """The nearest examples that are no further than `ball` from x, and in 0..1."""
    return moved.clamp((x - ball).clamp(min=0), (x + ball).clamp(max=1))
