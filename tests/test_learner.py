"""The learner: weighted means in, outer steps out; checked on numbers one can do by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metatrain.core import KEPT, InputError, Meta, Penalty, Update
from metatrain.learner import Diverged, Learner
from metatrain.outer import Outer


def outer(**fields: Any) -> Outer:
    return Outer(
        **(
            {"steps": 10, "tasks_per_step": 2, "tasks_per_ticket": 1, "optimizer": "SGD", "lr": 3.0}
            | fields
        )
    )


def meta(value: float = 0.0) -> Meta:
    return Meta(
        {"w": torch.full((2,), value)}, {"lr": torch.tensor(value)}, {"mean": torch.tensor([value])}
    )


def update(value: float, tasks: int = 1) -> Update:
    return Update(meta(value), tasks, {"loss": value})


def test_meta_parameters_are_flat_under_one_name_each_and_come_back() -> None:
    given = Meta(
        {"head.bias": torch.ones(2)}, {"rate.head.bias": torch.ones(1)}, {"n": torch.ones(3)}
    )
    flat = given.flat()
    assert [*flat] == ["model.head.bias", "algorithm.rate.head.bias", "state.n"]
    assert Meta.unflat(flat) == given
    with pytest.raises(InputError) as error:
        Meta.unflat({"flat.n": torch.ones(1)})
    assert error.value.got == "flat.n"


def test_updates_one_and_zero_under_sgd_three_give_minus_one_and_a_half() -> None:
    learner = Learner(meta(), outer())
    applied = learner.apply([update(1.0), update(0.0)])
    assert learner.meta().model["w"].tolist() == [-1.5, -1.5]
    assert learner.meta().algorithm["lr"].item() == -1.5
    assert learner.version == 1
    assert applied.metrics == {"loss": 0.5}
    assert applied.learned == {"lr": -1.5}


def test_updates_weigh_as_many_tasks_as_they_have() -> None:
    learner = Learner(meta(), outer(lr=1.0))
    applied = learner.apply([update(1.0, tasks=3), update(0.0, tasks=1)])
    assert learner.meta().model["w"].tolist() == [-0.75, -0.75]
    assert learner.meta().state["mean"].tolist() == [0.75]
    assert applied.metrics == {"loss": 0.75}


def test_state_is_replaced_by_the_mean_and_not_descended() -> None:
    learner = Learner(meta(5.0), outer())
    learner.apply([update(1.0), update(0.0)])
    assert learner.meta().state["mean"].tolist() == [0.5]


def test_entries_that_an_update_writes_are_kept_as_they_are_and_others_stay() -> None:
    """Each of three updates writes an entry of its own: 1 / 3 of it and the like would be means."""
    old = torch.tensor([0.1, 0.2, 0.3, 0.4])
    learner = Learner(Meta({"w": torch.zeros(1)}, {}, {KEPT + "ring": old}), outer())
    updates = []
    for i in range(3):
        written = old.clone()
        written[i] = 0.7 + i
        updates.append(Update(Meta({"w": torch.ones(1)}, {}, {KEPT + "ring": written}), 1, {}))
    learner.apply(updates)
    assert torch.equal(learner.meta().state[KEPT + "ring"], torch.tensor([0.7, 1.7, 2.7, 0.4]))
    with pytest.raises(InputError) as error:
        Learner(learner.meta(), outer(max_staleness=1))
    assert (error.value.what, error.value.got) == ("max_staleness", 1)


def test_groups_have_rates_of_their_own() -> None:
    learner = Learner(meta(), outer(lr=1.0, groups={"algorithm.*": {"lr": 0.1}}))
    learner.apply([update(1.0)])
    assert learner.meta().model["w"].tolist() == [-1.0, -1.0]
    assert learner.meta().algorithm["lr"].item() == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("schedule", "rates"), [("linear", [1.0, 0.9, 0.1]), ("cosine", [1.0, 0.9755, 0.0245])]
)
def test_schedules_fall_to_zero(schedule: Any, rates: list[float]) -> None:
    assert [outer(schedule=schedule).rate(v) for v in (0, 1, 9)] == pytest.approx(rates, abs=1e-4)
    learner = Learner(meta(), outer(lr=1.0, schedule=schedule))
    learner.apply([update(1.0)])
    assert learner.apply([update(1.0)]).lr == pytest.approx(rates[1], abs=1e-4)
    assert learner.meta().model["w"][0].item() == pytest.approx(-1 - rates[1], abs=1e-4)


def test_the_rate_rises_linearly_to_its_schedule() -> None:
    warm = outer(schedule="linear", warmup_steps=4)
    assert [warm.rate(v) for v in (0, 1, 3, 4, 9)] == pytest.approx([0.25, 0.45, 0.7, 0.6, 0.1])
    assert [outer(warmup_steps=2).rate(v) for v in (0, 1, 2)] == [0.5, 1.0, 1.0]


def test_a_penalty_is_descended_with_the_network_alone() -> None:
    """theta - lr (g + l1 sign(theta) + l2 theta), before the gradient is bounded."""
    learner = Learner(meta(2.0), outer(lr=0.1, penalty=Penalty(l1=0.5, l2=1.5)))
    learner.apply([update(1.0)])
    assert learner.meta().model["w"].tolist() == pytest.approx([2.0 - 0.1 * (1.0 + 0.5 + 3.0)] * 2)
    assert learner.meta().algorithm["lr"].item() == pytest.approx(1.9)
    bounded = Learner(meta(2.0), outer(lr=0.1, penalty=Penalty(l2=9.0), clip_value=0.5))
    bounded.apply([update(1.0)])
    assert bounded.meta().model["w"].tolist() == pytest.approx([1.95] * 2)


def test_the_layout_of_updates_changes_nothing() -> None:
    """Fused optimizers go by memory, and a fused path's updates lie channels last."""
    theta = torch.arange(144.0).view(4, 4, 3, 3)
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        outer = Outer(
            steps=5, tasks_per_step=1, tasks_per_ticket=1, lr=0.1, options={"fused": True}
        )
        learner = Learner(Meta({"w": theta.clone()}, {}, {}), outer)
        for _ in range(3):
            direction = theta.sin().contiguous(memory_format=layout)
            learner.apply([Update(Meta({"w": direction}, {}, {}), 1, {})])
        found.append(learner.meta().model["w"])
    assert torch.equal(*found)


def test_clipping_bounds_the_step_and_reports_the_norm_before() -> None:
    learner = Learner(meta(), outer(lr=1.0, clip_norm=1.0))
    applied = learner.apply([update(10.0)])
    assert applied.gradient_norm == pytest.approx(10 * 3**0.5)
    assert learner.meta().model["w"].norm().item() == pytest.approx((2 / 3) ** 0.5, rel=1e-4)
    learner = Learner(meta(), outer(lr=1.0, clip_value=0.25))
    learner.apply([update(10.0)])
    assert learner.meta().model["w"].tolist() == [-0.25, -0.25]
    both = Learner(
        Meta({"w": torch.zeros(2)}, {}, {}), outer(lr=1.0, clip_value=3.0, clip_norm=1.0)
    )
    both.apply([Update(Meta({"w": torch.tensor([100.0, 4.0])}, {}, {}), 1, {})])
    assert both.meta().model["w"].tolist() == pytest.approx([-(0.5**0.5)] * 2)  # entries first


def test_updates_that_are_not_finite_are_left_out() -> None:
    learner, without = Learner(meta(1.0), outer()), Learner(meta(1.0), outer())
    applied = learner.apply([update(1.0), update(float("nan")), update(2.0), update(float("inf"))])
    assert applied.left_out == (1, 3)
    expected = without.apply([update(1.0), update(2.0)])
    assert applied._replace(left_out=()) == expected
    assert torch.equal(learner.meta().model["w"], without.meta().model["w"])
    applied = learner.apply([update(float("nan"))])
    assert applied.left_out == (0,)
    assert learner.version == 2
    assert torch.equal(learner.meta().model["w"], without.meta().model["w"])
    fresh = Learner(meta(1.0), outer())
    with pytest.raises(Diverged, match="outer step 0 is not finite"):
        fresh.apply([update(float("nan"))])
    assert fresh.version == 0


def test_finite_updates_whose_mean_is_not_finite_change_nothing() -> None:
    learner = Learner(meta(1.0), outer())
    with pytest.raises(Diverged, match="outer step 0 is not finite"):
        learner.apply([update(3e38), update(3e38)])
    assert learner.version == 0
    assert learner.meta().model["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_state_round_trip_continues_exactly(optimizer: str) -> None:
    settings = outer(
        optimizer=optimizer, lr=0.1, options={"momentum": 0.9} if optimizer == "SGD" else {}
    )
    straight, first = Learner(meta(1.0), settings), Learner(meta(1.0), settings)
    for value in (1.0, 2.0):
        straight.apply([update(value)])
        first.apply([update(value)])
    second = Learner(meta(0.0), settings)
    second.load_state_dict(*first.state_dict())
    straight.apply([update(-3.0)])
    second.apply([update(-3.0)])
    assert torch.equal(straight.meta().model["w"], second.meta().model["w"])
    assert torch.equal(straight.meta().state["mean"], second.meta().state["mean"])
    assert second.version == 3


def test_updates_are_not_changed() -> None:
    given = update(1.0)
    Learner(meta(), outer(clip_value=0.1)).apply([given, update(2.0)])
    assert given.direction.model["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": {"nonsense": 1.0}}, "refuses outer.options"),
        ({"optimizer": "LBFGS"}, "LBFGS refuses .*closure"),
        ({"optimizer": "SparseAdam"}, "SparseAdam refuses"),
        ({"optimizer": "Adam", "options": {"betas": (0.9,)}}, "Adam refuses"),
        ({"optimizer": "Adam", "options": {"foreach": True, "fused": True}}, "Adam refuses"),
        ({"options": {"maximize": True}}, r"outer.options.maximize is True, expected false"),
        ({"options": {"momentum": 0.9, "dampening": 2.0}}, r"dampening is 2.0, expected 0 to 1"),
        ({"groups": {"algorithm.*": {"maximize": 1}}}, r"outer.groups.algorithm.\*.maximize is 1"),
        ({"optimizer": "Adam", "options": {"differentiable": True}}, "Adam refuses"),
        ({"optimizer": "Adam", "options": {"capturable": True}}, "Adam refuses"),
        ({"groups": {"head.*": {"lr": 1.0}}}, "matches no parameter"),
        (
            {"groups": {"algorithm.*": {"lrr": 1.0}}},
            r"outer.groups.algorithm.\* gives SGD lrr, which is none of its",
        ),
        (
            {"groups": {"algorithm.*": {"lr": -1.0}}},
            r"outer.groups.algorithm.\* gives SGD lr = -1.0",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Learner(meta(), outer(**fields))


@pytest.mark.parametrize(("key", "value"), [("optimizer", "Adamm"), ("steps", 0), ("lr", -1.0)])
def test_a_value_that_cannot_be_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(InputError) as error:
        outer(**{key: value})
    assert (error.value.what, error.value.got) == (key, value)


def test_what_is_loaded_replaces_all_that_the_optimizer_knew() -> None:
    fresh, used = (Learner(meta(), outer(optimizer="Adam", lr=0.1)) for _ in range(2))
    start = fresh.state_dict()
    used.apply([update(1.0)])
    used.load_state_dict(*start)
    assert used.version == 0
    for learner in (fresh, used):
        learner.apply([update(-1.0)])
    assert torch.equal(used.meta().model["w"], fresh.meta().model["w"])
