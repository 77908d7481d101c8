"""Learned inner rates: exact meta-gradients, MAML where they are equal, a group of their own,
logged and drawn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import GLYPHS, SINUSOID, config, context, drawn_images, exact, images
from gradients import assert_meta_gradient
from test_maml import NETS, start

from cluster import run
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import bundle, schema
from metatrain.algorithms import MAML, MetaSGD
from metatrain.core import InputError, Meta, Ticket, Update
from metatrain.learner import Learner
from metatrain.start import prepare


def rates(algorithm: MetaSGD, problem: Any) -> Meta:
    return exact(algorithm.init(problem, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", ["parameter", "layer_step"])
def test_with_equal_rates_the_gradient_of_the_network_is_that_of_maml(kind: Any) -> None:
    problem, task = images(NETS["reptile"], "reference"), drawn_images(3)
    learned = MetaSGD(
        initial_lr=0.5, inner_steps=2, rates=kind
    )  # 0.5 is the same number in float32
    found = learned.update(problem, rates(learned, problem), task, context())
    expected = MAML(inner_lr=0.5, inner_steps=2).update(problem, start(problem), task, context())
    for name, g in expected.direction.model.items():
        torch.testing.assert_close(found.direction.model[name], g, rtol=1e-12, atol=1e-15)
    assert {k: float(v) for k, v in found.metrics.items()} == pytest.approx(
        {k: float(v) for k, v in expected.metrics.items()}, rel=1e-12
    )


def test_frozen_equal_rates_are_maml_step_by_step() -> None:
    """Five outer steps with an outer rate of 0 for the inner ones: the same bits."""
    maml = config(GLYPHS, algorithm={"name": "maml", "inner_lr": 0.4})
    frozen = config(
        GLYPHS,
        algorithm={"name": "meta_sgd", "initial_lr": 0.4},
        outer__groups={"algorithm.*": {"lr": 0.0}},
    )
    found = []
    for settings in (maml, frozen):
        recipe = settings.recipe()
        worker, learner = (
            Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0]),
            Learner(prepare(recipe).meta, recipe.outer),
        )
        for step in range(5):
            worker.load(step, worker.layout.flatten(learner.meta()))
            update, _ = worker.compute(Ticket("update", "train", step, 0))
            assert isinstance(update, Update)
            learner.apply([update])
        found.append(learner.meta())
    assert all(torch.equal(found[0].model[name], p) for name, p in found[1].model.items())
    assert all(torch.equal(p, torch.full_like(p, 0.4)) for p in found[1].algorithm.values())


@pytest.mark.parametrize("kind", ["parameter", "layer_step"])
def test_the_gradient_of_the_rates_agrees_with_finite_differences(kind: Any) -> None:
    problem, task = images(NETS["maml"], "reference"), drawn_images(3)
    algorithm = MetaSGD(initial_lr=0.4, inner_steps=2, rates=kind)
    meta = rates(algorithm, problem)
    gradient = assert_meta_gradient(algorithm, problem, meta, task, "algorithm")
    assert all(g.abs().max() > 0 for g in gradient.values())


def test_a_rate_for_each_layer_and_step_or_for_each_number() -> None:
    problem = images(NETS["maml"], "reference")
    each = MetaSGD(initial_lr=0.4, adapts=("head.*",)).init(problem, torch.Generator())
    assert {name: p.shape for name, p in each.algorithm.items()} == {
        "rate.head.weight": each.model["head.weight"].shape,
        "rate.head.bias": each.model["head.bias"].shape,
    }
    steps = MetaSGD(initial_lr=0.4, inner_steps=2, rates="layer_step", adapts=("head.*",))
    assert list(steps.init(problem, torch.Generator()).algorithm) == [
        "rate.0.head.weight",
        "rate.1.head.weight",
        "rate.0.head.bias",
        "rate.1.head.bias",
    ]
    meta = rates(steps, problem)
    moved = meta._replace(
        algorithm=meta.algorithm | {"rate.1.head.bias": torch.zeros((), dtype=torch.float64)}
    )
    before, first, second = steps.adapt(problem, moved, drawn_images(3), context())
    assert not torch.equal(before["head.bias"], first["head.bias"])
    assert torch.equal(first["head.bias"], second["head.bias"])


@pytest.mark.usefixtures("pictures")
@pytest.mark.usefixtures("pictures")
def test_rates_have_an_outer_group_are_logged_and_drawn(tmp_path: Path) -> None:
    settings = config(
        SINUSOID,
        algorithm={"name": "meta_sgd", "initial_lr": 0.01},
        outer__groups={"algorithm.*": {"lr": 0.05}},
        output=str(tmp_path / "run"),
    )
    folder, _ = run.train(settings)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    name = "algorithm.rate.head.bias"
    # Adam's first step is its rate, whatever the gradient
    assert abs(rows[0][name] - 0.01) == pytest.approx(0.05, rel=0.01)
    assert rows[-1][name] != rows[0][name]
    assert (folder / "figures" / "learned.png").stat().st_size > 10_000


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_goes_on_with_as_many_rates_as_it_has(steps: int, tmp_path: Path) -> None:
    algorithm = {"name": "meta_sgd", "initial_lr": 0.01, "inner_steps": 2, "rates": "layer_step"}
    settings = config(SINUSOID, algorithm=algorithm, outer__steps=2, output=str(tmp_path / "run"))
    run.train(settings)
    more = schema.override(settings, {"algorithm": algorithm | {"inner_steps": steps}}, "test")
    more = schema.override(more, {"outer": schema.dump(more.outer) | {"steps": 4}}, "test")
    with pytest.raises(
        InputError, match=r"the checkpoint has other parameters than this run \(algorithm\.rate\."
    ):
        run.train(more, resume="auto")


def test_anil_leaves_the_body_and_boil_the_head_untouched() -> None:
    problem, task = images(NETS["reptile"], "reference"), drawn_images(3)
    meta = start(problem)
    for pattern, other in (("head.*", "body."), ("body.*", "head.")):
        maml = MAML(inner_lr=0.4, inner_steps=3, adapts=(pattern,))
        *_, phi = maml.adapt(problem, meta, task, context())
        for name, p in meta.model.items():
            same = torch.equal(phi[name], p.expand_as(phi[name]))
            assert same == name.startswith(other), name
        direction = maml.update(problem, meta, task, context()).direction.model
        assert all(g.norm() > 0 for g in direction.values())  # all of it is meta-learned


def test_a_parameter_that_the_loss_does_not_depend_on_stays(tmp_path: Path) -> None:
    """Of a network without a memory's cell, what it starts from."""
    head = {"name": "memory", "cell": "none", "hidden": 4}
    model = {"name": "mlp", "hidden": [4], "head": head}
    run.train(config(SINUSOID, model=model, outer__steps=2, output=str(tmp_path / "run")))
    saved = bundle.load(str(tmp_path / "run" / "bundle"))[1].model["head.hidden"]
    assert torch.equal(saved, torch.zeros(4))


def test_a_pattern_that_nothing_matches_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="adapts is empty"):
        run.train(config(SINUSOID, algorithm__adapts=[], output=str(tmp_path / "run")))
    settings = config(SINUSOID, algorithm__adapts=["haed.*"], output=str(tmp_path / "run"))
    with pytest.raises(InputError) as error:
        run.train(settings)
    assert (error.value.what, error.value.got) == ("a pattern of adapts", "haed.*")
    assert "head.weight" in error.value.expected
    assert not (tmp_path / "run").exists()
