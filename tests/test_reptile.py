"""Reptile's direction is theta minus the mean of the adapted parameters, for inner SGD and inner
Adam.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import context
from torch.func import functional_call

from metatrain.algorithms import Reptile
from metatrain.algorithms.inner_loop import minibatches
from metatrain.core import ComputePath, Meta
from metatrain.learner import Learner, Outer
from metatrain.models import MLP
from metatrain.tasks import Sinusoid

FAMILY = Sinusoid(shots=8, queries=2)


def setup(path: ComputePath = "batched"):
    problem = FAMILY.bind(MLP(hidden=(7,)), ("none",), path)
    meta = Meta(problem.init(torch.Generator().manual_seed(0)), {}, {})
    return problem, meta, FAMILY.sample(torch.Generator().manual_seed(1), 3, "train")


def test_one_sgd_step_with_outer_step_one_is_one_sgd_step() -> None:
    problem, meta, task = setup()
    one = type(task)(*(leaf[:1] for leaf in task))
    update = Reptile(inner_optimizer="sgd", inner_lr=0.1, inner_steps=1).update(
        problem, meta, one, context()
    )
    learner = Learner(
        meta, Outer(steps=1, tasks_per_step=1, tasks_per_ticket=1, optimizer="SGD", lr=1.0)
    )
    learner.apply([update])
    leaves = {name: p.clone().requires_grad_() for name, p in meta.model.items()}
    F.mse_loss(
        functional_call(problem.module, leaves, (one.support_x[0],)), one.support_y[0]
    ).backward()
    for name, p in learner.meta().model.items():
        torch.testing.assert_close(p, leaves[name].detach() - 0.1 * leaves[name].grad)


@pytest.mark.parametrize("path", ["batched", "reference"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_on_minibatches_equal_a_handwritten_loop(optimizer: str, path: ComputePath) -> None:
    problem, meta, task = setup(path)
    reptile = Reptile(inner_optimizer=optimizer, inner_lr=0.01, inner_steps=4, inner_batch=3)
    update = reptile.update(problem, meta, task, context())
    drawn = minibatches(8, 3, 4, 3, context().generator)
    mean = {name: torch.zeros_like(p) for name, p in meta.model.items()}
    for i in range(3):
        p = {name: value.clone() for name, value in meta.model.items()}
        second = {name: torch.zeros_like(value) for name, value in p.items()}
        for step in range(4):
            leaves = {name: value.detach().requires_grad_() for name, value in p.items()}
            rows = drawn[step, i]
            out = functional_call(problem.module, leaves, (task.support_x[i, rows],))
            gradients = torch.autograd.grad(
                F.mse_loss(out, task.support_y[i, rows]), list(leaves.values())
            )
            for name, g in zip(p, gradients, strict=True):
                if optimizer == "adam":  # beta1 = 0: no first moment
                    second[name] = 0.999 * second[name] + 0.001 * g**2
                    g = g / ((second[name] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                p[name] = leaves[name].detach() - 0.01 * g
        for name, value in p.items():
            mean[name] += value / 3
    for name, direction in update.direction.model.items():
        torch.testing.assert_close(direction, meta.model[name] - mean[name], rtol=1e-4, atol=1e-6)


def test_inner_adam_starts_fresh_for_each_task() -> None:
    """A task's adapted parameters do not depend on the tasks before it."""
    problem, meta, task = setup()
    reptile = Reptile(inner_lr=0.01, inner_steps=3)
    *_, together = reptile.adapt(problem, meta, task, context())
    *_, alone = reptile.adapt(problem, meta, type(task)(*(leaf[2:] for leaf in task)), context())
    for name in together:
        torch.testing.assert_close(together[name][2], alone[name][0])


def test_minibatches_go_through_all_examples_before_repeating() -> None:
    drawn = minibatches(
        size=10, batch=4, steps=5, tasks=6, generator=torch.Generator().manual_seed(0)
    )
    assert drawn.shape == (5, 6, 4)
    for task in range(6):
        order = drawn[:, task].flatten().tolist()
        assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert not torch.equal(drawn[:, 0], drawn[:, 1])
