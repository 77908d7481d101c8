"""How well predictions fit targets, and how such a number is read.

Shapes: T tasks, N examples of each. A metric gives one number a task, the mean over its examples.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Better = Literal["min", "max"]


class Metric(NamedTuple):
    """A number that people compare runs by.

    `shown` says how people read it: as a percentage of 1, on a linear or on a logarithmic axis.
    """

    name: str  # as the problem's measurements, result.json and MLflow call it
    better: Better
    shown: Literal["percent", "linear", "log"] = "linear"

    def text(self, value: float) -> str:
        """A value with all digits that are of interest, such as "91.03%"."""
        return self._rounded(value, 2, 4)

    def brief(self, value: float) -> str:
        """A value that changes while somebody watches it, such as "91.0%"."""
        return self._rounded(value, 1, 3)

    def width(self, value: float) -> str:
        """Half the width of an interval, without its unit, such as "1.12"."""
        return self.text(value).removesuffix("%")

    def interval(self, value: float, width: float) -> str:
        """A value with half the width of its interval, such as "91.03 ± 1.12%"."""
        text = self.text(value)
        unit = "%" if text.endswith("%") else ""
        return f"{text.removesuffix('%')} ± {self.width(width)}{unit}"

    def difference(self, value: float, width: float) -> str:
        """A difference of two values with its interval, such as "40.00 ± 2.00 points"."""
        return self.interval(value, width).replace("%", " points")

    def _rounded(self, value: float, percent: int, plain: int) -> str:
        if not math.isfinite(value):
            return "none"
        if self.shown == "percent":
            return f"{100 * value:.{percent}f}%"
        return f"{value:.{plain}f}" if abs(value) < 1e5 else f"{value:.{plain}g}"


ACCURACY = Metric("accuracy", "max", "percent")
MSE = Metric("mse", "min", "log")
RETURN = Metric("return", "max")
NLL = Metric("nll", "min")  # -log density, in nats


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[T] mean cross entropy of logits [T, N, classes] and class numbers [T, N]."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """[T] share of examples in 0..1 whose largest logit [T, N, classes] is that of their class."""
    return _exact((logits.argmax(-1) == labels).float()).mean(1)


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """[T] mean of squared differences of predictions and targets, [T, N, ...] each."""
    return (_exact(prediction) - _exact(target)).square().flatten(1).mean(1)


def _exact(values: Tensor) -> Tensor:
    """In float64 if nobody asks for gradients: a score then has all its digits."""
    return values if torch.is_grad_enabled() else values.double()
