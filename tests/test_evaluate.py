"""Scores: the right steps are measured, and the mean and its interval are those of the tasks."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, SINUSOID, config, context

from cluster import run
from cluster.collector import Requests
from cluster.evaluation import evaluate_for
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Snapshot
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import protocol
from metatrain.algorithms import MAML
from metatrain.core import TRAINING_ONLY, InputError, Meta, Purpose, Scores, Ticket
from metatrain.data.images import ImageStore, Scheme
from metatrain.evaluate import scores, summarise
from metatrain.first_look import TASKS
from metatrain.metrics import ACCURACY, MSE
from metatrain.models import MLP
from metatrain.names import described
from metatrain.start import prepare
from metatrain.tasks import Sinusoid


def test_summary_is_the_mean_with_1_96_standard_errors() -> None:
    first = Scores(
        [0, 1],
        {"none": {"accuracy": torch.tensor([[0.2, 0.4], [0.2, 0.6]])}},
        {"nn": torch.tensor([0.5, 0.3])},
    )
    second = Scores(
        [0, 1], {"none": {"accuracy": torch.tensor([[0.5, 0.8]])}}, {"nn": torch.tensor([0.1])}
    )
    score = summarise([first, second], ACCURACY, {}, "none", "a protocol")
    assert score.tasks == 3
    assert score.curve == pytest.approx([0.3, 0.6])
    assert score.mean == pytest.approx(0.6)
    assert score.ci95 == pytest.approx(1.96 * 0.2 / math.sqrt(3))
    assert score.baselines["nn"] == pytest.approx(0.3)
    assert score.line() == 'result: accuracy=60.00% ci95=22.63 tasks=3 protocol="a protocol"'
    assert score.differences["nn"] == pytest.approx((0.3, 1.96 * 0.4 / math.sqrt(3)))
    assert score.difference("nn") == "no clear difference: 30.00 ± 45.26 points"
    for metric, value, said in (
        (ACCURACY, 0.3, "30.00 ± 10.00 points better"),
        (ACCURACY, -0.3, "30.00 ± 10.00 points worse"),
        (MSE, 0.3, "0.3000 ± 0.1000 worse"),
        (MSE, -0.3, "0.3000 ± 0.1000 better"),
    ):
        clear = replace(score, metric=metric, differences={"nn": (value, 0.1)})
        assert clear.difference("nn") == said


def test_tickets_of_unequal_steps_have_the_first_and_the_last_in_common() -> None:
    """A memory makes a step for each support example, of which tickets may draw other numbers."""
    parts = [
        Scores([0, 1], {"none": {"mse": torch.tensor([[4.0, 3.0]])}}, {}),
        Scores([0, 1, 2, 3], {"none": {"mse": torch.tensor([[6.0, 5.0, 2.0, 1.0]])}}, {}),
    ]
    score = summarise(parts, MSE, {}, "none", "a protocol")
    assert score.steps == [0, 3]
    assert score.curve == pytest.approx([5, 2])


@pytest.mark.parametrize(("mean", "warned"), [(5.0, True), (-5.0, True), (2.5, False)])
def test_a_mean_far_from_the_quartiles_is_told(mean: float, warned: bool) -> None:
    """On either side: a return falls where an error rises."""
    one = Scores([0], {"none": {"mse": torch.tensor([[0.5], [0.5]])}}, {})
    score = replace(summarise([one], MSE, {}, "none", ""), mean=mean, quartiles=(0.4, 0.6))
    assert ("a few tasks decide the mean" in (score.warning() or "")) == warned


@pytest.mark.parametrize(("steps", "measured"), [(3, [0, 1, 2, 3]), (25, [*range(11), 20, 25])])
def test_the_curve_starts_before_adaptation_and_ends_with_the_last_step(
    steps: int, measured: list[int]
) -> None:
    family = Sinusoid(shots=5, queries=7)
    problem = family.bind(MLP(hidden=(8,)), ("none",), "batched")
    meta = Meta(problem.init(torch.Generator().manual_seed(0)), {}, {})
    task = family.sample(torch.Generator().manual_seed(1), 4, "test")
    maml = MAML(inner_lr=0.01, inner_steps=steps)
    found = scores(problem, maml, meta, task, context())
    assert found.steps == measured
    assert found.curves["none"]["mse"].shape == (4, len(measured))
    *_, last = maml.adapt(problem, meta, task, context())
    start = {name: p.expand(4, *p.shape) for name, p in meta.model.items()}
    with torch.no_grad():  # as it measures
        for at, params in ((-1, last), (0, start)):
            expected = problem.query(params, task, context())["mse"]
            torch.testing.assert_close(found.curves["none"]["mse"][:, at], expected)


def test_an_evaluation_scores_its_fixed_tasks_with_its_own_settings() -> None:
    recipe = config(
        SINUSOID,
        evaluation__family={"shots": 3},
        evaluation__algorithm={"inner_steps": 4},
        evaluation__seed=9,
    ).recipe()
    plan, _ = choose_plan(prepare(recipe), 0, 1)

    def run(seed: int) -> list[float]:
        seeded = config(SINUSOID, seed=seed).recipe()
        pool = LocalPool(prepare(recipe), plan)
        pool.publish(Snapshot(0, prepare(seeded).meta))
        (score,) = evaluate_for(prepare(recipe), Requests(pool), Purpose("score"), 0)
        assert score.tasks == 30
        assert score.steps == [0, 1, 2, 3, 4]
        assert (
            "sinusoid 3-shot 5 query points, test split, bn=none, mlp hidden=(16,16) head=linear, "
            "maml inner_lr=0.01 inner_steps=4" in score.protocol
        )
        assert "30 tasks of seed 9" in score.protocol
        return score.curve

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_each_norm_of_an_evaluation_gives_a_score() -> None:
    recipe = config(
        GLYPHS, evaluation__norm=["transductive", "support+1"], evaluation__tasks=4
    ).recipe()
    pool = LocalPool(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
    pool.publish(Snapshot(0, prepare(recipe).meta))
    found = evaluate_for(prepare(recipe), Requests(pool), Purpose("score"), 0)
    assert [score.protocol.split("bn=")[1].split(",")[0] for score in found] == [
        "transductive",
        "support+1",
    ]
    assert {"nearest_neighbour_on_pixels"} == found[0].baselines.keys()
    assert all({"ece", "macro_f1"} < score.measures.keys() for score in found)
    assert found[0].measures["ece"] != found[1].measures["ece"]


def dots(name: str, channels: int, *, validates: bool = False) -> None:
    """Eight classes of noise as a data set."""
    splits = {"train": [0, 1, 2, 3], "test": [4, 5, 6, 7]}
    if validates:
        splits |= {"train": [0, 1], "val": [2, 3]}
    ImageStore(
        name=name,
        images=torch.randint(0, 256, (32, channels, 8, 8), dtype=torch.uint8),
        class_names=list("abcdefgh"),
        sizes=torch.full((8,), 4),
        schemes=[Scheme(name=name, classes=splits, rotations=dict.fromkeys(splits, "none"))],
        synthetic=True,
    ).save()


def test_an_evaluation_may_be_of_another_data_set_of_the_same_shape(
    tmp_path: Path,
) -> None:
    """A run records splits and checksum of its own data set, and they are not the other one's."""
    dots("near", 1, validates=True)
    dots("far", 1)
    settings = GLYPHS | {"outer": GLYPHS["outer"] | {"steps": 1}}
    settings |= {
        "model": {"name": "mlp", "hidden": [4]},
        "family": {"name": "fewshot", "data": "near", "ways": 2},
        "validation": {"every_steps": 1, "tasks": 2},
    }
    settings |= {"evaluations": {"cross": {"tasks": 6, "family": {"data": "far"}}}}
    folder, scores = run.train(config(settings, output=str(tmp_path / "run")))
    assert [score.evaluation for score in scores] == ["", "cross"]
    assert scores[1].protocol.startswith("far/far (synthetic) 2-way 1-shot")
    assert "(near/near (synthetic)" in scores[1].protocol
    assert [row["name"] for row in scores[1].details["classes"]] == list("efgh")
    assert run.evaluate(str(folder), ["workers.max=0"]) == scores
    score, _ = run.evaluate(str(folder), ["workers.max=0", "evaluation.family.data=far"])
    assert score.protocol.startswith("far/far"), "and has no classes for validation"
    dots("colours", 3)
    with pytest.raises(InputError, match=r"family.shape is \[1, 8, 8\], but .* are \[3, 8, 8\]"):
        run.evaluate(str(folder), ["workers.max=0", "evaluations.cross.family.data=colours"])


@pytest.mark.parametrize("case", CASES)
def test_an_evaluation_changes_nothing_that_was_trained(case: str) -> None:
    recipe = config(CASES[case]).recipe()
    prepared = prepare(recipe)
    worker = Worker(prepared, choose_plan(prepared, 0, 1)[0])
    worker.load(0, worker.layout.flatten(prepared.meta))
    before = {name: p.clone() for name, p in prepared.meta.flat().items()}
    first, again = (worker.compute(Ticket("score", "test", 0, 0))[0] for _ in range(2))
    assert all(torch.equal(p, before[name]) for name, p in prepared.meta.flat().items())
    assert torch.equal(worker.layout.flatten(prepared.meta), worker._buffer)
    assert isinstance(first, Scores)
    for norm, curves in first.curves.items():
        for name, curve in curves.items():
            assert torch.equal(curve, again.curves[norm][name])


OWN = """
from dataclasses import dataclass
from metatrain.tasks import Sinusoid

ASKED = []


@dataclass(frozen=True, kw_only=True)
class Watched(Sinusoid):
    name: str = "watched_family:Watched"

    def sample(self, generator, count, split):
        ASKED.append((split, count))
        return super().sample(generator, count, split)
"""


def test_nothing_before_the_final_evaluation_sees_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither training, nor the choice of the best step: but for a first look, which scores none.

    The look draws as many tasks as no ticket does.
    """
    (tmp_path / "watched_family.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = SINUSOID | {
        "family": {"name": "watched_family:Watched"},
        "outer": SINUSOID["outer"] | {"steps": 4},
        "validation": {"every_steps": 1, "tasks": 6, "patience": 2},
        "evaluation": {"tasks": 6, "tasks_per_ticket": 6},
    }
    run.train(config(settings, output="run"))
    asked = [
        split for split, count in importlib.import_module("watched_family").ASKED if count != TASKS
    ]
    final = asked.index("test")
    assert set(asked[:final]) == {"train", "val"}
    assert "test" in asked[final:]
    assert "train" not in asked[final:]
    assert "val" not in asked[final:]
    setting = prepare(config(SINUSOID).recipe()).setting("update")
    with pytest.raises(ValueError, match="test"):
        setting._replace(split="test").tickets()


def test_a_split_says_nothing_of_the_purpose() -> None:
    """With `evaluation.split: val` the validation in training took the evaluation's tasks, seed and
    norms.
    """
    recipe = config(
        SINUSOID,
        evaluation__split="val",
        evaluation__seed=9,
        validation={"tasks": 12, "every_steps": 5},
    ).recipe()
    score, validation = recipe.setting("score"), recipe.setting("validate")
    assert (score.split, score.seed, score.tasks, score.tasks_per_ticket) == ("val", 9, 30, 7)
    assert (validation.split, validation.seed, validation.tasks, validation.tasks_per_ticket) == (
        "val",
        2,
        12,
        7,
    )
    plan, _ = choose_plan(prepare(recipe), 0, 1)
    pool = LocalPool(prepare(recipe), plan)
    pool.publish(Snapshot(0, prepare(recipe).meta))
    requests = Requests(pool)
    found = {
        work: evaluate_for(prepare(recipe), requests, Purpose(work), 0)[0]
        for work in ("score", "validate")
    }
    assert (found["score"].tasks, found["validate"].tasks) == (30, 12)
    on_test = config(SINUSOID, validation={"tasks": 12, "every_steps": 5}).recipe()
    pool = LocalPool(prepare(on_test), plan)
    pool.publish(Snapshot(0, prepare(on_test).meta))
    (again,) = evaluate_for(prepare(on_test), Requests(pool), Purpose("validate"), 0)
    assert again.mean == found["validate"].mean


def test_validation_is_measured_like_the_result_unless_it_says_otherwise() -> None:
    given = {"tasks": 30, "family": {"shots": 3}, "algorithm": {"inner_steps": 4}}
    validation = config(SINUSOID, evaluation=given).recipe().setting("validate")
    assert (validation.family.shots, validation.algorithm.inner_steps) == (3, 4)
    own = {"family": {"shots": 8}, "algorithm": {}}
    validation = config(SINUSOID, evaluation=given, validation=own).recipe().setting("validate")
    assert (validation.family.shots, validation.algorithm.inner_steps) == (8, 1)
    recipe = config(GLYPHS, evaluation__norm=["support+1", "transductive"]).recipe()
    assert recipe.setting("validate").norm == ("support+1",)
    assert recipe.setting("score").norm == ("support+1", "transductive")
    recipe = config(GLYPHS, evaluation__norm="support+1", validation__norm="transductive").recipe()
    assert recipe.setting("validate").norm == ("transductive",)
    with pytest.raises(InputError, match=r"validation.algorithm: .*inner_stepz"):
        config(SINUSOID, validation__algorithm={"inner_stepz": 3}).recipe().setting("validate")
    with pytest.raises(InputError) as error:
        config(SINUSOID, validation__tasks=0)
    assert (error.value.what.split()[-1], error.value.got) == ("validation.tasks", 0)


def test_a_protocol_names_the_network_and_the_statistics_that_there_are() -> None:
    line = protocol.of_score(prepare(config(SINUSOID).recipe()), Purpose("score"), 20)
    assert line.count("bn=none") == 2
    assert "mlp hidden=(16,16) head=linear, maml inner_lr=0.01 inner_steps=1" in line
    prepared = prepare(config(GLYPHS, evaluation__norm="support+1").recipe())
    line = protocol.of_score(prepared, Purpose("score"), 20)
    assert (
        "bn=support+1, conv4 filters=8 pool=stride features=mean norm=batch norm_scale=True "
        "head=linear" in line
    )
    assert (
        "(glyphs/glyphs (synthetic) 5-way 1-shot 1 query/class, bn=transductive, maml inner_lr=0.4"
        in line
    )


@dataclass(frozen=True, kw_only=True)
class Odd:
    name: str = "odd"
    epsilon: float = 0.0
    count: int = 0
    on: bool = True
    off: bool = False
    nothing: str | None = None
    everything: tuple[str, ...] = ("*",)
    body: Any = None
    start: float = field(default=0.5, metadata=TRAINING_ONLY)


def test_a_protocol_drops_no_zero() -> None:
    """0 equals False, which is what was left out."""
    assert described(Odd()) == "odd epsilon=0.0 count=0 on=True start=0.5"
    assert described(Odd(body=Odd(on=False)), adapts=True) == (
        "odd epsilon=0.0 count=0 on=True body=(odd epsilon=0.0 count=0 start=0.5)"
    )


@pytest.mark.parametrize(
    ("base", "algorithm"),
    [
        ({"name": "meta_sgd", "initial_lr": 0.1}, {"initial_lr": 0.5}),
        ({"name": "meta_sgd", "initial_lr": 0.1}, {"recompute": True}),
        ({"name": "maml", "inner_lr": 0.1}, {"first_order": True}),
    ],
)
def test_an_evaluation_does_not_take_what_would_change_nothing(base: Any, algorithm: Any) -> None:
    """The protocol said that it was used."""
    (key,) = algorithm
    for group in ("evaluation", "validation"):
        recipe = config(SINUSOID, algorithm=base, **{f"{group}__algorithm": algorithm}).recipe()
        with pytest.raises(InputError, match=rf"{group}.algorithm.{key} would change nothing"):
            recipe.setting("score" if group == "evaluation" else "validate")
    prepared = prepare(config(SINUSOID, algorithm=base).recipe())
    line = protocol.of_score(prepared, Purpose("score"), 1)
    assert line.count("initial_lr") == (base["name"] == "meta_sgd")  # of the training only
