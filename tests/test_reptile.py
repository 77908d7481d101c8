"""Reptile's direction is theta minus the mean of the adapted parameters, for inner SGD and inner
Adam.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, config, context
from torch.func import functional_call

from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import bundle
from metatrain.algorithms import MAML, Reptile
from metatrain.algorithms.inner_loop import minibatches
from metatrain.core import ComputePath, InputError, Meta, Penalty, Ticket
from metatrain.learner import Learner
from metatrain.models import MLP
from metatrain.outer import Outer
from metatrain.start import prepare
from metatrain.tasks import Sinusoid
from metatrain.weights import merged, weights_at

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


@pytest.mark.parametrize("name", ["momentum", "rmsprop"])
def test_further_inner_optimizers_make_the_steps_of_torch(name: Any) -> None:
    problem, meta, task = setup()
    reptile = Reptile(
        inner_optimizer=name, inner_lr=0.01, inner_steps=3, penalty=Penalty(l1=0.1, l2=0.2)
    )
    *_, found = reptile.adapt(problem, meta, task, context())
    maml = MAML(inner_optimizer=name, inner_lr=0.01, inner_steps=3, penalty=Penalty(l1=0.1, l2=0.2))
    *_, expected = maml.adapt(problem, meta, task, context())
    for key, p in expected.items():
        torch.testing.assert_close(found[key], p)


def test_carried_moments_are_those_of_one_adam_that_goes_on() -> None:
    """With one task a step and an outer step of one, the steps are those of one long training."""
    problem, _, task = setup()
    reptile = Reptile(inner_lr=0.01, inner_steps=2, carries_moments=True)
    start = reptile.init(problem, torch.Generator().manual_seed(0))
    outer = Outer(steps=3, tasks_per_step=1, tasks_per_ticket=1, optimizer="SGD", lr=1.0)
    learner = Learner(start, outer)
    leaves = {name: p.clone().requires_grad_() for name, p in start.model.items()}
    adam = torch.optim.Adam(list(leaves.values()), 0.01, betas=(0.0, 0.999))
    for i in range(3):
        one = type(task)(*(leaf[i : i + 1] for leaf in task))
        learner.apply([reptile.update(problem, learner.meta(), one, context())])
        for _ in range(2):
            adam.zero_grad()
            predicted = functional_call(problem.module, leaves, (one.support_x[0],))
            F.mse_loss(predicted, one.support_y[0]).backward()
            adam.step()
    found = learner.meta()
    for name, p in leaves.items():
        torch.testing.assert_close(found.model[name], p.detach(), rtol=1e-4, atol=1e-6)
        second = adam.state[p]["exp_avg_sq"]
        torch.testing.assert_close(found.state[f"own.{name}"], second, rtol=1e-3, atol=1e-8)
    assert found.state["own.steps"] == 6


@pytest.mark.parametrize("path", ["batched", "reference"])
def test_each_task_starts_from_the_mean_of_the_moments_that_the_last_step_left(
    path: ComputePath,
) -> None:
    problem, _, task = setup(path)
    reptile = Reptile(inner_lr=0.01, inner_steps=2, carries_moments=True)
    start = reptile.init(problem, torch.Generator().manual_seed(0))
    start = start._replace(
        state={
            name: p + 1.0 + torch.arange(p.numel()).view_as(p) for name, p in start.state.items()
        }
    )
    together = reptile.update(problem, start, task, context()).direction
    alone = [
        reptile.update(problem, start, type(task)(*(leaf[i : i + 1] for leaf in task)), context())
        for i in range(3)
    ]
    assert together.state.keys() == start.state.keys()
    for name, p in together.state.items():
        mean = torch.stack([each.direction.state[name] for each in alone]).mean(0)
        torch.testing.assert_close(p, mean)
    for name, p in together.model.items():
        mean = torch.stack([each.direction.model[name] for each in alone]).mean(0)
        torch.testing.assert_close(p, mean, rtol=1e-4, atol=1e-6)


def test_only_adam_has_moments_to_carry() -> None:
    with pytest.raises(InputError) as error:
        Reptile(inner_optimizer="sgd", inner_lr=0.1, inner_steps=1, carries_moments=True)
    assert (error.value.what, error.value.got) == ("inner_optimizer", "sgd")


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


def test_a_network_that_carried_moments_starts_another_without_them(tmp_path: Path) -> None:
    """Also those that lie as fused kernels have them, which no file does."""
    reptile = {"name": "reptile", "inner_lr": 0.001, "inner_steps": 1, "carries_moments": True}
    fused = CASES["maml-conv4-fused"]
    recipe = config(fused, algorithm=reptile).recipe()
    prepared = prepare(recipe)
    worker = Worker(prepared, choose_plan(prepared, 0, 1)[0])
    worker.load(0, worker.layout.flatten(prepared.meta))
    learner = Learner(prepared.meta, recipe.outer)
    learner.apply([worker.compute(Ticket("update", "train", 0, 0))[0]])
    bundle.save(str(tmp_path), recipe, learner.meta())
    _, saved = bundle.load(str(tmp_path))
    name = "body.1.conv.weight"
    assert torch.equal(saved.state[f"own.{name}"], learner.meta().state[f"own.{name}"])
    found = merged(prepare(config(fused).recipe()).meta, weights_at(str(tmp_path)).tensors, "there")
    assert torch.equal(found.model[name], saved.model[name])
