"""How the updates of a step become one, on numbers one can do by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import SINUSOID, config
from scipy.optimize import brentq
from scipy.stats import norm

from cluster import loop
from cluster.collector import Requests
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Contribution
from cluster.workers.plan import choose_plan
from metatrain import privacy, protocol
from metatrain.aggregation import Mean, Median, NormBounded, Private, TrimmedMean
from metatrain.core import InputError, Meta, Purpose, Update
from metatrain.learner import Learner
from metatrain.outer import Outer
from metatrain.start import prepare

GENERATOR = torch.Generator()
TRIMS_NONE = {"name": "trimmed_mean", "trim": 0.0}


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
    assert aggregated(TrimmedMean(trim=0.2), -50.0, 1.0, 100.0, 2.0) == 1.5  # rounded up
    assert aggregated(TrimmedMean(trim=0.49), 1.0, 100.0, 2.0) == 2.0
    assert aggregated(TrimmedMean(trim=0.0), -50.0, 1.0, 100.0, 2.0) == 13.25
    assert aggregated(NormBounded(bound=2**0.5), 0.5, -100.0) == pytest.approx(-0.25)
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


@pytest.mark.parametrize("how", [Median(), TrimmedMean(trim=0.3), NormBounded(bound=1.0), Mean()])
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
    private = Private(clip=1.0, noise_multiplier=1.0, delta=None)
    each = {"steps": 2, "tasks_per_step": 1, "tasks_per_ticket": 1, "optimizer": "SGD", "lr": 1.0}
    zero = Meta({"w": torch.zeros(8)}, {}, {})
    learner, places = Learner(zero, Outer(**each, aggregate=private)), [zero.model["w"]]
    for _ in range(2):
        learner.apply([Update(zero, 1, {})])
        places.append(learner.meta().model["w"].clone())
    first, second = torch.stack(places).diff(dim=0)
    assert first.norm() > 0
    assert not torch.allclose(first, second)


def trained(steps: int = 4, spoil: Any = None, **outer: Any) -> torch.Tensor:
    """The parameters of a run in this process, whose noise is the recipe's.

    spoil: makes another update of each ticket's.
    """
    recipe = config(SINUSOID, outer__steps=steps, **outer).recipe()
    prepared = prepare(recipe)
    learner = Learner(prepared.meta, recipe.outer, recipe.seed)
    pool = LocalPool(prepared, choose_plan(prepared, 0, 1)[0])
    answer = pool.next
    if spoil is not None:
        pool.next = lambda timeout_s: spoil(answer(timeout_s))
    hooks = loop.Hooks(lambda step, metrics: None, lambda: None)
    loop.train(prepared, learner, pool, Requests(pool), hooks, save_every=100)
    return torch.cat([p.flatten() for p in learner.meta().model.values()])


def test_noise_is_decided_by_the_seed_and_the_step() -> None:
    private = {
        "outer__tasks_per_ticket": 1,
        "outer__aggregate": {
            "name": "private",
            "clip": 1.0,
            "noise_multiplier": 0.5,
            "delta": None,
        },
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
    few = Private(clip=1.0, noise_multiplier=0.5, population=2)
    with pytest.raises(InputError) as error:
        Outer(steps=1, tasks_per_step=3, tasks_per_ticket=1, lr=0.1, aggregate=few)
    assert (error.value.what, error.value.got) == ("aggregate.population", 2)
    with pytest.raises(InputError):
        TrimmedMean(trim=0.5)


@pytest.mark.parametrize("name", ["median", "trimmed_mean"])
def test_an_aggregation_that_would_be_the_mean_is_refused(name: str) -> None:
    """Two tickets have no middle one."""
    keys = {"outer__tasks_per_ticket": 2, "outer__aggregate": {"name": name}}
    with pytest.raises(InputError) as error:
        config(SINUSOID, outer__tasks_per_step=4, **keys)
    assert error.value.what.endswith("outer.tasks_per_ticket")
    assert "a step has 3 tickets" in error.value.expected
    config(SINUSOID, outer__tasks_per_step=5, **keys)
    config(SINUSOID, outer__tasks_per_step=1, outer__aggregate=TRIMS_NONE)


def test_a_ticket_that_is_no_number_does_not_let_a_wrong_one_in() -> None:
    """It is left out first; a tenth of the nine that stay is one still."""
    how = TrimmedMean(trim=0.1)
    outer = Outer(
        steps=3, tasks_per_step=10, tasks_per_ticket=1, optimizer="SGD", lr=1.0, aggregate=how
    )
    learner = Learner(Meta({"w": torch.zeros(1)}, {}, {}), outer)
    values = [1.0] * 8 + [1e6, math.nan]
    learner.apply([Update(Meta({"w": torch.tensor([v])}, {}, {}), 1, {}) for v in values])
    assert learner.meta().model["w"].item() == -1.0


def test_running_statistics_which_no_noise_covers_are_refused_where_each_task_is_private() -> None:
    outer = replace(config(SINUSOID).outer, tasks_per_ticket=1)
    private = replace(outer, aggregate=Private(clip=1.0, noise_multiplier=1.0))
    state = Meta({"w": torch.zeros(2)}, {}, {"norm.mean": torch.zeros(2)})
    Learner(state, outer)
    with pytest.raises(InputError) as error:
        Learner(state, private)
    assert "set norm to another one than running" in error.value.remedy


def poisoned(came: Contribution) -> Contribution:
    """Every fifth ticket of a step points the other way, a hundred times as far."""
    if came.ticket.part % 5 == 0 and isinstance(came.result, Update):
        model = {name: -100 * p for name, p in came.result.direction.model.items()}
        direction = came.result.direction._replace(model=model)
        return came._replace(result=came.result._replace(direction=direction))
    return came


def test_a_fifth_of_the_tickets_is_poisoned_and_only_the_mean_follows_them() -> None:
    """Plain descent, so that the parameters say how far wrong tickets moved them."""
    descent = {
        "steps": 2,
        "outer__tasks_per_step": 10,
        "outer__tasks_per_ticket": 1,
        "outer__optimizer": "SGD",
        "outer__lr": 0.01,
    }
    start = trained(outer__lr=0.0, **{k: v for k, v in descent.items() if k != "outer__lr"})
    honest = trained(**descent) - start
    along = {}
    for how in (
        {"name": "mean"},
        {"name": "median"},
        {"name": "trimmed_mean", "trim": 0.2},
        {"name": "norm_bounded", "bound": 1.0},
    ):
        moved = trained(spoil=poisoned, outer__aggregate=how, **descent) - start
        along[how["name"]] = float(torch.cosine_similarity(moved, honest, dim=0))
    assert along.pop("mean") < 0
    assert min(along.values()) > 0.5


@pytest.mark.ray
def test_epsilon_is_a_bound_of_the_exact_one_and_an_owner_that_is_rarely_asked_spends_less() -> (
    None
):
    """Steps of Gaussian noise are one of a smaller deviation, whose delta is known in closed form
    (Balle and Wang 2018, arXiv 1805.06530, theorem 8).
    """

    def delta(epsilon: float, multiplier: float, steps: int) -> float:
        shift = steps**0.5 / multiplier
        return float(
            norm.cdf(shift / 2 - epsilon / shift)
            - math.exp(epsilon) * norm.cdf(-shift / 2 - epsilon / shift)
        )

    for multiplier, steps in ((1.0, 1), (10.0, 100), (4.0, 3)):
        private = Private(clip=1.0, noise_multiplier=multiplier, delta=1e-5)
        bound = privacy.epsilon(private, 32, steps)
        exact = brentq(lambda e, *at: delta(e, *at) - 1e-5, 1e-3, 100, args=(multiplier, steps))
        assert exact <= bound < 1.15 * exact
        assert privacy.epsilon(replace(private, population=3200), 32, steps) < bound / 2
    assert privacy.epsilon(private, 32, 0) == 0
    assert privacy.epsilon(replace(private, noise_multiplier=0.0), 32, 1) == math.inf


@pytest.mark.ray
def test_a_private_run_says_what_privacy_each_step_has_spent() -> None:
    private = Private(clip=1.0, noise_multiplier=2.0)
    outer = Outer(steps=3, tasks_per_step=1, tasks_per_ticket=1, lr=0.1, aggregate=private)
    zero = Meta({"w": torch.zeros(2)}, {}, {})
    learner = Learner(zero, outer)
    spent = [learner.apply([Update(zero, 1, {})]).metrics["epsilon"] for _ in range(2)]
    assert spent == [privacy.epsilon(private, 1, 1), privacy.epsilon(private, 1, 2)]
    recipe = replace(config(SINUSOID).recipe(), outer=outer)
    line = protocol.of_score(prepare(recipe), Purpose("score"), 2)
    assert (
        f"aggregate private clip=1.0 noise_multiplier=2.0 delta=1e-05 epsilon={spent[1]:.2f}"
        in line
    )
