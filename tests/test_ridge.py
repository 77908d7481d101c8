"""The ridge head is the least-squares solution, on every path, and its gradient is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import context, drawn_images, exact, images
from gradients import assert_meta_gradient
from torch import Tensor

from metatrain.algorithms import Ridge
from metatrain.algorithms.ridge import regression
from metatrain.core import ComputePath, InputError, Meta
from metatrain.models import MLP, Conv4, heads
from metatrain.tasks import Sinusoid

SMALL = MLP(hidden=(5,))


def start(problem: Any) -> Meta:
    meta = exact(Ridge(initial_lambda=0.3).init(problem, torch.Generator().manual_seed(0)))
    return meta._replace(algorithm=meta.algorithm | {"beta": torch.tensor(0.2).double()})


def least_squares(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """min |x W - y|^2 + strength |W|^2 as the least squares of a taller system."""
    features = x.shape[1]
    below = strength**0.5 * torch.eye(features, dtype=x.dtype)
    zeros = torch.zeros(features, y.shape[1], dtype=x.dtype)
    return torch.linalg.lstsq(torch.cat([x, below]), torch.cat([y, zeros])).solution


@pytest.mark.parametrize(("examples", "features"), [(6, 40), (40, 6), (8, 8)])
@pytest.mark.parametrize("strength", [0.01, 1.0, 50.0])
def test_the_closed_form_is_the_least_squares_solution(
    examples: int, features: int, strength: float
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, examples, features, generator=g, dtype=torch.float64)
    y = torch.randn(3, examples, 4, generator=g, dtype=torch.float64)
    found = regression(x, y, torch.tensor(strength, dtype=torch.float64))
    expected = torch.stack([least_squares(x[t], y[t], strength) for t in range(3)])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("path", ["reference", "batched"])
def test_logits_are_those_of_each_tasks_regression_scaled_and_shifted(path: ComputePath) -> None:
    problem, task = images(SMALL, path), drawn_images()
    meta = start(problem)
    before, phi = Ridge().adapt(problem, meta, task, context())
    assert problem.predict(before, task, context()).abs().max() == 0
    weight, bias = (meta.model[f"body.1.{name}"] for name in ("weight", "bias"))
    for t in range(2):
        support, query = (
            F.pad(F.relu(x[t].flatten(1) @ weight.T + bias), (0, 1), value=1.0)
            for x in (task.support_x, task.query_x)
        )
        w = least_squares(support, F.one_hot(task.support_y[t], 3).double(), 0.3)
        expected = 10 * query @ w + 0.2
        found = problem.predict(phi, task, context())[t]
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("part", ["model", "algorithm"])
def test_the_meta_gradient_agrees_with_finite_differences(part: str) -> None:
    problem = images(SMALL)
    assert_meta_gradient(Ridge(), problem, start(problem), drawn_images(), part, tolerance=1e-5)


@pytest.mark.parametrize("path", ["batched", "fused"])
def test_every_path_gives_the_same_update(path: ComputePath) -> None:
    updates = []
    for each in ("reference", path):
        problem = images(Conv4(filters=16, pool="stride"), each)
        update = Ridge().update(problem, start(problem), drawn_images(), context())
        updates.append(update.direction)
    for here, there in zip(updates[1][:2], updates[0][:2], strict=True):
        assert here.keys() == there.keys() != set()
        for name, p in there.items():
            assert (here[name] - p).norm() <= 1e-9 * p.norm() + 1e-15, name


def test_what_it_cannot_learn_is_one_sentence() -> None:
    generator = torch.Generator()
    with pytest.raises(InputError) as error:
        Ridge().init(Sinusoid().bind(MLP(), ("none",), "reference"), generator)
    assert error.value.remedy == "choose another algorithm"
    with pytest.raises(InputError) as error:
        Ridge().init(images(MLP(head=heads.Cosine())), generator)
    assert error.value.remedy.endswith("model.head.name linear")
    with pytest.raises(InputError) as error:
        Ridge(initial_lambda=0.0)
    assert (error.value.what, error.value.got) == ("initial_lambda", 0.0)
