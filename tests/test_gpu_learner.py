"""The learner on a GPU, which is pretended: in one array, without waits, it learns the same."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator

import pytest
import torch
from pretended_gpu import CUDA, Gpu, pretended, unmarked

from metatrain.core import Meta, Update, to_device
from metatrain.learner import Learner
from metatrain.outer import Outer
from metatrain.outer_optimizer import BY_NUMBER

SLOW = pytest.mark.ray
ONE = Outer(steps=9, tasks_per_step=1, tasks_per_ticket=1, lr=0.01)


@pytest.fixture
def gpu() -> Iterator[type[Gpu]]:
    torch.set_num_threads(1)
    with pretended() as found:
        yield found


@pytest.mark.parametrize("optimizer", ["Adam", pytest.param("SGD", marks=SLOW)])
def test_a_step_that_is_not_finite_changes_nothing_on_a_gpu_either(
    optimizer: str, gpu: type[Gpu]
) -> None:
    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    outer = Outer(
        steps=9, tasks_per_step=1, tasks_per_ticket=1, optimizer=optimizer, lr=0.01,
        options=options, average=0.5,
    )  # fmt: skip
    start = Meta({"w": torch.ones(3)}, {"r": torch.ones(())}, {"mean": torch.zeros(2)})
    there = Learner(to_device(start, CUDA), outer)
    here = Learner(start, outer)
    assert there.defers
    assert not here.defers
    for value in (1.0, 2.0, math.nan, 3.0):
        direction = start._replace(
            model={"w": torch.full((3,), value)}, state={"mean": torch.full((2,), value)}
        )
        mine = there.apply([Update(to_device(direction, CUDA), 1, {"loss": 0.5})])
        with unmarked():
            expected = here.apply([Update(direction, 1, {"loss": 0.5})])
        assert mine.left_out == expected.left_out == (() if math.isfinite(value) else (0,))
        assert mine.metrics == expected.metrics
    assert there.version == here.version == 4
    with unmarked():
        for name, p in here.meta().flat().items():
            torch.testing.assert_close(there.meta().flat()[name], p)
        for name, p in here.scored().flat().items():
            torch.testing.assert_close(there.scored().flat()[name], p)


def test_numbers_that_are_not_read_yet_hold_no_update() -> None:
    """A GPU that is five steps ahead would hold five directions, each as large as the network."""
    meta = Meta({"w": torch.ones(3)}, {}, {})
    learner, direction = Learner(meta, ONE), meta._replace(model={"w": torch.ones(3)})
    held = weakref.ref(direction.model["w"])
    applied = learner.take([Update(direction, 1, {"loss": 0.5})])
    del direction
    assert held() is None
    assert applied().metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    "optimizer", [pytest.param(x, marks=[SLOW] * (x not in ("Adam", "SGD"))) for x in BY_NUMBER]
)
def test_parameters_in_one_array_move_as_each_by_itself(optimizer: str, gpu: type[Gpu]) -> None:
    """And what is saved on one device continues on the other."""
    g = torch.Generator().manual_seed(0)
    model = {n: torch.randn(s, generator=g).double() for n, s in (("a", (2, 3)), ("b", ()))}
    algorithm = {n: torch.randn(s, generator=g).double() for n, s in (("r", ()), ("s", ()))}
    start = Meta(model, algorithm, {})
    directions = [
        start._replace(
            model={n: p.cos() * (step + 1) for n, p in model.items()},
            algorithm={n: p.sin() * (step - 1.5) for n, p in algorithm.items()},
        )
        for step in range(4)
    ]
    outer = Outer(
        steps=9, tasks_per_step=1, tasks_per_ticket=1, optimizer=optimizer, lr=0.01,
        options={"momentum": 0.9} if optimizer == "SGD" else {},
        groups={"algorithm.*": {"lr": 0.1}}, clip_value=1.5,
    )  # fmt: skip
    devices = (torch.device("cpu"), CUDA)
    here, there = (Learner(to_device(start, d), outer) for d in devices)
    for step, direction in enumerate(directions):
        if step == 2:  # each continues what the other one has learned
            mine, theirs = here.state_dict(), there.state_dict()
            assert mine[0].keys() == theirs[0].keys()
            assert mine[1].keys() == theirs[1].keys()
            saved = [({n: t.cpu().clone() for n, t in x[0].items()}, x[1]) for x in (mine, theirs)]
            here, there = (Learner(to_device(start, d), outer) for d in devices)
            here.load_state_dict(*saved[1])
            there.load_state_dict(*saved[0])
        for learner, device in zip((here, there), devices, strict=True):
            learner.apply([Update(to_device(direction, device), 1, {})])
    with unmarked():
        for name, p in here.meta().flat().items():
            torch.testing.assert_close(there.meta().flat()[name], p, rtol=1e-12, atol=1e-14)
