"""Reading as adaptation: cells as torch defines them, exact gradients, and a memory of nothing but
what was read.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from cases import CASES, SINUSOID, config, context, trained
from gradients import assert_meta_gradient
from torch import nn

from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.algorithms import MAML, Recurrent
from metatrain.core import ComputePath, Meta, Ticket
from metatrain.models import MLP, heads
from metatrain.models.mann import DECAY, SMALL, MANNLayer
from metatrain.models.memory import Cell, MemoryLayer
from metatrain.models.snail import SNAILLayer
from metatrain.problems.supervised import Supervised
from metatrain.start import TRAINING, prepare
from metatrain.tasks import FewShot, Series, Sinusoid

TORCH = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
READERS: dict[str, heads.Head] = {
    **{cell: heads.Memory(cell=cell, hidden=6) for cell in get_args(Cell)},
    "mann": heads.MANN(hidden=6, slots=5, width=3, reads=2),
    "snail": heads.SNAIL(width=4, length=4),
}


@pytest.mark.parametrize("kind", TORCH)
def test_a_cell_is_that_of_torch(kind: str) -> None:
    ours, theirs = MemoryLayer(3, 2, 1, kind, 5), TORCH[kind](4, 5)
    theirs.load_state_dict(
        {
            "weight_ih": torch.cat([ours.features.weight, ours.feedback.weight], 1),
            "bias_ih": ours.features.bias,
            "weight_hh": ours.recurrent.weight,
            "bias_hh": ours.recurrent.bias,
        }
    )
    features, previous = torch.randn(6, 3), torch.randn(6, 1)
    hidden = torch.randn(6, 10 if kind == "lstm" else 5)
    output, after = ours(features, hidden, previous)
    x = torch.cat([features, previous], -1)
    expected = theirs(x, hidden.chunk(2, -1)) if kind == "lstm" else (theirs(x, hidden),)
    torch.testing.assert_close(after, torch.cat(expected, -1))
    torch.testing.assert_close(output, ours.out(expected[0]))


def test_a_mann_reads_and_writes_as_the_papers_equations_say() -> None:
    """Each slot by itself, for two examples in a row, of which the first has nothing to read."""
    layer = MANNLayer(3, 2, 1, units=4, slots=5, width=3, reads=2).double()
    h, c = torch.zeros(2, 4).double()
    memory, usage = torch.full((5, 3), 1e-6).double(), (torch.arange(5) * 1e-6).double()
    weights, reads = torch.zeros(2, 5).double(), torch.zeros(2, 3).double()
    hidden = layer.hidden[None]
    for x, y in torch.randn(2, 2, 3).double():
        out, hidden = layer(x[None], hidden, y[None, :1])
        seen = layer.features(x) + layer.feedback(y[:1])
        i, f, g, o = (seen + layer.recurrent(torch.cat([h, reads.flatten()]))).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        keys, gates = layer.keys(h).tanh().view(2, 3), layer.gates(h).sigmoid()
        before = weights.clone()
        for head, key in enumerate(keys):
            lengths = (memory.square().sum(1) + SMALL).sqrt() * (key @ key + SMALL).sqrt()
            weights[head] = (layer.scale * (memory @ key) / lengths).softmax(0)
            reads[head] = weights[head] @ memory
        least = usage.argsort()[:2].tolist()
        for slot in least:
            memory[slot] = 0.0
        writes = gates[:, None] * before
        for head, slot in enumerate(least):
            writes[head, slot] += 1 - gates[head]
        for slot in range(5):
            memory[slot] += writes[0, slot] * keys[0] + writes[1, slot] * keys[1]
        usage = DECAY * usage + weights.sum(0) + writes.sum(0)
        torch.testing.assert_close(out[0], layer.out(torch.cat([h, reads.flatten()])))
        state = h, c, memory.flatten(), weights.flatten(), usage, reads.flatten()
        torch.testing.assert_close(hidden[0], torch.cat(state))
        h, c, memory, weights, usage, reads = (
            part.detach().clone() for part in (h, c, memory, weights, usage, reads)
        )


def test_a_snail_sees_every_example_with_its_own_target_and_nothing_that_comes_later() -> None:
    layer = SNAILLayer(3, 2, 1, width=8, length=4).double()
    x, y = torch.randn(1, 6, 3).double(), torch.randn(1, 6, 1).double()
    hidden, previous = layer.hidden[None], layer.previous[None]
    start = torch.cat([layer.hidden, layer.previous])[None, None]
    for t in range(6):
        kept = torch.cat([hidden, previous, x[:, t]], -1)
        out, hidden = layer(x[:, t], hidden, previous)
        assert torch.equal(hidden, kept)  # as `keeps_all` says
        previous = y[:, t]
        known = torch.cat([start, torch.cat([x, y], -1)[:, :t]], 1)
        asked = torch.cat([x[:, t], torch.zeros(1, 1)], -1)[:, None]
        tokens = torch.cat([known, asked], 1)
        torch.testing.assert_close(out, layer.read(tokens, t + 2)[:, -1])  # all are known
    cut = layer.read(tokens[:, :4], 4)
    torch.testing.assert_close(layer.read(tokens, 7)[:, :4], cut, rtol=1e-12, atol=1e-12)
    far = tokens.clone()
    far[:, 0] += 1.0
    assert not torch.equal(layer.read(far, 7)[:, -1], layer.read(tokens, 7)[:, -1])


def test_questions_to_a_snail_do_not_see_each_other() -> None:
    layer = SNAILLayer(3, 2, 1, width=8, length=8).double()
    tokens = torch.randn(1, 8, 4).double()
    found = layer.read(tokens, 5)
    for k in (5, 6, 7):
        alone = layer.read(torch.cat([tokens[:, :5], tokens[:, k : k + 1]], 1), 6)
        torch.testing.assert_close(found[:, k], alone[:, -1], rtol=1e-12, atol=1e-12)


def bound(
    reader: str, path: ComputePath = "batched", family: Any = None
) -> tuple[Supervised, Meta]:
    """On sinusoids, in float64."""
    problem = (family or Sinusoid(shots=4, queries=3)).bind(
        MLP(hidden=(5,), head=READERS[reader]), ("none",), path
    )
    meta = Recurrent().init(problem, torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(3)
    noisy = {
        name: p.double() + 0.1 * torch.randn(p.shape, generator=g).double()
        for name, p in meta.model.items()
    }
    return problem, Meta(noisy, {}, {})


def draw(family: Any, count: int = 3) -> Any:
    return type(t := family.sample(torch.Generator().manual_seed(1), count, "train"))(
        *(leaf.double() for leaf in t)
    )


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("path", ["batched", "reference"])
def test_the_gradient_through_reading_agrees_with_finite_differences(
    reader: str, path: ComputePath
) -> None:
    problem, meta = bound(reader, path)
    task = draw(Sinusoid(shots=4, queries=3))
    assert_meta_gradient(Recurrent(), problem, meta, task, every_step=True, h=1e-5, tolerance=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_second_derivatives_go_through_cells(cell: str) -> None:
    """MAML over a network with a memory, against finite differences."""
    problem, meta = bound(cell, "reference")
    task = draw(Sinusoid(shots=4, queries=3))
    maml = MAML(inner_lr=0.1, inner_steps=2)
    assert_meta_gradient(maml, problem, meta, task, h=1e-5)


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"none"}))
def test_what_is_read_later_changes_nothing_earlier_and_something_after(reader: str) -> None:
    family = Series(shots=4, queries=3)
    problem, meta = bound(reader, family=family)
    task = draw(family)
    changed = task.support_y.clone()
    changed[:, 2] += 1.0
    found = [
        [
            problem.predict(phi, t, context())
            for phi in Recurrent().adapt(problem, meta, t, context())
        ]
        for t in (task, task._replace(support_y=changed))
    ]
    assert len(found[0]) == 5
    for k, (one, other) in enumerate(zip(*found, strict=True)):
        assert torch.equal(one, other) == (k < 3), k


def test_metrics_are_those_before_anything_is_read_and_after_all() -> None:
    problem, meta = bound("gru")
    task = draw(Sinusoid(shots=4, queries=3))
    first, *_, last = Recurrent().adapt(problem, meta, task, context())
    found = Recurrent().update(problem, meta, task, context()).metrics
    for when, phi in (("before", first), ("after", last)):
        expected = problem.query(phi, task, context())["mse"].mean()
        assert float(found[f"mse_{when}"]) == pytest.approx(float(expected))
    assert found["mse_before"] != found["mse_after"]


@pytest.mark.parametrize("reader", READERS)
def test_a_task_without_support_examples_has_the_metrics_of_the_others(reader: str) -> None:
    """Before and after reading are the same, as nothing is read."""
    problem, meta = bound(reader)
    task = draw(Sinusoid(shots=4, queries=3))
    none = task._replace(support_x=task.support_x[:, :0], support_y=task.support_y[:, :0])
    some, found = (Recurrent().update(problem, meta, each, context()) for each in (task, none))
    assert found.metrics.keys() == some.metrics.keys()
    first, last = Recurrent().adapt(problem, meta, none, context())
    for name, p in first.items():
        assert torch.equal(p, last[name])


def test_each_query_example_is_predicted_from_the_same_memory() -> None:
    problem, meta = bound("lstm")
    task = draw(Sinusoid(shots=4, queries=3))
    *_, phi = Recurrent().adapt(problem, meta, task, context())
    queries = [task._replace(query_x=x) for x in task.query_x.split(1, 1)]
    alone = torch.cat([problem.predict(phi, each, context()) for each in queries], 1)
    torch.testing.assert_close(problem.predict(phi, task, context()), alone)


def test_without_a_cell_nothing_is_kept_but_the_last_target() -> None:
    family = Series(shots=4, queries=3)
    problem, meta = bound("none", family=family)
    task = draw(family)
    *_, one = Recurrent().adapt(problem, meta, task, context())
    changed = task.support_y.clone()
    changed[:, :3] += 1.0
    *_, other = Recurrent().adapt(problem, meta, task._replace(support_y=changed), context())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_examples_are_read_in_an_order_of_their_own_and_series_in_time() -> None:
    """Episodes list their support examples class by class, which must not tell them apart."""
    family = FewShot(ways=5, shots=2)
    model = MLP(hidden=(4,), head=heads.Memory(cell="gru", hidden=4))
    problem = family.bind(model, ("none",), "batched")
    meta = Recurrent().init(problem, torch.Generator().manual_seed(0))
    task = family.sample(torch.Generator().manual_seed(1), 3, "train")

    def read(seed: int) -> torch.Tensor:
        return torch.stack(
            [p["head.previous"] for p in Recurrent().adapt(problem, meta, task, context(seed))][1:],
            1,
        )

    order = read(0).argmax(-1)
    assert torch.equal(order, read(0).argmax(-1))  # the ticket's
    assert not torch.equal(order, read(1).argmax(-1))
    assert torch.equal(order.sort(1).values, task.support_y)
    assert not torch.equal(order[0], order[1])
    series = Series(shots=4, queries=3)
    problem, meta = bound("gru", family=series)
    told = [p["head.previous"] for p in Recurrent().adapt(problem, meta, draw(series), context())][
        1:
    ]
    assert torch.equal(torch.stack(told, 1), draw(series).support_y)


@pytest.mark.parametrize("reader", ["lstm", "mann", "snail"])
def test_paths_agree(reader: str) -> None:
    task = draw(Sinusoid(shots=4, queries=3))
    updates = [
        Recurrent().update(*bound(reader, path), task, context())
        for path in ("batched", "reference")
    ]
    for name, g in updates[0].direction.model.items():
        torch.testing.assert_close(g, updates[1].direction.model[name], rtol=1e-10, atol=1e-12)


def test_of_the_last_prediction_alone_the_loss_is_that_after_all_examples() -> None:
    problem, meta = bound("gru")
    task, last = draw(Sinusoid(shots=4, queries=3)), Recurrent(losses="last")
    assert_meta_gradient(last, problem, meta, task, h=1e-5, tolerance=1e-6)
    policy = prepare(config(CASES["rl2"]).recipe())  # which plays once, with all that it read
    problem, tasks = (
        policy.problems[TRAINING],
        policy.recipe.family.sample(torch.Generator().manual_seed(0), 2, "train"),
    )
    one, other = (
        each.update(problem, policy.meta, tasks, context()).direction.model
        for each in (last, Recurrent())
    )
    assert all(torch.equal(one[name], p) for name, p in other.items())


@pytest.mark.ray
def test_a_memory_learns_a_sinusoid_that_it_reads_and_a_net_without_one_does_not() -> None:
    """200 outer steps: the error falls by a fourth and more while it reads, and below that without
    a cell.
    """

    def error(cell: str) -> torch.Tensor:
        recipe = config(
            SINUSOID,
            family={"name": "sinusoid", "shots": 10, "queries": 10},
            model={
                "name": "mlp",
                "hidden": [32],
                "head": {"name": "memory", "cell": cell, "hidden": 32},
            },
            algorithm={"name": "recurrent"},
            outer={"steps": 200, "tasks_per_step": 25, "tasks_per_ticket": 25, "lr": 0.01},
            evaluation={"tasks": 200, "tasks_per_ticket": 200},
        ).recipe()
        return trained(recipe).curves["none"]["mse"].mean(0)

    lstm, none = error("lstm"), error("none")
    assert lstm[10] < 0.75 * lstm[0]
    assert lstm[10] < 0.75 * none[10]


def test_evaluation_measures_after_each_example_that_was_read() -> None:
    recipe = config(CASES["recurrent-conv4"]).recipe()
    worker = Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
    worker.load(0, worker.layout.flatten(prepare(recipe).meta))
    assert worker.compute(Ticket("score", "test", 0, 0))[0].steps == [0, 1, 2, 3, 4, 5]
