"""Measures of all tasks together have scikit-learn's definitions, from little that is pooled."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cases import CASES, GLYPHS, SINUSOID, config, context
from sklearn import metrics as sklearn
from torch import Tensor

from cluster.collector import Requests
from cluster.evaluation import evaluate_for
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Snapshot
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.core import Purpose, Scores, Task, Ticket
from metatrain.evaluate import summarise
from metatrain.measures import AUC, BINS, CLASSES, ECE, NUMBERS, by_class, reliability
from metatrain.metrics import ACCURACY, accuracy, mean_squared_error
from metatrain.models import MLP
from metatrain.problems.environment import Rollout
from metatrain.problems.episodes import Played
from metatrain.start import prepare
from metatrain.tasks import Bandit
from metatrain.tasks.bandit import Arms, pseudo_regret

EXACT = {"rel": 1e-9, "abs": 1e-12}
SHARES = {"precision": sklearn.precision_score, "recall": sklearn.recall_score} | {
    "f1": sklearn.f1_score
}


class Episode(NamedTuple):
    query_y: Tensor
    classes: Tensor


def drawn(ways: int, tasks: int = 6, examples: int = 11) -> tuple[Tensor, Tensor]:
    """Logits and labels of some tasks, with classes that are rare, or never predicted."""
    generator = torch.Generator().manual_seed(ways)
    logits = 3 * torch.randn(tasks, examples, ways, generator=generator)
    logits[..., -1] -= 4.0
    labels = torch.randint(ways, (tasks, examples), generator=generator)
    labels[:, :ways] = torch.arange(ways)  # each class has an example
    return logits, labels


def task_of(labels: Tensor) -> Task:
    return Task(labels, labels, labels, labels)


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("ways", [2, 5])
def test_macro_scores_are_scikit_learns_of_each_task(name: str, ways: int) -> None:
    logits, labels = drawn(ways)
    expected = [
        SHARES[name](y, x.argmax(-1), average="macro", zero_division=0)
        for x, y in zip(logits, labels, strict=True)
    ]
    measure = CLASSES[f"macro_{name}"]
    pooled = measure.pool(logits, task_of(labels))
    assert pooled.tolist() == pytest.approx(expected, **EXACT)
    assert measure.value is not None
    assert measure.value(pooled) == pytest.approx(np.mean(expected), **EXACT)


def test_few_classes_have_a_confusion_matrix_and_scores_of_their_own() -> None:
    """Of the data set's classes, whichever episodes they are in."""
    logits, labels = drawn(3, tasks=8)
    generator = torch.Generator().manual_seed(0)
    classes = torch.stack([4 * torch.randperm(6, generator=generator)[:3] for _ in range(8)])
    measure = by_class(lambda turned: "abcdef"[turned // 4])
    pooled = measure.pool(logits, Episode(labels, classes))
    assert pooled.shape == (8, 3, 4)  # no prediction is kept
    assert measure.detail is not None
    found = measure.detail(pooled)
    true, said = classes.gather(1, labels).flatten(), classes.gather(1, logits.argmax(-1)).flatten()
    assert found["confusion"] == sklearn.confusion_matrix(true, said).tolist()
    shares = sklearn.precision_recall_fscore_support(true, said, zero_division=0)
    assert [row["name"] for row in found["classes"]] == ["abcdef"[c // 4] for c in true.unique()]
    for key, expected in zip(("precision", "recall", "f1", "examples"), shares, strict=True):
        assert [row[key] for row in found["classes"]] == pytest.approx(list(expected), **EXACT)
    many = pooled.clone()
    many[..., 0] = torch.arange(24).view(8, 3)
    assert measure.detail(many) == {}  # nobody reads a matrix of 24 classes


def test_the_area_under_the_curve_is_scikit_learns_of_each_task() -> None:
    logits, labels = drawn(2, examples=20)
    logits = logits.round()  # with ties
    margin = logits[..., 1] - logits[..., 0]
    expected = [sklearn.roc_auc_score(y, x) for x, y in zip(margin, labels, strict=True)]
    assert AUC.pool(logits, task_of(labels)).tolist() == pytest.approx(expected, **EXACT)
    alone = AUC.pool(logits, task_of(torch.zeros_like(labels)))
    assert alone.isnan().all()


def test_a_loss_keeps_its_type_where_the_same_number_is_scored_with_more_digits() -> None:
    prepared = prepare(config(SINUSOID).recipe())
    problem, setting = prepared.problems[Purpose("score")], prepared.setting("score")
    task = setting.family.sample(torch.Generator().manual_seed(0), 2, "test")
    start = {name: p.expand(2, *p.shape) for name, p in prepared.meta.model.items()}
    with torch.no_grad():  # as some algorithms weigh tasks by it
        found = problem.query(start, task, context())
    assert (found["loss"].dtype, found["mse"].dtype) == (torch.float32, torch.float64)
    assert torch.equal(found["loss"], found["mse"].float())


def test_an_accuracy_is_scikit_learns() -> None:
    logits, labels = drawn(5, examples=7)
    with torch.no_grad():
        found = float(accuracy(logits, labels).mean())
    said, true = logits.argmax(-1).flatten().numpy(), labels.flatten().numpy()
    assert found == pytest.approx(sklearn.accuracy_score(true, said), **EXACT)


@pytest.mark.parametrize("outputs", [1, 2])
def test_errors_of_numbers_are_scikit_learns_of_all_examples(outputs: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    target = 100 + 3 * torch.randn(7, 9, outputs, generator=generator)
    target += 10 * torch.randn(7, 1, 1, generator=generator)  # tasks differ
    predicted = target + torch.randn(target.shape, generator=generator)
    true, said = (x.flatten(0, 1).double().numpy() for x in (target, predicted))
    for name, reference in (("mae", sklearn.mean_absolute_error), ("r2", sklearn.r2_score)):
        measure = NUMBERS[name]
        assert measure.value is not None
        found = measure.value(measure.pool(predicted, task_of(target)))
        assert found == pytest.approx(reference(true, said), **EXACT)
    with torch.no_grad():  # as an evaluation measures
        squared = mean_squared_error(predicted, target).mean()
    assert float(squared) == pytest.approx(sklearn.mean_squared_error(true, said), **EXACT)
    same = torch.ones(2, 3, 1)
    r2 = NUMBERS["r2"]
    assert r2.value is not None
    for error in (0.0, 1.0):  # of targets that are all equal
        found = r2.value(r2.pool(same + error, task_of(same)))
        assert found == sklearn.r2_score(torch.ones(6), torch.ones(6) + error)


def test_the_calibration_error_is_of_all_examples_together_and_not_a_mean_over_tasks() -> None:
    """Guo et al. 2017, equation 3, from its words."""
    logits, labels = drawn(5, examples=10)
    tasks = task_of(labels)
    confidences, predicted = logits.double().softmax(-1).flatten(0, 1).max(-1)
    right = (predicted == labels.flatten()).double()
    expected, rows = 0.0, []
    for m in range(BINS):
        inside = (confidences >= m / BINS) & (confidences < (m + 1) / BINS)
        if inside.any():
            shares = confidences[inside].mean().item(), right[inside].mean().item()
            expected += inside.double().mean().item() * abs(shares[0] - shares[1])
            rows.append((*shares, int(inside.sum())))
    bins = ECE.pool(logits, tasks)
    assert bins.shape == (6, BINS, 3)
    assert ECE.value is not None
    assert ECE.value(bins) == pytest.approx(expected, **EXACT)
    assert ECE.value(bins) != pytest.approx(sum(ECE.value(b[None]) for b in bins) / 6, rel=0.01)
    found = [tuple(row.values()) for row in reliability(bins)["reliability"]]
    assert np.array(found) == pytest.approx(np.array(rows), **EXACT)
    certain = torch.eye(5)[labels] * 1e4  # the largest confidence is in the last bin
    assert ECE.value(ECE.pool(certain, tasks)) == 0.0
    assert ECE.value(ECE.pool(-certain, tasks)) == pytest.approx(0.25)  # four classes, all wrong


def test_regret_is_what_the_best_arm_would_have_paid_besides() -> None:
    """Two trials of two pulls of arms that pay 0.2 and 0.7: one wrong pull, then none."""
    arms = torch.eye(2)
    actions = torch.stack([arms[[0, 1]], arms[[1, 1]]])[None]
    nothing = torch.zeros(1, 2, 2)
    played = Played(Rollout(nothing[..., None], actions, nothing, nothing), nothing, nothing)
    assert pseudo_regret(played, Arms(torch.tensor([[0.2, 0.7]]))).item() == pytest.approx(0.25)
    family = Bandit(arms=3, pulls=4, episodes=50)
    problem = family.bind(MLP(hidden=()), ("none",), "batched")
    task = family.sample(torch.Generator().manual_seed(0), 20, "test")
    params = {
        name: torch.zeros(20, *p.shape) for name, p in problem.init(torch.Generator()).items()
    }
    played = problem.predict(params, task, context())
    regret = problem.measures["regret"].pool(played, task)
    best, random = (family.baselines(task)[name] for name in ("best_arm", "random"))
    assert regret.mean().item() == pytest.approx((best - random).mean().item(), rel=0.1)


def test_measures_leave_diverged_tasks_out() -> None:
    bins = torch.zeros(3, BINS, 3)
    bins[:, 14] = torch.tensor([[1.0, 1.0, 0.9], [1.0, 0.0, 1.0], [1.0, 1.0, 0.9]])
    curve = torch.tensor([[0.5, 1.0], [0.5, math.nan], [0.5, 1.0]])
    parts = [Scores([0, 1], {"none": {"accuracy": curve}}, {}, {"none": {"ece": bins}})]
    found = summarise(parts, ACCURACY, {"ece": ECE}, "none", "")
    assert found.measures == {"ece": pytest.approx(0.1)}
    assert [row["examples"] for row in found.details["reliability"]] == [2]
    lost = [parts[0]._replace(curves={"none": {"accuracy": curve * math.nan}})]
    found = summarise(lost, ACCURACY, {"ece": ECE}, "none", "")
    assert math.isnan(found.measures["ece"])
    assert not found.details


def test_an_evaluation_measures_what_its_episodes_allow() -> None:
    """The area under the curve with two ways; a matrix if there are few classes."""
    recipe = config(GLYPHS, evaluation={"tasks": 4, "family": {"ways": 5, "queries": 2}}).recipe()
    prepared = prepare(recipe)
    pool = LocalPool(prepared, choose_plan(prepared, 0, 1)[0])
    pool.publish(Snapshot(0, prepared.meta))
    (score,) = evaluate_for(prepared, Requests(pool), Purpose("score"), 0)
    assert score.measures.keys() == {*CLASSES, "ece"}
    # Each class has as many query images as any other.
    assert score.measures["macro_recall"] == pytest.approx(score.mean, rel=1e-6)
    names = [row["name"] for row in score.details["classes"]]
    assert 5 <= len(names) == len(set(names)) == len(score.details["confusion"])
    assert sum(map(sum, score.details["confusion"])) == 4 * 5 * 2
    two = config(GLYPHS, family__ways=2).recipe()
    assert "auc" in prepare(two).problems[Purpose("score")].measures


@pytest.mark.parametrize("case", ["maml-conv4", "sinusoid", "rl2"])
def test_what_is_kept_of_a_task_grows_neither_with_its_steps_nor_with_its_examples(
    case: str,
) -> None:
    """600 tasks of 1,000 queries are no more than 600 of one."""

    def kept(more: dict[str, int], steps: int) -> list[torch.Size]:
        algorithm = {} if case == "rl2" else {"inner_steps": steps}
        changed = {"tasks": 2, "family": more, "algorithm": algorithm}
        recipe = config(CASES[case], evaluation=changed).recipe()
        worker = Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
        worker.load(0, worker.layout.flatten(prepare(recipe).meta))
        found, _ = worker.compute(Ticket("score", "test", 0, 0))
        assert isinstance(found, Scores)
        return [p.shape for pooled in found.pooled.values() for p in pooled.values()]

    more = {"episodes": 9} if case == "rl2" else {"queries": 9}
    few = kept({}, 1)
    assert few == kept(more, 3)
    assert all(shape[0] == 2 and shape.numel() < 200 for shape in few)
