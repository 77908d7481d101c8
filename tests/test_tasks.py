"""Tasks are what the papers say, and a function of their ticket alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import GLYPHS, SINUSOID, config

from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.core import InputError, Resident, Task, Ticket, generator_for
from metatrain.data.images import ImageStore, Rotations, Scheme
from metatrain.models import MLP
from metatrain.start import prepare
from metatrain.tasks import FewShot, Series, Sinusoid
from metatrain.tasks.episode import choose, nearest_neighbour
from metatrain.tasks.series import least_squares, persistence


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_sinusoids_are_those_of_the_paper() -> None:
    task = Sinusoid(shots=500, queries=20).sample(generator(), 300, "train")
    assert task.support_x.shape == (300, 500, 1)
    assert task.query_y.shape == (300, 20, 1)
    assert -5 <= task.support_x.min() < -4.9
    assert 4.9 < task.support_x.max() <= 5
    amplitude = task.support_y.abs().amax(1)
    assert 0.09 < amplitude.min() < 0.4
    assert 4.8 < amplitude.max() < 5.0
    # y = A sin(x - p): least squares on sin x and cos x gives back A and p in [0, pi]
    basis = torch.cat([task.support_x.sin(), task.support_x.cos()], -1)
    weights = torch.linalg.lstsq(basis, task.support_y).solution
    assert (basis @ weights - task.support_y).abs().max() < 1e-3
    phase = torch.atan2(-weights[:, 1, 0], weights[:, 0, 0])
    assert phase.min() > -1e-3
    assert phase.max() < math.pi + 1e-3


def test_series_follow_a_law_of_their_own_in_time() -> None:
    task = Series(shots=300, queries=200).sample(generator(), 50, "train")
    assert task.support_x.shape == (50, 300, 2)
    assert task.query_y.shape == (50, 200, 1)
    x, y = (
        torch.cat([task.support_x, task.query_x], 1),
        torch.cat([task.support_y, task.query_y], 1),
    )
    assert torch.equal(x[:, 1:, 0], x[:, :-1, 1])
    assert torch.equal(x[:, 1:, 1], y[:, :-1, 0])
    weights = torch.linalg.lstsq(x, y).solution
    assert float((y - x @ weights).std()) == pytest.approx(0.1, abs=0.003)
    damping = (-weights[:, 0, 0]).sqrt()
    period = 2 * math.pi / torch.arccos((weights[:, 1, 0] / (2 * damping)).clamp(-1, 1))
    assert 0.75 < damping.min() < damping.max() < 1.01
    assert 3.8 < period.min() < 7
    assert period.max() > 14
    assert weights.std(0).min() > 0.1  # not one law for all


def test_forecasts_to_compare_with_by_hand() -> None:
    """The last value; and the law y_t = 2 y_{t-1} - y_{t-2}, which three steps tell."""
    x, law = torch.tensor([[[10.0, 0.0], [0.0, 10.0], [10.0, 30.0]]]), torch.tensor([[-1.0], [2.0]])
    task = Task(x, x @ law, x[:, 2:], (x @ law)[:, 2:])
    assert persistence(task).item() == 400.0
    assert least_squares(task).item() < 1e-4


def test_networks_see_images_in_0_to_1_and_inverted_if_asked() -> None:
    for invert, seen in ((False, [0.0, 0.2, 1.0]), (True, [1.0, 0.8, 0.0])):
        family = FewShot(data="glyphs", invert=invert)
        problem = family.bind(MLP(hidden=()), ("none",), "batched")
        found = problem.to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        assert found.tolist() == pytest.approx(seen)


def test_episodes_have_distinct_classes_and_disjoint_support_and_query() -> None:
    family = FewShot(data="glyphs", ways=7, shots=3, queries=4)
    task = family.sample(generator(), 50, "train")
    assert task.support_x.shape == (50, 21, 1, 28, 28)
    assert task.support_x.dtype == torch.uint8
    assert task.support_y[0].tolist() == [way for way in range(7) for _ in range(3)]
    assert task.query_y[0].tolist() == [way for way in range(7) for _ in range(4)]
    flat = family.store.images.flatten(1).float()
    for t in range(3):
        drawn = torch.cat([task.support_x[t], task.query_x[t]]).flatten(1).float()
        source = torch.cdist(drawn, flat).argmin(1)
        classes = (source // 20)[:21].view(7, 3)
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0].tolist())) == 7
        assert torch.equal((source // 20)[21:].view(7, 4), classes[:, :1].expand(7, 4))
        assert len(set(source.tolist())) == 49


def test_shots_of_classes_differ_by_at_most_the_imbalance_and_their_sum_stays() -> None:
    family = FewShot(data="glyphs", ways=5, shots=3, imbalance=2)
    task = family.sample(generator(), 200, "train")
    assert task.support_x.shape == (200, 15, 1, 28, 28)
    shots = torch.nn.functional.one_hot(task.support_y, 5).sum(1)
    assert (shots.amin(), shots.amax()) == (1, 5)
    assert (shots != 3).any(0).all()  # each label may have more or less
    flat = family.store.images.flatten(1).float()
    source = torch.cdist(task.support_x[0].flatten(1).float(), flat).argmin(1)
    assert torch.equal(source // 20, task.classes[0, task.support_y[0]] // 4)
    assert len(set(source.tolist())) == 15
    even = FewShot(data="glyphs", ways=5, shots=3).sample(generator(), 200, "train")
    assert torch.equal(even.classes, task.classes)
    assert "3-shot imbalance 2 1 query/class" in family.describe()
    with pytest.raises(InputError) as error:
        FewShot(data="glyphs", shots=2, imbalance=2)
    assert (error.value.what, error.value.got) == ("imbalance", 2)


@pytest.mark.parametrize("rotations", ["none", "per-task", "classes"])
def test_a_class_turns_as_one(rotations: Rotations) -> None:
    """Its support and its query images; a turn may be drawn for it, or be a class of its own."""
    images = torch.arange(81, dtype=torch.uint8).view(9, 1, 3, 3)
    known = {
        torch.rot90(images[i], turn, dims=(-2, -1)).numpy().tobytes(): (i // 3, turn, i)
        for i in range(9)
        for turn in range(4)
    }
    scheme = Scheme(name="s", classes={"train": [0, 1, 2]}, rotations={"train": rotations})
    three = ImageStore(
        name="turning",
        images=images,
        class_names=["a", "b", "c"],
        sizes=torch.tensor([3, 3, 3]),
        schemes=[scheme],
        synthetic=True,
    )
    family = FewShot(ways=12 if rotations == "classes" else 3, shots=2)
    vars(family)["store"] = three
    family.check("train")
    task = family.sample(generator(), 20, "train")
    seen, drawn_as = set(), []
    ways = torch.cat([task.support_x.unflatten(1, (-1, 2)), task.query_x[:, :, None]], 2)
    for drawn in ways.contiguous().numpy():
        found = [[known[image.tobytes()] for image in way] for way in drawn]
        assert all(len({image[:2] for image in way}) == 1 for way in found)
        assert all(len({image[2] for image in way}) == 3 for way in found)
        assert len({way[0][: 2 if rotations == "classes" else 1] for way in found}) == family.ways
        seen |= {way[0][1] for way in found}
        drawn_as.append(found)
    assert seen == ({0} if rotations == "none" else {0, 1, 2, 3})
    own = torch.tensor([[way[0][0] * 4 + way[0][1] for way in tasks] for tasks in drawn_as])
    assert torch.equal(task.classes, own if rotations == "classes" else own // 4 * 4)
    more = replace(family, ways=family.ways + 1)
    vars(more)["store"] = three
    with pytest.raises(InputError, match=f"has {family.ways} classes"):
        more.check("train")


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_episodes_stay_in_their_split(split: Any) -> None:
    family = FewShot(data="glyphs", ways=20, queries=1)
    task = family.sample(generator(), 5, split)
    members = torch.tensor(family.store.scheme(None).classes[split])
    rows = (family.store.offsets[members][:, None] + torch.arange(20)).flatten()
    inside = torch.cdist(
        task.support_x.flatten(0, 1).flatten(1).float(),
        family.store.images[rows].flatten(1).float(),
    )
    assert inside.amin(1).max() == 0


def test_images_that_are_resident_on_a_device_give_the_same_tasks() -> None:
    family = FewShot(data="glyphs", shots=2)
    assert isinstance(family, Resident)  # by which a worker knows that it can
    there = family.resident(torch.device("cpu"))
    for split in ("train", "test"):
        drawn = [each.sample(generator(), 5, split) for each in (family, there)]
        assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))
    assert there.store is replace(there, ways=3).resident(torch.device("cpu")).store  # one copy


def test_choose_is_distinct_and_uniform_below_each_size() -> None:
    sizes = torch.tensor([[3, 10], [5, 4]]).repeat(5000, 1)
    chosen = choose(generator(), sizes, 3)
    assert (chosen < sizes[..., None]).all()
    assert (chosen.sort(-1).values.diff(dim=-1) > 0).all()
    share = torch.bincount(chosen[0::2, 1, 0]).float() / 5000
    assert (share - 0.1).abs().max() < 0.02


def test_nearest_neighbour_is_perfect_on_copies() -> None:
    task = FewShot(data="glyphs").sample(generator(), 10, "test")
    assert nearest_neighbour(task._replace(query_x=task.support_x)).min() == 1


def test_glyphs_are_as_hard_as_omniglot() -> None:
    task = FewShot(data="glyphs").sample(generator(), 600, "test")
    assert 0.25 < nearest_neighbour(task).mean() < 0.60


@pytest.mark.parametrize("base", [SINUSOID, GLYPHS])
def test_tasks_are_a_function_of_seed_and_ticket(base: dict[str, Any]) -> None:
    """Not of who draws them, when, or what was drawn before."""

    def drawn(ticket: Ticket, seed: int = 0, before: tuple[Ticket, ...] = ()) -> Any:
        recipe = config(base, seed=seed).recipe()
        worker = Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
        for earlier in before:
            worker.draw(earlier)
        worker.draw(ticket)
        return worker._drawn[ticket].support_x

    ticket = Ticket("update", "train", 3, 1)
    other = Ticket("update", "train", 3, 0)
    assert torch.equal(drawn(ticket), drawn(ticket, before=(other, ticket)))
    for different in (drawn(other), drawn(ticket._replace(step=4)), drawn(ticket, seed=1)):
        assert not torch.equal(drawn(ticket), different)


def test_seed_ticket_and_purpose_decide_what_is_drawn() -> None:
    def drawn(ticket: Ticket, seed: int = 0, purpose: str = "tasks") -> float:
        return torch.rand(1, generator=generator_for(seed, ticket, purpose)).item()

    ticket = Ticket("score", "test", 0, 0)
    changes: list[dict[str, Any]] = [{"work": "update"}, {"split": "val"}, {"variant": "again"}]
    changes += [{"step": 1}, {"part": 1}]
    values = [drawn(ticket._replace(**change)) for change in changes]
    values += [drawn(ticket), drawn(ticket, seed=1), drawn(ticket, purpose="adaptation")]
    assert len({*values}) == len(values)
    # A validation on the evaluation's split and seed is of the evaluation's tasks.
    assert drawn(ticket._replace(work="validate")) == drawn(ticket)


def test_the_last_ticket_of_a_step_takes_what_is_left() -> None:
    recipe = config(SINUSOID).recipe()  # 10 tasks in tickets of 3
    worker = Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
    sizes = []
    for part in range(recipe.outer.tickets()):
        ticket = Ticket("update", "train", 0, part)
        worker.draw(ticket)
        sizes.append(len(worker._drawn[ticket].support_x))
    assert sizes == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"ways": 101},
            "101 ways were asked for, but the val split of glyphs/glyphs has 100 classes",
        ),
        ({"shots": 20}, "20 shots and 1 queries need 21 images of a class"),
        ({"splits": "omni-vinyals"}, "no splits 'omni-vinyals': choose one of glyphs"),
        (
            {"data": "omniglot"},
            "data set 'omniglot' is not imported yet: run `metatrain data import omniglot`",
        ),
        (
            {"data": "nothing"},
            "data set 'nothing' is not imported yet: .*with --source if it is your own",
        ),
    ],
)
def test_tasks_that_the_data_cannot_give_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        FewShot(**fields).check("val")
