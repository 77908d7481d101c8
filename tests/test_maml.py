"""MAML's meta-gradient is exact: closed form, finite differences, and a handwritten loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import context, drawn_images, exact, images
from gradients import assert_meta_gradient
from torch import Tensor

from metatrain.algorithms import MAML
from metatrain.core import ComputePath, Context, Meta, Norm, Params, Task
from metatrain.models import Conv4
from metatrain.problems.supervised import Supervised

NETS = {
    "maml": Conv4(filters=4, pool="stride", features="mean", norm_scale=False),
    "reptile": Conv4(filters=4, pool="stride", features="flatten"),
    "max-pool": Conv4(filters=4, pool="max", features="flatten"),
}


class Quadratic:
    """L_i(phi) = 0.5 * a_i (phi - c_i)^2 on both sets: the meta-gradient is (1 - lr a)^(2 steps) a
    (theta - c).
    """

    path: ComputePath = "batched"

    def support_loss(
        self, params: Params, task: Any, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        return (0.5 * task.support_x * (params["x"] - task.support_y) ** 2).sum(1)

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        return {"loss": self.support_loss(params, task, context)}


@pytest.mark.parametrize("path", ["batched", "reference"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("first_order", [False, True])
def test_meta_gradient_of_a_quadratic_is_its_closed_form(
    path: ComputePath, steps: int, first_order: bool
) -> None:
    a = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    c = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    theta = torch.tensor([0.7], dtype=torch.float64)
    problem = Quadratic()
    problem.path = path
    maml = MAML(inner_lr=0.1, inner_steps=steps, first_order=first_order)
    update = maml.update(problem, Meta({"x": theta}, {}, {}), Task(a, c, a, c), context())
    shrink = (1 - 0.1 * a) ** (steps if first_order else 2 * steps)
    expected = (shrink * a * (theta - c)).mean(0)
    torch.testing.assert_close(update.direction.model["x"], expected, rtol=1e-12, atol=0)
    assert update.tasks == 2


class Noisy(Quadratic):
    """Each loss is weighted at random, as losses of episodes and of dropout are."""

    def support_loss(
        self, params: Params, task: Any, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        drawn = torch.rand(1, generator=context.generator, dtype=torch.float64)
        return drawn * super().support_loss(params, task, context)


@pytest.mark.parametrize("path", ["batched", "reference"])
def test_steps_that_are_computed_again_draw_what_they_drew_and_leave_the_rest(
    path: ComputePath,
) -> None:
    problem = Noisy()
    problem.path = path
    a, c = torch.tensor([[[0.5], [2.0]], [[1.0], [-3.0]]], dtype=torch.float64)
    meta = Meta({"x": torch.tensor([0.7], dtype=torch.float64)}, {}, {})
    found = [
        MAML(inner_lr=0.1, inner_steps=3, recompute=recompute)
        .update(problem, meta, Task(a, c, a, c), context())
        .direction.model["x"]
        for recompute in (False, True)
    ]
    assert torch.equal(*found)


def start(problem: Supervised) -> Meta:
    return exact(MAML(inner_lr=0.4).init(problem, torch.Generator().manual_seed(0)))


def handwritten(
    net: Conv4, theta: Params, task: Task, lr: float, steps: int, first_order: bool
) -> Params:
    """The textbook loop, with a network and normalisation of its own."""

    def forward(p: Params, x: Tensor) -> Tensor:
        for i in range(4):
            x = F.conv2d(x, p[f"body.{i}.conv.weight"], None, 1 if net.pool == "max" else 2, 1)
            centred = x - x.mean((0, 2, 3), keepdim=True)
            x = centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-3).sqrt()
            if net.norm_scale:
                x = x * p[f"body.{i}.norm.scale"].view(1, -1, 1, 1)
            x = torch.relu(x + p[f"body.{i}.norm.shift"].view(1, -1, 1, 1))
            x = F.max_pool2d(x, 2) if net.pool == "max" else x
        features = x.mean((2, 3)) if net.features == "mean" else x.flatten(1)
        return features @ p["head.weight"].T + p["head.bias"]

    total = {name: torch.zeros_like(p) for name, p in theta.items()}
    count = len(task.support_x)
    for i in range(count):
        leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
        phi = leaves
        for _ in range(steps):
            loss = F.cross_entropy(forward(phi, task.support_x[i]), task.support_y[i])
            gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
            phi = {name: p - lr * g for (name, p), g in zip(phi.items(), gradients, strict=True)}
        loss = F.cross_entropy(forward(phi, task.query_x[i]), task.query_y[i])
        for name, g in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
            total[name] += g / count
    return total


@pytest.mark.parametrize("path", ["batched", "reference", "fused"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_meta_gradient_equals_a_handwritten_loop(
    net: str, first_order: bool, path: ComputePath
) -> None:
    model = replace(NETS[net], filters=16) if path == "fused" else NETS[net]
    problem, task = images(model, path), drawn_images(3)
    meta = start(problem)
    maml = MAML(inner_lr=0.4, inner_steps=2, first_order=first_order)
    found = maml.update(problem, meta, task, context()).direction.model
    expected = handwritten(model, meta.model, task, 0.4, 2, first_order)
    assert found.keys() == expected.keys()
    for name in expected:
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 1e-10, (name, float(error))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize(
    ("net", "norm"), [("maml", "transductive"), ("reptile", "support"), ("reptile", "support+1")]
)
def test_meta_gradient_agrees_with_finite_differences(
    net: str, norm: Norm, first_order: bool
) -> None:
    """Along random directions: of the query loss after adaptation, as a function of theta; with the
    inner gradient held constant in the first-order case.
    """
    problem, task = images(NETS[net], "reference", norm=norm), drawn_images(3)
    meta = start(problem)
    maml = MAML(inner_lr=0.4, inner_steps=2, first_order=first_order)
    *_, adapted = maml.adapt(problem, meta, task, context())
    change = {name: adapted[name] - p for name, p in meta.model.items()}

    def held(moved: Meta) -> list[Params]:
        return [{name: p + change[name] for name, p in moved.model.items()}]

    adapt = held if first_order else None
    assert_meta_gradient(maml, problem, meta, task, adapt=adapt)


def test_the_orders_differ() -> None:
    """First-order MAML drops the Hessian term, which is not small."""
    problem, task = images(NETS["maml"], "reference"), drawn_images(3)
    meta = start(problem)
    exact, first = (
        MAML(inner_lr=0.4, first_order=order)
        .update(problem, meta, task, context())
        .direction.model["head.weight"]
        for order in (False, True)
    )
    assert (exact - first).norm() > 0.01 * exact.norm()


def test_frozen_parameters_do_not_adapt_but_are_meta_learned() -> None:
    problem, task = images(NETS["maml"], "reference"), drawn_images(3)
    meta = start(problem)
    maml = MAML(inner_lr=0.4, adapts=("*.conv.*", "head.*"))
    *_, phi = maml.adapt(problem, meta, task, context())
    assert torch.equal(phi["body.0.norm.shift"], meta.model["body.0.norm.shift"].expand(3, -1))
    assert not torch.equal(phi["head.weight"][0], meta.model["head.weight"])
    assert (
        maml.update(problem, meta, task, context()).direction.model["body.0.norm.shift"].norm() > 0
    )


def test_adaptation_keeps_no_graph() -> None:
    """Evaluation's memory must not grow with inner steps."""
    problem = images(NETS["maml"], "reference")
    for phi in MAML(inner_lr=0.4, inner_steps=3).adapt(
        problem, start(problem), drawn_images(3), context()
    ):
        assert all(not p.requires_grad and p.grad_fn is None for p in phi.values())


def test_update_leaves_the_meta_parameters_alone() -> None:
    problem = images(NETS["maml"], "reference")
    meta = start(problem)
    before = {name: p.clone() for name, p in meta.model.items()}
    MAML(inner_lr=0.4).update(problem, meta, drawn_images(3), context())
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in meta.model.items())
