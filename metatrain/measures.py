"""Numbers of all tasks of an evaluation together, each computed from the little that is pooled.

Shapes: T tasks, Q query examples of each, W classes of a task. Definitions are scikit-learn's, and
what it leaves undefined, such as the precision of a class that was never predicted, is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15  # of confidence, all equally wide, as in Guo et al. 2017
MOST_CLASSES = 20  # of an evaluation, for a matrix that people can read


class Measure(NamedTuple):
    """What an evaluation says of all its tasks that is no mean of its metric."""

    pool: Callable[[Any, Any], Tensor]  # of a prediction and its tasks: [T, ...], to be pooled
    value: Callable[[Tensor], float] | None = None  # of what was pooled from all tasks
    detail: Callable[[Tensor], dict[str, Any]] | None = None  # plain data by name, for result.json


def calibration_bins(logits: Tensor, task: Any) -> Tensor:
    """[T, BINS, 3]: each bin's number of query examples, of right ones, and sum of confidences.

    logits: [T, Q, W]; the confidence of a prediction is its largest probability.
    """
    confidence, predicted = logits.double().softmax(-1).max(-1)
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


def reliability(bins: Tensor) -> dict[str, Any]:
    """Mean confidence, accuracy and number of examples of each bin that has some."""
    rows = [row for row in bins.double().sum(0).tolist() if row[0]]
    found = [
        {"confidence": confidence / count, "accuracy": right / count, "examples": int(count)}
        for count, right, confidence in rows
    ]
    return {"reliability": found}


def class_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """[T, W, 3]: of each class the right predictions, all predictions, and the examples.

    logits: [T, Q, W].
    labels: [T, Q].
    """
    predicted = logits.argmax(-1)
    none = logits.new_zeros(len(logits), logits.shape[-1], dtype=torch.float64)
    right = (predicted == labels).double()
    one = torch.ones_like(right)
    hits, said = none.scatter_add(1, labels, right), none.scatter_add(1, predicted, one)
    return torch.stack([hits, said, none.scatter_add(1, labels, one)], -1)


def precision(counts: Tensor) -> Tensor:
    """[..., W] of counts [..., W, 3]: which share of a class's predictions is right."""
    return counts[..., 0] / counts[..., 1].clamp(min=1)


def recall(counts: Tensor) -> Tensor:
    """[..., W] of counts [..., W, 3]: which share of a class's examples is found."""
    return counts[..., 0] / counts[..., 2].clamp(min=1)


def f1(counts: Tensor) -> Tensor:
    """[..., W] of counts [..., W, 3]: the harmonic mean of precision and recall."""
    return 2 * counts[..., 0] / (counts[..., 1] + counts[..., 2]).clamp(min=1)


def macro(score: Callable[[Tensor], Tensor]) -> Measure:
    """The mean over tasks of a task's unweighted mean over its classes."""

    def pool(logits: Tensor, task: Any) -> Tensor:
        return score(class_counts(logits, task.query_y)).mean(-1)

    return Measure(pool, mean)


def mean(each: Tensor) -> float:
    """The mean over tasks [T]."""
    return float(each.mean())


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    """[T, W, W]: how many examples of each class (row) are predicted as each class (column)."""
    tasks, _, classes = logits.shape
    cell = labels * classes + logits.argmax(-1)
    none = logits.new_zeros(tasks, classes**2, dtype=torch.float64)
    return none.scatter_add(1, cell, torch.ones_like(cell, dtype=torch.float64)).view(
        tasks, classes, classes
    )


def by_class(name: Callable[[int], str]) -> Measure:
    """Scores of the data set's classes over all tasks, if the evaluation has few classes.

    A class is told apart from those that its episodes happen to hold.

    name: how a class is called; tasks number those of each label in `classes` [T, W].
    """

    def pool(logits: Tensor, task: Any) -> Tensor:
        return torch.cat([task.classes[..., None].double(), confusion(logits, task.query_y)], -1)

    def detail(pooled: Tensor) -> dict[str, Any]:
        classes, matrices = pooled[..., 0].long(), pooled[..., 1:]
        known = classes.unique()
        size = len(known)
        if size > MOST_CLASSES:
            return {}
        place = torch.searchsorted(known, classes)
        cell = place[:, :, None] * size + place[:, None, :]
        matrix = matrices.new_zeros(size**2).index_add(0, cell.flatten(), matrices.flatten())
        matrix = matrix.view(size, size)
        counts = torch.stack([matrix.diagonal(), matrix.sum(0), matrix.sum(1)], -1)
        columns = (precision(counts), recall(counts), f1(counts), counts[:, 2].long())
        keys = ("name", "precision", "recall", "f1", "examples")
        rows = zip(map(name, known.tolist()), *(column.tolist() for column in columns), strict=True)
        return {
            "classes": [dict(zip(keys, row, strict=True)) for row in rows],
            "confusion": matrix.long().tolist(),
        }

    return Measure(pool, detail=detail)


def area_under_curve(logits: Tensor, task: Any) -> Tensor:
    """[T] area under the ROC curve of two classes; nan for a task without one of them.

    It is the share of pairs, an example of each class, of which the second class's has the larger
    difference of logits [T, Q, 2]; ties count half.
    """
    margin = (logits[..., 1] - logits[..., 0]).double()
    areas = []
    for scores, labels in zip(margin, task.query_y, strict=True):
        first, second = scores[labels == 0].sort().values, scores[labels == 1].contiguous()
        below = torch.searchsorted(first, second) + torch.searchsorted(first, second, right=True)
        areas.append(
            below.double().mean() / 2 / len(first) if len(first) else margin.new_tensor(math.nan)
        )
    return torch.stack(areas)


def absolute_error(prediction: Tensor, task: Any) -> Tensor:
    """[T] mean of absolute differences of predictions and targets, [T, Q, outputs] each."""
    return (prediction.double() - task.query_y.double()).abs().flatten(1).mean(1)


def moments(prediction: Tensor, task: Any) -> Tensor:
    """[T, outputs, 4]: examples, targets' mean, their squared distance from it, squared errors."""
    target = task.query_y.double()
    middle = target.mean(1)
    around = (target - middle[:, None]).square().sum(1)
    errors = (prediction.double() - target).square().sum(1)
    return torch.stack([torch.full_like(middle, target.shape[1]), middle, around, errors], -1)


def determination(pooled: Tensor) -> float:
    """R2 of the examples of all tasks together, the mean over outputs; from moments.

    1 - squared errors / squared distances from the mean of all targets. The parts are added as by
    Chan et al. 1983, which keeps the digits that a difference of large sums would lose.
    """
    count, middle, around, errors = pooled.unbind(-1)  # [T, outputs] each
    centre = (count * middle).sum(0) / count.sum(0)
    total = around.sum(0) + (count * (middle - centre).square()).sum(0)
    wrong = errors.sum(0)
    found = torch.where(total > 0, 1 - wrong / total, (wrong == 0).double())
    return float(found.mean())


def relative_excess(pooled: Tensor) -> float:
    """What a mean is above that of the best, as a share of it; of [T, 2], the best last."""
    own, best = pooled.double().mean(0).tolist()
    return float(own / best - 1)


ECE = Measure(calibration_bins, expected_calibration_error, reliability)
AUC = Measure(area_under_curve, mean)
CLASSES = {f"macro_{score.__name__}": macro(score) for score in (precision, recall, f1)}
NUMBERS = {"mae": Measure(absolute_error, mean), "r2": Measure(moments, determination)}


def of_points(point: Callable[[Tensor], Tensor]) -> dict[str, Measure]:
    """NUMBERS of predictions [T, Q, ...] that stand for numbers `point` of them [T, Q, outputs]."""

    def of(measure: Measure) -> Measure:
        return measure._replace(pool=lambda found, task: measure.pool(point(found), task))

    return {name: of(measure) for name, measure in NUMBERS.items()}
