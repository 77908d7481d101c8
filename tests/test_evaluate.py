"""Scores: the right steps are measured, and the mean and its interval are those of the tasks."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import GLYPHS, SINUSOID, config, context

from cluster.evaluation import evaluate_work
from cluster.pool import LocalPool, Snapshot
from cluster.requests import Requests
from cluster.worker import choose_plan
from metatrain.algorithms import MAML
from metatrain.core import Meta, Scores
from metatrain.evaluate import scores, summarise
from metatrain.models import MLP
from metatrain.start import initial_meta
from metatrain.tasks import Sinusoid


def test_summary_is_the_mean_with_1_96_standard_errors() -> None:
    first = Scores(
        [0, 1], {"accuracy": torch.tensor([[0.2, 0.4], [0.2, 0.6]])}, {"nn": torch.tensor([0.5, 0.3])}, ("none",)
    )
    second = Scores([0, 1], {"accuracy": torch.tensor([[0.5, 0.8]])}, {"nn": torch.tensor([0.1])}, ("none",))
    score = summarise([first, second], "accuracy", "none", "a protocol")
    assert score.tasks == 3
    assert score.curve == pytest.approx([0.3, 0.6])
    assert score.mean == pytest.approx(0.6)
    assert score.ci95 == pytest.approx(1.96 * 0.2 / math.sqrt(3))
    assert score.baselines["nn"] == pytest.approx(0.3)
    assert score.line() == 'result: accuracy=60.00% ci95=22.63 tasks=3 protocol="a protocol"'


@pytest.mark.parametrize(("steps", "measured"), [(3, [0, 1, 2, 3]), (25, [*range(11), 20, 25])])
def test_the_curve_starts_before_adaptation_and_ends_with_the_last_step(steps: int, measured: list[int]) -> None:
    family = Sinusoid(shots=5, queries=7)
    problem = family.bind(MLP(hidden=(8,)), ("none",), "batched")
    meta = Meta(problem.init(torch.Generator().manual_seed(0)), {}, {})
    task = family.sample(torch.Generator().manual_seed(1), 4, "test")
    maml = MAML(inner_lr=0.01, inner_steps=steps)
    found = scores(problem, maml, meta, task, context())
    assert found.steps == measured
    assert found.curves["mse"].shape == (4, len(measured))
    *_, last = maml.adapt(problem, meta, task, context())
    torch.testing.assert_close(found.curves["mse"][:, -1], problem.query(last, task, context())["mse"])
    start = {name: p.expand(4, *p.shape) for name, p in meta.model.items()}
    torch.testing.assert_close(found.curves["mse"][:, 0], problem.query(start, task, context())["mse"])


def test_an_evaluation_scores_its_fixed_tasks_with_its_own_settings() -> None:
    recipe = config(
        SINUSOID, evaluation__family={"shots": 3}, evaluation__algorithm={"inner_steps": 4}, evaluation__seed=9
    ).recipe()
    plan, _ = choose_plan(recipe, 0, 1)

    def run(seed: int) -> list[float]:
        seeded = config(SINUSOID, seed=seed).recipe()
        pool = LocalPool(recipe, plan)
        pool.publish(Snapshot(0, initial_meta(seeded)))
        (score,) = evaluate_work(recipe, Requests(pool), "score", 0)
        assert score.tasks == 30
        assert score.steps == [0, 1, 2, 3, 4]
        assert "sinusoid 3-shot 5 query points, test split, bn=none, mlp hidden=(16,16), maml inner_lr=0.01 inner_steps=4" in score.protocol
        assert "30 tasks of seed 9" in score.protocol
        return score.curve

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_each_norm_of_an_evaluation_gives_a_score() -> None:
    recipe = config(GLYPHS, evaluation__norm=["transductive", "support+1"], evaluation__tasks=4).recipe()
    pool = LocalPool(recipe, choose_plan(recipe, 0, 1)[0])
    pool.publish(Snapshot(0, initial_meta(recipe)))
    found = evaluate_work(recipe, Requests(pool), "score", 0)
    assert [score.protocol.split("bn=")[1].split(",")[0] for score in found] == ["transductive", "support+1"]
    assert {"nearest_neighbour_on_pixels"} == found[0].baselines.keys()
