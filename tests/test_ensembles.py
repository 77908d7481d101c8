"""Ensembles: members predict together, beside the single network and on the same tasks."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, SINUSOID, config, context
from torch import nn

from cluster import run
from cluster.collector import Requests
from cluster.ensembles import check_checkpoints
from cluster.evaluation import evaluate_all, evaluate_for
from cluster.pools import wire
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Snapshot
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.algorithms import Prototypical
from metatrain.core import InputError, Meta, Purpose, Scores, Task
from metatrain.ensembles import Boosted, bootstrap, fitted, mixture
from metatrain.evaluate import Score
from metatrain.first_look import check_data
from metatrain.metrics import cross_entropy
from metatrain.models.heads import BIAS, WEIGHT
from metatrain.problems.supervised import Supervised
from metatrain.start import prepare

BANDIT = CASES["rl2"]
DENSITY = SINUSOID | {"family": {"name": "gaussian_process", "shots": [2, 3], "queries": 2}}
KINDS: list[dict[str, Any]] = [
    {"name": "bagged", "members": 3},
    {"name": "boosted", "members": 3},
    {"name": "convex", "members": 3},
    {"name": "snapshots", "members": 2},
]


def scored(meta: Meta | None = None, earlier: tuple[Meta, ...] = (), **keys: Any) -> Score:
    """The score of untrained networks on four tasks, or of these parameters."""
    return all_scored(meta, earlier, **keys)[0]


def all_scored(meta: Meta | None, earlier: tuple[Meta, ...], **keys: Any) -> list[Score]:
    """The same of all evaluations."""
    prepared = prepare(config(GLYPHS, evaluation__tasks=4, validation__tasks=4, **keys).recipe())
    pool = LocalPool(prepared, choose_plan(prepared, 0, 1)[0])
    others = [Snapshot(8 - i, each) for i, each in enumerate(earlier)]
    snapshots = [Snapshot(9, meta or prepared.meta), *others]
    pool.publish(snapshots[0])
    return evaluate_all(prepared, Requests(pool), 9, snapshots=snapshots)


@pytest.mark.ray
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["name"])
def test_members_of_one_shot_are_the_single_network_which_is_a_baseline(
    kind: dict[str, Any],
) -> None:
    """A sample of one is that one, prototypes of one are right, two checkpoints are the same."""
    prototypical = {"algorithm": {"name": "prototypical"}} if kind["name"] == "boosted" else {}
    alone = scored(**prototypical)
    meta = prepare(config(GLYPHS, **prototypical).recipe()).meta
    score = scored(meta, (meta,), evaluation__ensemble=kind, **prototypical)
    assert score.baselines["single"] == pytest.approx(alone.mean)
    assert score.mean == pytest.approx(alone.mean)
    assert score.differences["single"] == pytest.approx((0, 0), abs=1e-6)
    assert score.measures == pytest.approx(alone.measures, abs=1e-6)
    assert score.steps == alone.steps[-1:]
    assert f"ensemble {kind['name']} members={kind['members']}" in score.protocol
    assert score.baseline_protocols == {"single": alone.protocol}


def test_members_predictions_come_from_an_actor_as_they_were() -> None:
    recipe = config(SINUSOID, evaluation__tasks=2, evaluation__ensemble=KINDS[0]).recipe()
    prepared = prepare(recipe)
    worker = Worker(prepared, choose_plan(prepared, 0, 1)[0])
    worker.load(0, worker.layout.flatten(prepared.meta))
    found, spent = worker.compute(prepared.setting("score").tickets()[0])
    assert isinstance(found, Scores)
    sent = wire.packed(found, spent, worker.layout)
    there = wire.unpacked(pickle.loads(pickle.dumps(sent.result)), worker.layout)
    assert isinstance(there, Scores)
    assert found.members["none"]["predictions"].shape == (2, 3, 5, 1)
    for name, values in found.members["none"].items():
        assert torch.equal(values, there.members["none"][name])


def test_a_bootstrap_draws_from_each_class_as_many_as_it_has_and_repeats() -> None:
    problem = prepare(config(GLYPHS).recipe()).problems[Purpose("score")]
    x = torch.arange(12.0).view(2, 6, 1)
    y = torch.tensor([[0, 0, 0, 1, 1, 2], [2, 1, 0, 1, 0, 0]])
    task = Task(x, y, x, y)
    sample = bootstrap(problem, task, torch.Generator().manual_seed(1))
    again = bootstrap(problem, task, torch.Generator().manual_seed(1))
    assert torch.equal(sample.support_x, again.support_x)
    assert not torch.equal(sample.support_x, x)
    assert torch.equal(sample.support_y, y)
    label = dict(zip(x.flatten().tolist(), y.flatten().tolist(), strict=True))
    assert [label[value] for value in sample.support_x.flatten().tolist()] == y.flatten().tolist()
    assert torch.equal(sample.query_x, x)


def test_a_mixture_is_the_mean_of_probabilities_and_of_numbers() -> None:
    logits = torch.tensor([[[[0.0, 3.0]], [[2.0, 0.0]]]])  # one task, two members, one query
    members = {"predictions": logits, "weights": torch.tensor([[3.0, 1.0]])}
    expected = (3 * logits[:, 0].softmax(-1) + logits[:, 1].softmax(-1)) / 4
    torch.testing.assert_close(mixture(members, None, classes=True).exp(), expected)
    torch.testing.assert_close(
        mixture(members, torch.tensor([0.0, 1.0]), classes=True), logits[:, 1].log_softmax(-1)
    )
    torch.testing.assert_close(
        mixture(members, None, classes=False), (3 * logits[:, 0] + logits[:, 1]) / 4
    )


def test_fitted_weights_are_on_the_simplex_and_no_others_have_less_loss() -> None:
    p = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)).double()
    p[:, 1] += 0.1
    weights = fitted(p)
    assert weights.sum().item() == pytest.approx(1)
    assert (weights >= 0).all()
    gains = (p / (p @ weights)[:, None]).mean(0)  # of more weight: at most 1 at the optimum
    assert gains.max().item() == pytest.approx(1, abs=1e-3)
    sure = torch.stack([torch.full((5,), 0.9), torch.full((5,), 0.2)], 1).double()
    assert fitted(sure).tolist() == pytest.approx([1, 0])


class Straight:
    """A model whose features are the examples."""

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        return nn.Sequential(OrderedDict(body=nn.Flatten(), head=nn.Linear(1, outputs)))


def test_boosting_weights_the_prototypes_by_the_examples_that_they_get_wrong() -> None:
    """By hand: c = 11/3 and 5 miss 10 and 4, which then count twice, as (1 - err) / err is 2."""
    problem = Supervised(
        model=Straight(),
        inputs=(1,),
        outputs=2,
        loss=cross_entropy,
        metrics={},
        norm=("none",),
        path="reference",
        classes=True,
    )
    x = torch.tensor([0.0, 1.0, 10.0, 4.0, 5.0, 6.0]).view(1, 6, 1)
    y = torch.tensor([[0, 0, 0, 1, 1, 1]])
    members = Boosted(members=2).adapted(
        problem, Prototypical(), Meta({}, {}, {}), Task(x, y, x, y), context()
    )
    first, second = members
    assert first.params[WEIGHT].flatten().tolist() == pytest.approx([22 / 3, 10])
    assert first.weight.item() == pytest.approx(math.log(2))
    assert second.params[WEIGHT].flatten().tolist() == pytest.approx([2 * 21 / 4, 2 * 19 / 4])
    assert second.params[BIAS].flatten().tolist() == pytest.approx(
        [-((21 / 4) ** 2), -((19 / 4) ** 2)]
    )


@pytest.mark.ray
def test_an_ensemble_of_several_shots_predicts_otherwise_and_repeats() -> None:
    keys: dict[str, Any] = {"family__shots": 3, "evaluation__ensemble": KINDS[0]}
    alone, score = scored(family__shots=3), scored(**keys)
    assert score.baselines["single"] == pytest.approx(alone.mean)
    assert score.measures["ece"] != pytest.approx(alone.measures["ece"])
    assert score.measures == scored(**keys).measures
    numbers = config(SINUSOID, evaluation__ensemble=KINDS[0], evaluation__tasks=4).recipe()
    prepared = prepare(numbers)
    pool = LocalPool(prepared, choose_plan(prepared, 0, 1)[0])
    pool.publish(Snapshot(0, prepared.meta))
    (score,) = evaluate_for(prepared, Requests(pool), Purpose("score"), 0)
    assert score.mean != score.baselines["single"]


@pytest.mark.ray
def test_snapshots_are_the_mean_of_the_checkpoints_predictions() -> None:
    """Two of the last one and one of another: what a member weighs shows its place."""
    prepared = prepare(config(GLYPHS).recipe())
    first, other = prepared.meta, prepare(config(GLYPHS, seed=5).recipe()).meta
    of = {"name": "snapshots", "members": 2}
    both = scored(first, (other,), evaluation__ensemble=of)
    swapped = scored(other, (first,), evaluation__ensemble=of)
    assert both.mean == pytest.approx(swapped.mean)
    assert both.measures == pytest.approx(swapped.measures, abs=1e-6)
    assert both.measures["ece"] != pytest.approx(scored(first).measures["ece"])
    next_one = {"next": {"tasks": 4}}
    _, after = all_scored(first, (other,), evaluation__ensemble=of, evaluations=next_one)
    assert after.curve == all_scored(first, (), evaluations=next_one)[1].curve
    with pytest.raises(InputError) as error:
        scored(first, evaluation__ensemble=of)
    assert error.value.remedy == "evaluate the run's folder"


@pytest.mark.ray
def test_further_evaluations_have_ensembles_of_their_own(tmp_path: Path) -> None:
    """A run of four steps: its last checkpoints are there when it ends, and for `evaluate`."""
    recipe = config(
        GLYPHS,
        output=str(tmp_path / "run"),
        outer__steps=4,
        evaluation__tasks=4,
        evaluations={"snap": {"tasks": 4, "ensemble": KINDS[3]}},
        checkpoint={"every_steps": 2, "keep": 2},
    )
    folder, (main, snap) = run.train(recipe)
    assert "single" not in main.baselines
    assert snap.differences.keys() >= {"single"}
    assert "evaluations.snap" not in snap.protocol
    four = "{name: snapshots, members: 4}"
    again = run.evaluate(str(folder), ["workers.max=0"])
    assert [score.mean for score in again] == [main.mean, snap.mean]
    with pytest.raises(InputError) as error:
        run.evaluate(str(folder), [f"evaluation.ensemble={four}", "workers.max=0"])
    assert (error.value.got, error.value.expected[:9]) == (4, "at most 2")


def test_ensembles_that_cannot_be_are_refused_before_training() -> None:
    snapshots = {"name": "snapshots", "members": 3}
    for keys, what in (
        ({"checkpoint": {"keep": 2, "every_steps": 1}}, "checkpoint.keep"),
        ({"checkpoint": {"keep": 3, "every_steps": 10}}, "checkpoint.every_steps"),
        (
            {"validation": {"every_steps": 1}, "evaluation__of": "best"},
            "evaluation.ensemble.name",
        ),
    ):
        with pytest.raises(InputError) as error:
            check_checkpoints(config(GLYPHS, evaluation__ensemble=snapshots, **keys))
        assert error.value.what == what
    cosine = GLYPHS["model"] | {"head": {"name": "cosine"}}
    attack = {"name": "fgsm", "epsilon": 0.1}
    for base, keys, what in (
        (SINUSOID, {"evaluation__ensemble": KINDS[1]}, "evaluation.ensemble.name"),
        (SINUSOID, {"evaluation__ensemble": KINDS[2]}, "evaluation.ensemble.name"),
        (
            GLYPHS,
            {"evaluation__ensemble": KINDS[1], "model": cosine},
            "evaluation.ensemble boosted computes a linear head",
        ),
        (
            CASES["meta-networks"],
            {"evaluation__ensemble": KINDS[1]},
            "evaluation.ensemble boosted computes a linear head",
        ),
        (
            GLYPHS,
            {"evaluation__ensemble": KINDS[0], "evaluation__attack": attack},
            "evaluation.ensemble: an attack",
        ),
        (BANDIT, {"evaluation__ensemble": KINDS[0]}, "evaluation.ensemble mixes"),
        (DENSITY, {"evaluation__ensemble": KINDS[0]}, "evaluation.ensemble mixes"),
    ):
        with pytest.raises(InputError) as error:
            check_data(prepare(config(base, **keys).recipe()))
        assert error.value.what.startswith(what)
