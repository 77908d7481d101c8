"""The vector of meta-knowledge is the mean of models that learned a task each, alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import context, drawn_images, exact, images
from torch.func import functional_call

from metatrain.algorithms import MetaKnowledge
from metatrain.core import Context, Meta, Params, Ticket, generator_for
from metatrain.learner import Diverged, Learner
from metatrain.models import MLP, Conv4
from metatrain.outer import Outer
from metatrain.tasks import Sinusoid

FAMILY = Sinusoid(shots=8, queries=4)
PROBLEM = FAMILY.bind(MLP(hidden=(5,)), ("none",), "batched")
ALGORITHM = MetaKnowledge(inner_lr=0.01, inner_steps=2, factor=0.5, model_lr=0.02, model_steps=6)


def at(step: int, part: int) -> Context:
    ticket = Ticket("update", "train", step, part)
    return Context(ticket, generator_for(0, ticket, "adaptation"))


def alone(seed: int, x: Any, y: Any) -> Params:
    """A model that torch's Adam trains."""
    start = PROBLEM.init(torch.Generator().manual_seed(seed))
    leaves = {name: p.clone().requires_grad_() for name, p in start.items()}
    adam = torch.optim.Adam(list(leaves.values()), lr=0.02)
    for _ in range(6):
        adam.zero_grad()
        F.mse_loss(functional_call(PROBLEM.module, leaves, (x,)), y).backward()
        adam.step()
    return {name: p.detach() for name, p in leaves.items()}


def test_the_vector_is_the_mean_of_all_models_of_all_steps() -> None:
    outer = Outer(steps=2, tasks_per_step=4, tasks_per_ticket=2, lr=0.1)
    learner = Learner(ALGORITHM.init(PROBLEM, torch.Generator().manual_seed(7)), outer)
    start = {name: p.clone() for name, p in learner.meta().model.items()}
    models: list[Params] = []
    for step in range(2):
        updates = []
        for part in range(2):
            task = FAMILY.sample(torch.Generator().manual_seed(10 * step + part), 2, "train")
            updates.append(ALGORITHM.update(PROBLEM, learner.meta(), task, at(step, part)))
            seed = at(step, part).generator.initial_seed()
            models += [alone(seed + i, task.support_x[i], task.support_y[i]) for i in range(2)]
        learner.apply(updates)
    found = learner.meta()
    for name, theta in found.model.items():
        mean = torch.stack([model[name] for model in models]).mean(0)
        torch.testing.assert_close(found.state[f"own.{name}"], mean, rtol=1e-4, atol=1e-5)
        assert torch.equal(theta, start[name])
    assert found.state["own.steps"] == 2


def test_a_task_is_learned_from_the_main_model_and_the_vector() -> None:
    meta = ALGORITHM.init(PROBLEM, torch.Generator().manual_seed(7))
    vector = {f"own.{name}": torch.randn_like(p) for name, p in meta.model.items()}
    meta = meta._replace(state=meta.state | vector)
    task = FAMILY.sample(torch.Generator().manual_seed(1), 3, "train")
    before, *_, after = ALGORITHM.adapt(PROBLEM, meta, task, context())
    for name, p in meta.model.items():
        assert torch.equal(before[name][2], p + 0.5 * vector[f"own.{name}"])
    losses = [PROBLEM.support_loss(phi, task, context()) for phi in (before, after)]
    assert bool((losses[1] < losses[0]).all())


def test_running_statistics_are_those_of_the_network_from_which_tasks_are_learned() -> None:
    problem, task = images(Conv4(filters=4, pool="stride"), norm="running"), drawn_images(2)
    algorithm = MetaKnowledge(inner_lr=0.01, model_steps=1)
    meta = exact(algorithm.init(problem, torch.Generator().manual_seed(7)))
    vector = {f"own.{name}": torch.randn_like(p) for name, p in meta.model.items()}
    meta = meta._replace(state=meta.state | vector)
    theta, *_ = algorithm.adapt(problem, meta, task, context())
    found = algorithm.update(problem, meta, task, at(0, 0)).direction.state
    for name, p in problem.statistics(theta, task).items():
        torch.testing.assert_close(found[name], 0.9 * meta.state[name] + 0.1 * p)


@pytest.mark.parametrize("aggregate", ["mean", "weighted", "median"])
def test_models_become_one_by_their_mean_their_weighted_mean_or_their_median(
    aggregate: Any,
) -> None:
    models = torch.tensor([[1.0, 5.0], [2.0, -1.0], [9.0, 0.0]])
    losses = torch.tensor([0.0, 100.0, 100.0])
    found = MetaKnowledge(inner_lr=0.1, aggregate=aggregate)._aggregated(models, losses)
    expected = {"mean": [4.0, 4 / 3], "weighted": [1.0, 5.0], "median": [2.0, 0.0]}[aggregate]
    assert found.tolist() == pytest.approx(expected)


def test_models_that_diverge_end_training() -> None:
    algorithm = MetaKnowledge(inner_lr=0.1, model_lr=1e30, model_steps=5)
    meta = algorithm.init(PROBLEM, torch.Generator().manual_seed(7))
    learner = Learner(meta, Outer(steps=1, tasks_per_step=2, tasks_per_ticket=2, lr=0.1))
    task = FAMILY.sample(torch.Generator().manual_seed(1), 2, "train")
    with pytest.raises(Diverged):
        learner.apply([algorithm.update(PROBLEM, learner.meta(), task, at(0, 0))])


def test_a_retry_of_a_ticket_trains_the_same_models_and_another_ticket_others() -> None:
    meta: Meta = ALGORITHM.init(PROBLEM, torch.Generator().manual_seed(7))
    task = FAMILY.sample(torch.Generator().manual_seed(1), 2, "train")
    first, again, other = (
        ALGORITHM.update(PROBLEM, meta, task, at(0, part)).direction.state["own.head.weight"]
        for part in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
