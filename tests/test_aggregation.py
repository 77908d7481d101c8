"""How the updates of a step become one, on numbers one can do by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import SINUSOID, config

from cluster import loop
from cluster.collector import Requests
from cluster.pools.local_pool import LocalPool
from cluster.workers.plan import choose_plan
from metatrain.aggregation import Mean, Median, Private, TrimmedMean
from metatrain.core import InputError, Meta, Update
from metatrain.learner import Learner, Outer
from metatrain.start import prepare

GENERATOR = torch.Generator()


def directions(*values: float) -> list[dict[str, torch.Tensor]]:
    return [{"w": torch.tensor([value, -value])} for value in values]


def aggregated(how: Any, *values: float) -> float:
    weights = [1 / len(values)] * len(values)
    found = how(directions(*values), weights, GENERATOR.manual_seed(0))["w"]
    assert found[0] == -found[1]
    return float(found[0])


def test_each_aggregation_by_hand() -> None:
    assert aggregated(Mean(), 1.0, 2.0, 6.0) == 3.0
    assert aggregated(Median(), 1.0, 100.0, 2.0) == 2.0
    assert aggregated(Median(), 1.0, 100.0, 2.0, 4.0) == 3.0
    assert aggregated(TrimmedMean(trim=0.25), -50.0, 1.0, 100.0, 2.0) == 1.5
    assert aggregated(TrimmedMean(trim=0.2), -50.0, 1.0, 100.0, 2.0) == 13.25  # none goes
    quiet = Private(clip=5.0, noise_multiplier=0.0)
    assert aggregated(quiet, 0.0, 1.0) == 0.5
    each = directions(1.0, 4.0)  # norms 2 ** 0.5 and 4 * 2 ** 0.5
    bounded = Private(clip=2**0.5, noise_multiplier=0.0)(each, [0.5, 0.5], GENERATOR)
    torch.testing.assert_close(bounded["w"], torch.tensor([1.0, -1.0]))


def test_the_norm_that_is_bounded_is_that_of_all_parameters_together() -> None:
    given = [{"w": torch.tensor([3.0]), "b": torch.tensor([4.0])}]
    found = Private(clip=1.0, noise_multiplier=0.0)(given, [1.0], GENERATOR)
    assert found["w"].item() == pytest.approx(0.6)
    assert found["b"].item() == pytest.approx(0.8)


def test_noise_has_the_deviation_that_is_asked_for_and_repeats() -> None:
    zeros = [{"w": torch.zeros(20_000)} for _ in range(4)]
    how = Private(clip=0.5, noise_multiplier=2.0)
    found = how(zeros, [0.25] * 4, GENERATOR.manual_seed(1))["w"]
    assert found.std().item() == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    assert torch.equal(found, how(zeros, [0.25] * 4, GENERATOR.manual_seed(1))["w"])


@pytest.mark.parametrize("how", [Median(), TrimmedMean(trim=0.3), Mean()])
def test_what_is_no_number_is_not_hidden(how: Any) -> None:
    """The update is then left out: it is not the aggregation that decides what diverged."""
    outer = Outer(steps=3, tasks_per_step=3, tasks_per_ticket=1, lr=0.1, aggregate=how)
    learner = Learner(Meta({"w": torch.zeros(1)}, {}, {}), outer)
    values = (1.0, float("nan"), 2.0)
    updates = [Update(Meta({"w": torch.tensor([v])}, {}, {}), 1, {}) for v in values]
    assert learner.apply(updates).left_out == (1,)
    assert learner.meta().model["w"].isfinite().all()


def test_the_state_is_averaged_whatever_becomes_of_the_directions() -> None:
    outer = Outer(steps=3, tasks_per_step=3, tasks_per_ticket=1, lr=0.1, aggregate=Median())
    learner = Learner(Meta({"w": torch.zeros(1)}, {}, {"mean": torch.zeros(1)}), outer)
    direction = Meta({"w": torch.zeros(1)}, {}, {"mean": torch.zeros(1)})
    updates = [
        Update(direction._replace(state={"mean": torch.tensor([v])}), 1, {})
        for v in (0.0, 0.0, 3.0)
    ]
    learner.apply(updates)
    assert learner.meta().state["mean"].item() == 1.0


def test_noise_is_another_in_each_step() -> None:
    private = Private(clip=1.0, noise_multiplier=1.0)
    each = {"steps": 2, "tasks_per_step": 1, "tasks_per_ticket": 1, "optimizer": "SGD", "lr": 1.0}
    zero = Meta({"w": torch.zeros(8)}, {}, {})
    learner, places = Learner(zero, Outer(**each, aggregate=private)), [zero.model["w"]]
    for _ in range(2):
        learner.apply([Update(zero, 1, {})])
        places.append(learner.meta().model["w"].clone())
    first, second = torch.stack(places).diff(dim=0)
    assert first.norm() > 0
    assert not torch.allclose(first, second)


def trained(steps: int = 4, **outer: Any) -> torch.Tensor:
    """The parameters of a run in this process, whose noise is the recipe's."""
    recipe = config(SINUSOID, outer__steps=steps, **outer).recipe()
    prepared = prepare(recipe)
    learner = Learner(prepared.meta, recipe.outer, recipe.seed)
    pool = LocalPool(prepared, choose_plan(prepared, 0, 1)[0])
    hooks = loop.Hooks(lambda step, metrics: None, lambda: None)
    loop.train(prepared, learner, pool, Requests(pool), hooks, save_every=100)
    return torch.cat([p.flatten() for p in learner.meta().model.values()])


def test_noise_is_decided_by_the_seed_and_the_step() -> None:
    private = {
        "outer__tasks_per_ticket": 1,
        "outer__aggregate": {"name": "private", "clip": 1.0, "noise_multiplier": 0.5},
    }
    found = trained(**private)
    assert torch.equal(trained(**private), found)
    assert not torch.equal(trained(seed=1, **private), found)
    assert not torch.equal(trained(outer__tasks_per_ticket=1), found)


def test_a_ticket_of_several_tasks_is_refused_where_each_is_to_be_private() -> None:
    aggregate = {"name": "private", "clip": 1.0, "noise_multiplier": 0.5}
    with pytest.raises(InputError) as error:
        config(SINUSOID, outer__aggregate=aggregate)
    assert "tasks_per_ticket is 3, expected 1" in str(error.value)
    for wrong in ({"clip": 0.0}, {"noise_multiplier": -1.0}):
        with pytest.raises(InputError):
            replace(Private(clip=1.0, noise_multiplier=0.5), **wrong)
    with pytest.raises(InputError):
        TrimmedMean(trim=0.5)


def test_running_statistics_which_no_noise_covers_are_refused_where_each_task_is_private() -> None:
    outer = replace(config(SINUSOID).outer, tasks_per_ticket=1)
    private = replace(outer, aggregate=Private(clip=1.0, noise_multiplier=1.0))
    state = Meta({"w": torch.zeros(2)}, {}, {"norm.mean": torch.zeros(2)})
    Learner(state, outer)
    with pytest.raises(InputError) as error:
        Learner(state, private)
    assert "set norm to another one than running" in error.value.remedy
