"""Baselines of an evaluation: measured on its tasks, as their definitions say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import GLYPHS, SINUSOID, config

from cluster import run
from cluster.baselines import as_metrics
from cluster.pretraining.run import pretrain
from metatrain import baselines, bundle
from metatrain.core import InputError, Params, Purpose, Setting, Task, count, generator_for
from metatrain.evaluate import Score
from metatrain.start import prepare
from metatrain.weights import weights_at

TASKS = {"tasks": 6, "tasks_per_ticket": 4}
KEYS = {"steps": 3, "examples_per_step": 10, "lr": 0.01}
CURVES: dict[str, Any] = SINUSOID | {
    "evaluation": TASKS,
    "validation": {"tasks": 5},
    "pretraining": KEYS,
}
IMAGES: dict[str, Any] = GLYPHS | {
    "model": GLYPHS["model"] | {"filters": 2},
    "algorithm": {"name": "prototypical"},
    "evaluation": TASKS | {"family": {"ways": 3, "shots": 2, "queries": 4}},
    "validation": {"tasks": 5},
    "pretraining": KEYS,
}


def tasks_of(setting: Setting) -> list[Task]:
    """The setting's tasks, one by one."""
    chunks = [
        setting.family.sample(
            generator_for(setting.seed, ticket, "tasks"),
            min(setting.tasks_per_ticket, setting.tasks - i * setting.tasks_per_ticket),
            setting.split,
        )
        for i, ticket in enumerate(setting.tickets())
    ]
    return [type(task)(*(leaf[t] for leaf in task)) for task in chunks for t in range(count(task))]


def errors(start: Params, task: Task, setting: Setting, problem: Any) -> list[float]:
    """The error on the query set before fine-tuning, and after each step of torch's Adam."""
    theta = {name: p.clone().requires_grad_() for name, p in start.items()}
    adam = torch.optim.Adam(theta.values(), lr=0.003)

    def error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (torch.func.functional_call(problem.module, theta, x) - y).square().mean()

    found = [error(task.query_x, task.query_y).item()]
    for _ in range(50):
        adam.zero_grad()
        error(task.support_x, task.support_y).backward()
        adam.step()
        found.append(error(task.query_x, task.query_y).item())
    return found


def trained(base: dict[str, Any], folder: Path) -> tuple[str, str, Score, Score]:
    """A run and a pre-training, and the run's score without and with baselines."""
    run.train(config(base, output=str(folder / "run"), outer__steps=1))
    start = str(pretrain(config(base, output=str(folder / "start"), seed=7)))
    place = str(folder / "run")
    own = ["workers.max=0"]
    (plain,) = run.evaluate(place, own)
    (compared,) = run.evaluate(place, own, baselines=True, pretrained=start)
    return place, start, plain, compared


def test_a_network_is_fine_tuned_from_the_seed_and_from_a_pretraining_for_the_best_steps(
    tmp_path: Path,
) -> None:
    place, start, plain, compared = trained(CURVES, tmp_path)
    prepared = prepare(config(CURVES).recipe())
    validation, score = prepared.setting("validate"), prepared.setting("score")
    problem = prepared.problems[Purpose("score")]
    steps = [*range(11), 20, 30, 40, 50]
    _, pretrained = bundle.load(f"{start}/bundle")
    results, best_steps = {}, {}
    for name, params in (
        ("from_scratch", prepared.meta.model),
        ("pretrained_fine_tuned", pretrained.model),
    ):
        on_val, on_test = (
            torch.tensor([errors(params, task, s, problem) for task in tasks_of(s)]).double()
            for s in (validation, score)
        )
        best = steps[1 + int(on_val.mean(0)[steps[1:]].argmin())]
        results[name], untuned = on_test[:, best], on_test[:, 0]
        best_steps[name] = best
    results["pretrained_not_tuned"], best_steps["pretrained_not_tuned"] = untuned, 0
    assert compared.baselines.keys() == plain.baselines.keys() | results.keys()
    for name, values in results.items():
        assert compared.baselines[name] == pytest.approx(float(values.mean()), rel=1e-4)
        width = 1.96 * float(values.std()) / len(values) ** 0.5
        assert compared.baseline_ci95[name] == pytest.approx(width, rel=1e-3)
    assert compared.baseline_steps == best_steps
    source = weights_at(start).source
    fresh, tuned, untuned_protocol = compared.baseline_protocols.values()
    assert f"inner_steps={best_steps['from_scratch']}, 6 tasks of seed 1; not trained" in fresh
    assert f", from {source}, inner_steps best on 5 val tasks of seed 2; losses" in tuned
    assert "trained 3 steps of 10 examples" in tuned
    assert "no adaptation, 6 tasks of seed 1; trained 3 steps" in untuned_protocol
    lines = compared.baseline_lines()
    gained, width = compared.differences["from_scratch"]
    assert f" tasks=6 difference={gained:.4f} difference_ci95={width:.4f} protocol=" in lines[0]
    assert [line.partition(":")[0] for line in lines] == [f"baseline {name}" for name in results]
    assert compared.mean == plain.mean  # they change nothing of the result
    gain, ci95 = compared.differences["from_scratch"]
    assert gain == pytest.approx(compared.mean - compared.baselines["from_scratch"])
    assert ci95 > 0

    (record,) = json.loads((Path(place) / "baselines.json").read_text())["scores"]
    assert record["differences"]["from_scratch"] == [gain, ci95]
    assert record["baseline_protocols"] == compared.baseline_protocols
    (Path(place) / "mlflow.json").write_text("{}")  # damaged: that takes no score away
    (Path(place) / "result.json").write_text("{}")
    (again,) = run.evaluate(place, ["workers.max=0"], baselines=True)
    assert again.differences["from_scratch"] == (gain, ci95)
    named = as_metrics(compared)
    assert named["test/from_scratch"] == compared.baselines["from_scratch"]
    assert named["test/from_scratch_ci95"] == compared.baseline_ci95["from_scratch"]
    assert named["test/gain_over_from_scratch"] == gain
    assert named["test/gain_over_from_scratch_ci95"] == ci95


@pytest.mark.ray  # takes seconds
def test_the_nearest_centroid_of_pretrained_features_is_a_baseline_of_classes(
    tmp_path: Path,
) -> None:
    _, start, _, compared = trained(IMAGES, tmp_path)
    recipe, meta = bundle.load(f"{start}/bundle")
    setting = recipe.setting("score")
    problem = setting.family.bind(recipe.model, ("transductive",), "reference")
    body = {
        name.removeprefix("body."): p for name, p in meta.model.items() if name.startswith("body.")
    }

    def features(x: torch.Tensor) -> torch.Tensor:
        module = problem.module.get_submodule("body")
        return torch.func.functional_call(module, body, problem.to_float(x))

    right = []
    for task in tasks_of(setting):
        support = features(task.support_x)
        centres = torch.stack([support[task.support_y == k].mean(0) for k in range(3)])
        nearest = torch.cdist(features(task.query_x), centres).argmin(1)
        right.append((nearest == task.query_y).float().mean().item())
    expected = sum(right) / len(right)
    assert compared.baselines["pretrained_nearest_centroid"] == pytest.approx(expected)
    assert {"from_scratch", "pretrained_fine_tuned"} < compared.baselines.keys()


def test_episodes_have_no_such_baselines() -> None:
    walk = {"name": "navigation"}
    recipe = config(
        SINUSOID | {"family": walk, "algorithm": {"name": "maml", "inner_lr": 0.1}}
    ).recipe()
    with pytest.raises(InputError, match="labelled examples"):
        baselines.baselines(recipe)
