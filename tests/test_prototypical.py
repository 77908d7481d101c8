"""Prototypical networks: the paper's equations, whatever the order of classes and examples, with
any number of ways.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, GLYPHS, config, context, drawn_images, exact, images
from torch.func import functional_call

import metatrain
from cluster import run
from metatrain import core, schema
from metatrain.algorithms import Prototypical, Recurrent
from metatrain.core import Context, InputError, Meta, Norm, Params, Task, Ticket
from metatrain.metrics import cross_entropy
from metatrain.models import MLP, Conv4, heads
from metatrain.problems.supervised import Supervised, part
from metatrain.tasks import open_data

WAYS, SHOTS = 3, 2
LINEAR = heads.Linear()


def supervised(
    norm: Norm = "transductive", path: core.ComputePath = "reference", head: heads.Head = LINEAR
) -> Supervised:
    return images(Conv4(filters=4, head=head), path, WAYS, norm)


def tasks() -> Task:
    return drawn_images(2, WAYS, SHOTS)


def start(problem: Supervised) -> Meta:
    return exact(Prototypical().init(problem, torch.Generator().manual_seed(0)))


def scoring() -> Context:
    return Context(Ticket("score", "test", 0, 0), torch.Generator())


def predictions(problem: Supervised, meta: Meta, task: Task) -> torch.Tensor:
    *_, phi = Prototypical().adapt(problem, meta, task, scoring())
    return problem.predict(phi, task, context(work="score"))


def features(problem: Supervised, model: Params, x: torch.Tensor) -> torch.Tensor:
    return functional_call(problem.module.get_submodule("body"), part(model, "body."), (x,))


@pytest.mark.parametrize("path", ["reference", "batched"])
@pytest.mark.parametrize("head", [LINEAR, heads.Cosine()])
def test_loss_and_gradient_are_the_papers_equations(
    head: heads.Head, path: core.ComputePath
) -> None:
    problem, task = supervised(path=path, head=head), tasks()
    meta = start(problem)
    update = Prototypical().update(problem, meta, task, context())
    leaves = {name: p.clone().requires_grad_() for name, p in meta.model.items()}
    losses = []
    for t in range(2):
        support, query = (features(problem, leaves, x[t]) for x in (task.support_x, task.query_x))
        c = torch.stack([support[task.support_y[t] == k].mean(0) for k in range(WAYS)])
        if head is LINEAR:
            logits = -(query[:, None] - c).square().sum(-1)
        else:
            logits = leaves["head.scale"] * F.cosine_similarity(query[:, None], c, dim=-1)
        losses.append(F.cross_entropy(logits, task.query_y[t]))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert update.metrics["loss_after"] == pytest.approx(expected.item(), rel=1e-12)
    assert update.metrics["accuracy_before"] == pytest.approx(1 / WAYS)
    for name, leaf in leaves.items():
        torch.testing.assert_close(update.direction.model[name], leaf.grad, rtol=1e-9, atol=1e-12)


def test_prototypes_of_classes_of_unequal_size_by_hand() -> None:
    problem = Supervised(
        model=MLP(hidden=()),
        inputs=(2,),
        outputs=2,
        loss=cross_entropy,
        metrics={},
        norm=("none",),
        path="batched",
        classes=True,
    )
    x = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [2.0, 0.0], [4.0, 0.0]]])
    task = Task(x, torch.tensor([[0, 1, 0, 0]]), x, torch.tensor([[0, 1, 0, 0]]))
    meta = Prototypical().init(problem, torch.Generator())
    before, after = Prototypical().adapt(problem, meta, task, context())
    assert after["head.weight"].tolist() == [[[4.0, 0.0], [2.0, 6.0]]]  # twice the prototypes
    assert after["head.bias"].tolist() == [[-4.0, -10.0]]  # less the squares of their norms
    assert not any(before[name].any() for name in ("head.weight", "head.bias"))


@pytest.mark.parametrize("norm", ["transductive", "support", "running"])
def test_predictions_do_not_depend_on_the_order_of_classes_or_of_support_examples(
    norm: Norm,
) -> None:
    problem, task = supervised(norm), tasks()
    meta = start(problem)
    expected = predictions(problem, meta, task)
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(2))
    shuffled = task._replace(support_x=task.support_x[:, order], support_y=task.support_y[:, order])
    torch.testing.assert_close(predictions(problem, meta, shuffled), expected, rtol=1e-9, atol=1e-9)
    names = torch.tensor([2, 0, 1])
    renamed = task._replace(support_y=names[task.support_y])
    torch.testing.assert_close(
        predictions(problem, meta, renamed)[..., names], expected, rtol=1e-9, atol=1e-9
    )


def test_running_statistics_are_moving_averages_of_what_training_saw() -> None:
    problem, task = supervised("running"), tasks()
    meta = start(problem)
    update = Prototypical().update(problem, meta, task, context())
    weight = meta.model["body.0.conv.weight"]
    seen = [
        F.conv2d(torch.cat([task.support_x[t], task.query_x[t]]), weight, padding=1)
        for t in range(2)
    ]
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variance = torch.stack([x.var((0, 2, 3), correction=0) for x in seen]).mean(0)
    torch.testing.assert_close(update.direction.state["body.0.norm.mean"], 0.1 * mean)
    torch.testing.assert_close(update.direction.state["body.0.norm.variance"], 0.9 + 0.1 * variance)
    transductive = Prototypical().update(supervised(), start(supervised()), task, context())
    assert (
        update.metrics == transductive.metrics
    )  # training itself normalises with the batch's statistics


def test_with_running_statistics_each_prediction_stands_for_itself() -> None:
    problem, task = supervised("running"), tasks()
    meta = start(problem)
    alone = predictions(problem, meta, task._replace(query_x=task.query_x[:, 2:3]))
    torch.testing.assert_close(
        predictions(problem, meta, task)[:, 2:3], alone, rtol=1e-12, atol=1e-12
    )
    moved = meta._replace(state={name: p + 0.5 for name, p in meta.state.items()})
    assert (predictions(problem, moved, task) - predictions(problem, meta, task)).abs().max() > 1e-3


def test_a_run_is_tested_on_other_ways_than_it_is_trained_on_and_adapts_to_any(
    tmp_path: Path,
) -> None:
    folder, (score,) = run.train(config(CASES["prototypical"], output=str(tmp_path / "run")))
    tested, trained = score.protocol.split("; trained")
    assert "3-way 1-shot" in tested
    assert "bn=running" in tested
    assert "5-way 1-shot" in trained
    learned = metatrain.load(folder)
    assert any(
        name.endswith("norm.mean") and p.abs().max() > 0 for name, p in learned.meta.state.items()
    )
    images = open_data("glyphs").images
    for ways in (2, 7):
        adapted = learned.adapt(images[: 20 * ways : 20], list(range(ways)))
        assert adapted.predict(images[1:2]).probabilities.shape == (1, ways)


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    net = Conv4(filters=4, head=heads.Memory(hidden=4))
    bound = config(GLYPHS).family.bind(net, ("transductive",), "reference")
    with pytest.raises(
        InputError, match=r"this algorithm computes head\.weight, and the network has none"
    ):
        Prototypical().init(bound, torch.Generator())
    with pytest.raises(InputError, match="recurrent needs a network with a memory"):
        Recurrent().init(supervised(), torch.Generator())
    with pytest.raises(InputError, match="'running' adapts differently"):
        config(GLYPHS).family.bind(Conv4(), ("transductive", "running"), "reference")
    for probe in ("maml-navigation", "sinusoid"):
        settings = config(
            CASES[probe], algorithm={"name": "prototypical"}, output=str(tmp_path / "run")
        )
        with pytest.raises(
            InputError, match="this algorithm tells classes apart, and these tasks have none"
        ):
            run.train(settings)
    assert not (tmp_path / "run").exists()


def test_statistics_that_nobody_tracked_are_not_used(tmp_path: Path) -> None:
    """They would be a mean of 0 and a variance of 1, and a prediction like any other."""
    settings = config(
        GLYPHS, outer__steps=2, validation__every_steps=0, output=str(tmp_path / "run")
    )
    folder, _ = run.train(settings)
    images = open_data("glyphs").images[:100:20]
    with pytest.raises(
        InputError, match="no moving averages were learned: train with norm: running"
    ):
        metatrain.load(folder).adapt(images, list(range(5)), norm="running").predict(images)
    with pytest.raises(InputError, match=r"needs body\.0\.norm\.mean of shape"):
        run.evaluate(str(folder), ["evaluation.norm=running"])


@pytest.mark.parametrize(
    "algorithm", [{"name": "maml", "inner_lr": 0.4}, {"name": "reptile", "inner_lr": 0.001}]
)
def test_every_algorithm_tracks_statistics(algorithm: dict[str, Any], tmp_path: Path) -> None:
    """And leaves them alone in its inner loop."""
    algorithm |= {"inner_steps": 2}
    settings = config(
        GLYPHS, algorithm=algorithm, norm="running", outer__steps=2, output=str(tmp_path / "run")
    )
    settings = schema.override(settings, {"evaluation": {"tasks": 4, "norm": "running"}}, "test")
    folder, (score,) = run.train(settings)
    assert score.norm == "running"
    learned = metatrain.load(folder)
    assert learned.meta.state["body.0.norm.mean"].abs().max() > 0
    assert learned.meta.model.keys().isdisjoint(learned.meta.state)
    adapted = learned.adapt(open_data("glyphs").images[:100:20], list(range(5)))
    assert torch.equal(adapted.after["body.0.norm.mean"][0], learned.meta.state["body.0.norm.mean"])
    assert not torch.equal(adapted.after["head.weight"], adapted.before["head.weight"])
