"""The learned optimizer: known optimizers as special cases, exact gradients, any network."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases import CASES, config, context, exact
from gradients import assert_meta_gradient

from metatrain import evaluate
from metatrain.algorithms import LearnedOptimizer
from metatrain.algorithms.mlp_optimizer import ADAM, DECAYS
from metatrain.core import ComputePath, Context, InputError, Meta, Purpose, Task
from metatrain.learner import Learner
from metatrain.models import MLP
from metatrain.models.heads import Transformer
from metatrain.problems.supervised import Supervised
from metatrain.start import prepare
from metatrain.tasks import LinearRegression, Sinusoid

FAMILY = Sinusoid(shots=4, queries=3)


def bound(
    algorithm: LearnedOptimizer, path: ComputePath = "batched", effect: float = 0.1
) -> tuple[Supervised, Meta]:
    """A problem, and an optimizer whose MLP has an effect."""
    problem = FAMILY.bind(MLP(hidden=(5,)), ("none",), path)
    g = torch.Generator().manual_seed(0)
    meta = exact(algorithm.init(problem, g))
    out = meta.algorithm["out.weight"]
    noise = effect * torch.randn(out.shape, generator=g, dtype=out.dtype)
    return problem, meta._replace(algorithm=meta.algorithm | {"out.weight": noise})


def drawn(count: int = 3) -> Task:
    task = FAMILY.sample(torch.Generator().manual_seed(1), count, "train")
    return Task(*(leaf.double() for leaf in task))


@pytest.mark.parametrize(
    ("output", "theirs"), [(1, torch.optim.SGD), (2 + ADAM, torch.optim.Adam)], ids=["SGD", "Adam"]
)
def test_with_a_fixed_output_it_makes_the_steps_of_torch(output: int, theirs: Any) -> None:
    rate, task, algorithm = 0.02, drawn(), LearnedOptimizer(inner_steps=6)
    problem, meta = bound(algorithm, effect=0)
    constant = torch.zeros(1, 2 + len(DECAYS)).double()
    constant[0, 0], constant[0, output] = math.log(rate), 1
    meta = meta._replace(algorithm=meta.algorithm | {"out.bias": constant})
    start, *found = algorithm.adapt(problem, meta, task, context())
    params = {name: p.clone().requires_grad_() for name, p in start.items()}
    optimizer = theirs(params.values(), rate)
    for step in found:
        optimizer.zero_grad()
        problem.support_loss(params, task, context()).sum().backward()
        optimizer.step()
        for name, p in params.items():
            torch.testing.assert_close(step[name], p.detach(), rtol=1e-9, atol=1e-11)


def test_untrained_it_is_adam() -> None:
    algorithm = LearnedOptimizer(inner_steps=2, initial_lr=0.03)
    constant = bound(algorithm)[1].algorithm["out.bias"][0]
    assert constant[0].exp() == pytest.approx(0.03)
    assert constant[1:].tolist() == [float(i == 1 + ADAM) for i in range(1 + len(DECAYS))]
    assert not algorithm.init(bound(algorithm)[0], torch.Generator()).algorithm["out.weight"].any()


def test_the_gradient_through_all_steps_agrees_with_finite_differences() -> None:
    algorithm = LearnedOptimizer(inner_steps=3, units=4)
    problem, meta = bound(algorithm)
    found = assert_meta_gradient(algorithm, problem, meta, drawn(), "algorithm", h=1e-6)
    assert all(bool(p.any()) for p in found.values())


def test_evolution_finds_the_slope_of_the_unrolled_loss_along_its_noise() -> None:
    """Of one task: e <e, gradient>, whose expectation is the gradient."""
    unrolled = LearnedOptimizer(inner_steps=3, units=4)
    evolved = LearnedOptimizer(inner_steps=3, units=4, gradient="evolution", deviation=1e-5)
    problem, meta = bound(unrolled)
    task, given = drawn(1), context()
    noise = {
        name: torch.randn(1, *p.shape, generator=given.generator)[0].double()
        for name, p in meta.algorithm.items()
    }
    gradient = unrolled.update(problem, meta, task, given).direction.algorithm
    slope = sum((gradient[name] * e).sum() for name, e in noise.items())
    found = evolved.update(problem, meta, task, context()).direction.algorithm
    for name, e in noise.items():
        torch.testing.assert_close(found[name], e * slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("gradient", ["unrolled", "evolution"])
def test_a_ticket_is_the_mean_of_its_tasks_on_all_paths(gradient: Any) -> None:
    algorithm = LearnedOptimizer(inner_steps=2, units=4, gradient=gradient)
    directions = []
    for path in ("batched", "reference"):
        problem, meta = bound(algorithm, path)  # type: ignore[arg-type]
        directions.append(algorithm.update(problem, meta, drawn(), context()).direction.algorithm)
    for name, p in directions[0].items():
        torch.testing.assert_close(directions[1][name], p, rtol=1e-9, atol=1e-12)


def test_each_task_trains_a_network_of_its_own_and_a_ticket_repeats_them() -> None:
    algorithm = LearnedOptimizer(inner_steps=1)
    problem, meta = bound(algorithm)
    first, again = (next(algorithm.adapt(problem, meta, drawn(), context())) for _ in range(2))
    other = next(algorithm.adapt(problem, meta, drawn(), context(1)))
    for name, p in first.items():
        assert torch.equal(again[name], p)
        assert not torch.equal(other[name], p)
        assert not torch.equal(p[0], p[1])


def test_one_optimizer_trains_networks_and_tasks_of_any_size() -> None:
    recipe = config(CASES["learned-optimizer"], model__hidden=[6]).recipe()
    wider = config(
        CASES["learned-optimizer"],
        model__hidden=[7, 9],
        family={"name": "linear_regression", "inputs": 3, "shots": [5, 5]},
    ).recipe()
    meta, other = prepare(recipe).meta, prepare(wider)
    assert not meta.model
    assert {n: p.shape for n, p in meta.flat().items()} == {
        n: p.shape for n, p in other.meta.flat().items()
    }
    setting = other.setting("score")
    tasks = LinearRegression(inputs=3, shots=(5, 5)).sample(torch.Generator(), 4, "test")
    found = evaluate.scores(
        other.problems[Purpose("score")], setting.algorithm, meta, tasks, context(work="score")
    )
    assert found.curves["none"]["mse"].shape == (4, 3)


@pytest.mark.parametrize("gradient", ["unrolled", "evolution"])
def test_it_learns_to_train(gradient: Any) -> None:
    """From a rate of Adam at which nothing happens."""
    algorithm = LearnedOptimizer(inner_steps=5, units=8, initial_lr=1e-3, gradient=gradient)
    recipe = config(CASES["learned-optimizer"], outer__lr=0.1).recipe()
    problem, meta = bound(algorithm, effect=0)
    learner, losses = Learner(meta, recipe.outer), []
    for step in range(15):
        given = Context(context().ticket, torch.Generator().manual_seed(step))
        update = algorithm.update(problem, learner.meta(), drawn(8), given)
        losses.append(float(update.metrics["loss_after"]))
        learner.apply([update])
    assert losses[-1] < 0.95 * losses[0]


def test_an_error_says_what_it_cannot_train() -> None:
    algorithm = LearnedOptimizer(inner_steps=1)
    running = config(CASES["prototypical"], algorithm={"name": "maml", "inner_lr": 0.1}).recipe()
    problem = prepare(running).problems[Purpose("update")]
    with pytest.raises(InputError) as error:
        algorithm.init(problem, torch.Generator())
    assert error.value.what.startswith("norm running")
    reading = FAMILY.bind(MLP(hidden=(4,), head=Transformer()), ("none",), "batched")
    with pytest.raises(InputError) as error:
        algorithm.init(reading, torch.Generator())
    assert "support set" in error.value.what
