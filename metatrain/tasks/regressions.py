"""Regressions on the support set alone, with which a meta-learned one is compared."""

from __future__ import annotations

import torch
from torch import Tensor

from metatrain.core import Task
from metatrain.metrics import mean_squared_error

RIDGE = 1.0  # on standardised features: what one more row of unit variance would weigh


def support_mean(task: Task) -> Tensor:
    """[T] MSE of predicting the mean of the support rows' targets."""
    return mean_squared_error(
        task.support_y.mean(1, keepdim=True).expand_as(task.query_y), task.query_y
    )


def ridge(task: Task) -> Tensor:
    """[T] MSE of the ridge regression with an intercept that is fitted to the support rows."""
    return mean_squared_error(fitted(task.support_x, task.support_y, task.query_x), task.query_y)


def fitted(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """[T, Q, 1] predictions for new [T, Q, F], fitted to x [T, S, F] and y [T, S, 1]."""
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y, new = x - x_mean, y - y_mean, new - x_mean
    if x.shape[1] < x.shape[2]:  # fewer rows than features
        weights = x.mT @ torch.linalg.solve(
            x @ x.mT + RIDGE * torch.eye(x.shape[1], device=x.device), y
        )
    else:
        weights = torch.linalg.solve(
            x.mT @ x + RIDGE * torch.eye(x.shape[2], device=x.device), x.mT @ y
        )
    return new @ weights + y_mean
