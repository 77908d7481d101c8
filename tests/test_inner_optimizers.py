"""Optimizers of inner loops: torch.optim's steps, exact meta-gradients, weights of the steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import context
from gradients import assert_meta_gradient
from torch import Tensor

from metatrain.algorithms import MAML, MetaSGD, inner_loop
from metatrain.algorithms.inner_optimizers import OPTIMIZERS, Name
from metatrain.core import ComputePath, Context, Meta, Params, Penalty, Task

TORCH: dict[Name, Any] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
}


class Wavy:
    """A smooth loss that is not quadratic; nothing depends on `dead`."""

    def __init__(self, path: ComputePath = "batched") -> None:
        self.path = path

    def support_loss(
        self, params: Params, task: Any, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        x = params["x"] + params["y"]
        loss: Tensor = (torch.sin(task.support_x * x) + 0.1 * (x - task.support_y) ** 4).sum(1)
        return loss + 0 * params["dead"].sum(1)

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        return {"loss": (params["x"] * params["y"] - task.query_y).square().sum(1)}


def start() -> Meta:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 3, generator=g, dtype=torch.float64)
    return Meta({"x": x, "y": y, "dead": torch.ones(1, dtype=torch.float64)}, {}, {})


def tasks() -> Task:
    return Task(*torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1)).double())


def meta_gradient(algorithm: MAML, path: ComputePath = "batched") -> Params:
    return algorithm.update(Wavy(path), start(), tasks(), context()).direction.model  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_torch(name: Name) -> None:
    algorithm = MAML(inner_lr=0.03, inner_steps=5, inner_optimizer=name)
    found = list(algorithm.adapt(Wavy(), start(), tasks(), context()))  # type: ignore[arg-type]
    phi = {k: p.clone().requires_grad_() for k, p in inner_loop.start(start(), tasks()).items()}
    optimizer = TORCH[name](list(phi.values()), lr=0.03)
    for step in found[1:]:
        optimizer.zero_grad()
        Wavy().support_loss(phi, tasks(), context()).sum().backward()
        optimizer.step()
        for key, p in phi.items():
            torch.testing.assert_close(step[key], p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_gradient_through_their_steps_agrees_with_finite_differences(name: Name) -> None:
    algorithm = MAML(inner_lr=0.03, inner_steps=3, inner_optimizer=name)
    found, eps = meta_gradient(algorithm), 1e-6

    def loss(meta: Meta) -> float:
        *_, phi = algorithm.adapt(Wavy(), meta, tasks(), context())  # type: ignore[arg-type]
        return float(Wavy().query(phi, tasks(), context())["loss"].mean())

    for key in ("x", "y"):
        for i in range(3):
            moved = [{k: p.clone() for k, p in start().model.items()} for _ in range(2)]
            moved[0][key][i] += eps
            moved[1][key][i] -= eps
            above, below = (loss(Meta(model, {}, {})) for model in moved)
            assert float(found[key][i]) == pytest.approx((above - below) / (2 * eps), rel=1e-6)
    assert found["dead"].tolist() == [0.0]  # and not what 0 / 0 is


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learned_rates_that_are_equal_make_the_steps_of_maml(name: Name) -> None:
    rates = {f"rate.{key}": torch.full_like(p, 0.03) for key, p in start().model.items()}
    learned = MetaSGD(initial_lr=0.03, inner_steps=3, inner_optimizer=name)
    found = learned.adapt(Wavy(), start()._replace(algorithm=rates), tasks(), context())  # type: ignore[arg-type]
    maml = MAML(inner_lr=0.03, inner_steps=3, inner_optimizer=name)
    for phi, expected in zip(
        found,
        maml.adapt(Wavy(), start(), tasks(), context()),  # type: ignore[arg-type]
        strict=True,
    ):
        for key, p in expected.items():
            torch.testing.assert_close(phi[key], p, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_l2_penalty_is_torchs_weight_decay(name: Name) -> None:
    algorithm = MAML(inner_lr=0.03, inner_steps=4, inner_optimizer=name, penalty=Penalty(l2=0.7))
    *_, found = algorithm.adapt(Wavy(), start(), tasks(), context())  # type: ignore[arg-type]
    phi = {k: p.clone().requires_grad_() for k, p in inner_loop.start(start(), tasks()).items()}
    optimizer = TORCH[name](list(phi.values()), lr=0.03)
    optimizer.param_groups[0]["weight_decay"] = 0.7
    for _ in range(4):
        optimizer.zero_grad()
        Wavy().support_loss(phi, tasks(), context()).sum().backward()
        optimizer.step()
    for key, p in phi.items():
        torch.testing.assert_close(found[key], p.detach(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_gradient_through_a_penalty_agrees_with_finite_differences(recompute: bool) -> None:
    penalty = Penalty(l1=0.3, l2=0.7)
    algorithm = MAML(inner_lr=0.03, inner_steps=3, penalty=penalty, recompute=recompute)
    assert_meta_gradient(algorithm, Wavy(), start(), tasks())
    free = MAML(inner_lr=0.03, inner_steps=3)
    assert not torch.allclose(meta_gradient(algorithm)["x"], meta_gradient(free)["x"])


def test_first_order_holds_the_gradient_of_the_penalty_constant() -> None:
    """With a step of phi - lr l2 phi, the derivative of phi' would have a factor (1 - lr l2)."""
    algorithm = MAML(inner_lr=0.03, inner_steps=3, first_order=True, penalty=Penalty(l2=0.7))
    *_, phi = algorithm.adapt(Wavy(), start(), tasks(), context())  # type: ignore[arg-type]
    leaves = {key: p.requires_grad_() for key, p in phi.items()}
    Wavy().query(leaves, tasks(), context())["loss"].mean().backward()
    for key in ("x", "y"):
        torch.testing.assert_close(meta_gradient(algorithm)[key], leaves[key].grad.sum(0))


class Both(Wavy):
    """Judges the support set as well."""

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        support = self.support_loss(params, task, context)
        return {"loss": super().query(params, task, context)["loss"] + support}


def test_the_objective_may_have_the_support_set_as_well() -> None:
    algorithm = MAML(inner_lr=0.03, inner_steps=2, objective="support+query")
    found = meta_gradient(algorithm)
    expected = assert_meta_gradient(MAML(inner_lr=0.03, inner_steps=2), Both(), start(), tasks())
    for key, p in expected.items():
        torch.testing.assert_close(found[key], p, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("path", ["batched", "reference"])
def test_steps_that_are_computed_again_carry_the_optimizers_state(
    name: Name, path: ComputePath
) -> None:
    kept, again = (
        meta_gradient(
            MAML(inner_lr=0.03, inner_steps=3, inner_optimizer=name, recompute=recompute), path
        )
        for recompute in (False, True)
    )
    for key, p in kept.items():
        torch.testing.assert_close(again[key], p, rtol=1e-12, atol=1e-14)


def test_the_loss_is_the_mean_over_the_steps_by_their_weights() -> None:
    algorithm, meta = MAML(inner_lr=0.03, inner_steps=2), start()

    def gradient(weights: Any) -> Params:
        return inner_loop.mean_gradient(
            lambda *given: algorithm._descend(*given, order=2),
            Wavy(),  # type: ignore[arg-type]
            meta,
            tasks(),
            context(),
            weights=weights,
        ).direction.model

    each = [gradient([float(k == step) for k in range(3)]) for step in range(3)]
    together, last = gradient([1.0, 2.0, 5.0]), gradient(None)
    for key, p in together.items():
        expected = (each[0][key] + 2 * each[1][key] + 5 * each[2][key]) / 8
        torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(last[key], each[2][key], rtol=1e-12, atol=1e-14)
