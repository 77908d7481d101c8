"""How well predictions fit targets, and how such a number is read.

Shapes: T tasks, N examples of each. A metric gives one number a task, the mean over its examples.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Better = Literal["min", "max"]
BINS = 15  # of confidence, all equally wide, as in Guo et al. 2017


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


class Measure(NamedTuple):
    """A number of all tasks together that is no mean over tasks, such as a calibration error."""

    pool: Callable[[Any, Any], Tensor]  # of a prediction and its tasks: [T, ...], to be pooled
    value: Callable[[Tensor], float]  # of what was pooled from all tasks


ACCURACY = Metric("accuracy", "max", "percent")
MSE = Metric("mse", "min", "log")
RETURN = Metric("return", "max")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[T] mean cross entropy of logits [T, N, classes] and class numbers [T, N]."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).mean(1)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """[T] share of examples in 0..1 whose largest logit [T, N, classes] is that of their class."""
    return (logits.argmax(-1) == labels).float().mean(1)


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """[T] mean of squared differences of predictions and targets, [T, N, ...] each."""
    return (prediction - target).square().flatten(1).mean(1)


def calibration_bins(logits: Tensor, task: Any) -> Tensor:
    """[T, BINS, 3]: each bin's number of query examples, of right ones, and sum of confidences.

    logits: [T, Q, classes]; the confidence of a prediction is its largest probability.
    """
    confidence, predicted = logits.softmax(-1).max(-1)
    right = (predicted == task.query_y).to(confidence.dtype)
    index = (BINS * confidence.nan_to_num()).long().clamp(max=BINS - 1)  # nan: a diverged task
    bins = F.one_hot(index, BINS).to(confidence.dtype)
    return bins.mT @ torch.stack([torch.ones_like(right), right, confidence], -1)


def expected_calibration_error(bins: Tensor) -> float:
    """The mean distance of confidence and accuracy, over bins [T, BINS, 3] of all tasks.

    Equation 3 of Guo et al. 2017, arXiv 1706.04599.
    """
    count, right, confidence = bins.double().sum(0).unbind(-1)
    return float((right - confidence).abs().sum() / count.sum())


ECE = Measure(calibration_bins, expected_calibration_error)
