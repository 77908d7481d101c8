"""Pre-training: which examples a step has, equal bits whoever computes them, and what it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import GLYPHS, SINUSOID, config
from mlflow.tracking import MlflowClient
from services import command, store

from cluster import recipe_file, run
from cluster.api.listing import summary
from cluster.collector import Interrupted
from cluster.config import Tracking
from cluster.pretraining import run as learning
from cluster.pretraining.run import pretrain
from cluster.tracking.place import place_of
from cluster.tracking.sync import is_pretrained
from metatrain import bundle, pretraining, schema
from metatrain.core import InputError, Params, Update
from metatrain.data.images import ImageStore, Scheme
from metatrain.learner import Diverged, Learner
from metatrain.start import prepare
from metatrain.weights import warm, weights_at

KEYS = {"steps": 6, "examples_per_step": 10, "examples_per_part": 4, "lr": 0.01}
SMALL: dict[str, Any] = GLYPHS | {"model": GLYPHS["model"] | {"filters": 2}, "pretraining": KEYS}
POINTS: dict[str, Any] = SINUSOID | {"pretraining": KEYS}


def supervision(base: dict[str, Any], **changes: Any) -> pretraining.Supervision:
    return pretraining.supervision(prepare(config(base, **changes).recipe()), "reference")


def parameters(task: pretraining.Supervision, **how: Any) -> Params:
    learner = Learner(task.meta, task.outer, task.seed)
    steps = list(pretraining.learn(task, learner, **how))
    assert len(steps) == task.keys.steps
    return {name: p.clone() for name, p in learner.meta().flat().items()}


def same(one: Params, other: Params) -> bool:
    return one.keys() == other.keys() and all(torch.equal(p, other[n]) for n, p in one.items())


def tiny_store(rotations: str) -> ImageStore:
    """Three training classes of 2, 3 and 4 images, each image of one number of its own."""
    images = torch.arange(11, dtype=torch.uint8)[:, None, None, None].repeat(1, 1, 16, 16)
    images[:, 0, 0, 0] = 100  # a corner that a turn moves
    scheme = Scheme(
        name="own",
        classes={"train": [0, 1, 2], "val": [], "test": [3]},
        rotations={"train": rotations, "val": "none", "test": "none"},
    )
    return ImageStore(
        name="tiny",
        images=images,
        class_names=list("abcd"),
        sizes=torch.tensor([2, 3, 4, 2]),
        schemes=[scheme],
        synthetic=True,
    )


def drawn(monkeypatch: pytest.MonkeyPatch, rotations: str) -> tuple[int, list[Any]]:
    """How many classes are told apart, and the (image, turned, label) of two shuffles."""
    store = tiny_store(rotations)
    monkeypatch.setattr("metatrain.tasks.fewshot.open_data", lambda *_: store)
    turns = 4 if rotations == "classes" else 1
    task = supervision(
        SMALL,
        family__ways=2,
        family__data="tiny",
        pretraining={"steps": 2, "examples_per_step": 9 * turns},
    )
    found = []
    for step in range(2):
        x, y = task.draw(step)
        corners = x[:, 0, [0, 0, 15, 15], [0, 15, 15, 0]] == 100
        numbers = x[:, 0, 5, 5], corners.int().argmax(1), y
        found.append(list(zip(*(n.tolist() for n in numbers), strict=True)))
    return task.problem.outputs, found


def test_each_training_image_comes_once_a_shuffle_with_its_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes, (first, second) = drawn(monkeypatch, "none")
    labels = [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert classes == 3
    assert sorted(first) == [(image, 0, label) for image, label in enumerate(labels)]
    assert sorted(second) == sorted(first)
    assert first != second


def test_training_images_are_augmented_by_the_seed_and_the_step_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("metatrain.tasks.fewshot.open_data", lambda *_: tiny_store("none"))
    given = {"family__ways": 2, "family__data": "tiny", "pretraining__examples_per_step": 9}
    plain = supervision(SMALL, **given)
    flipped, again = (
        supervision(SMALL, **given, family__augment={"flip": True, "images": "query"})
        for _ in range(2)
    )
    (x, y), (mirrored, labels) = plain.draw(0), flipped.draw(0)
    assert torch.equal(y, labels)
    is_flipped = [torch.equal(one.flip(-1), other) for one, other in zip(x, mirrored, strict=True)]
    is_same = [torch.equal(one, other) for one, other in zip(x, mirrored, strict=True)]
    assert any(is_flipped)
    assert any(is_same)
    assert all(one != other for one, other in zip(is_flipped, is_same, strict=True))
    assert torch.equal(again.draw(0)[0], mirrored)


def test_turned_images_are_classes_of_their_own_if_the_tasks_have_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    classes, (first, _) = drawn(monkeypatch, "classes")
    assert classes == 12
    assert len(set(first)) == 36
    assert len({(label, corner) for _, corner, label in first}) == 12


@pytest.mark.parametrize("base", [SMALL, POINTS], ids=["glyphs", "sinusoid"])
def test_the_bits_do_not_depend_on_who_computes_which_part(base: dict[str, Any]) -> None:
    alone, others = supervision(base), supervision(base)

    def exchange(own: Mapping[int, Update]) -> Mapping[int, Update]:
        assert own.keys() == {1}  # of parts 0 to 2
        step = exchange.step  # type: ignore[attr-defined]
        exchange.step += 1  # type: ignore[attr-defined]
        return {part: others.update(learner.meta(), step, part) for part in (2, 0)} | dict(own)

    exchange.step = 0  # type: ignore[attr-defined]
    learner = Learner(others.meta, others.outer, others.seed)
    for _ in pretraining.learn(supervision(base), learner, exchange, rank=1, workers=3):
        pass
    assert same(parameters(alone), learner.meta().flat())


def test_a_step_is_the_gradient_of_the_mean_loss_of_its_examples() -> None:
    task = supervision(POINTS, pretraining=KEYS | {"steps": 1})
    x, y = task.draw(0)
    leaves = {name: p.clone().requires_grad_() for name, p in task.meta.model.items()}
    predicted = torch.func.functional_call(task.problem.module, leaves, x)
    gradients = torch.autograd.grad((predicted - y).square().mean(), list(leaves.values()))
    learner = Learner(task.meta, replace(task.outer, optimizer="SGD", lr=1.0), 0)
    list(pretraining.learn(task, learner))
    for gradient, (name, p) in zip(gradients, leaves.items(), strict=True):
        assert torch.allclose(learner.meta().model[name], p - gradient, atol=1e-6)


@pytest.mark.ray  # takes seconds
def test_a_pretraining_resumes_to_the_same_bits_and_leaves_a_bundle_to_start_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(SMALL, checkpoint={"every_steps": 2}, output=str(tmp_path / "whole"))
    whole = pretrain(given)
    cut = replace(given, output=str(tmp_path / "cut"))
    learned = pretraining.learn

    def interrupted(*args: Any, **more: Any) -> Any:
        for i, applied in enumerate(learned(*args, **more)):
            if i == 3:
                raise Interrupted
            yield applied

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "learn", interrupted)
        with pytest.raises(Interrupted, match="stopped after 3 of 6 steps") as stopped:
            pretrain(cut)
    assert stopped.value.saved
    resumed = pretrain(replace(cut, tracking=Tracking(uri=store(tmp_path))), resume="auto")
    assert same(weights_at(str(whole)).tensors, weights_at(str(resumed)).tensors)

    recorded = MlflowClient(store(tmp_path)).get_run(place_of(str(resumed)).run_id)
    assert recorded.info.status == "FINISHED"
    (data,) = recorded.inputs.dataset_inputs  # it sees no other split
    assert data.tags[0].value == "training"
    note = recorded.data.tags["mlflow.note.content"]
    assert note.startswith("**Pre-training:** trained 6 steps of 10 examples (")
    assert f"metatrain train RECIPE --init {resumed}\n" in note

    lines = (resumed / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    listed = summary(str(resumed))
    assert (listed.name, listed.kind, listed.steps, listed.of) == (
        "glyphs-pretraining",
        "pretraining",
        6,
        6,
    )
    recipe, meta = bundle.load(f"{whole}/bundle")
    assert recipe.pretraining is not None
    assert recipe.pretraining.steps == 6
    start = prepare(recipe).meta
    assert not torch.equal(meta.model["body.0.conv.weight"], start.model["body.0.conv.weight"])
    assert torch.equal(meta.model["head.weight"], start.model["head.weight"])

    (score, *_) = run.evaluate(str(whole), ["evaluation.tasks=8"])
    assert "trained 6 steps of 10 examples" in score.protocol
    assert "all training examples together" in score.protocol

    other = config(
        SMALL, algorithm={"name": "prototypical"}, model__weights=str(whole), seed=5
    ).recipe()
    warmed = warm(other, prepare(other).meta).meta
    assert torch.equal(warmed.model["body.0.conv.weight"], meta.model["body.0.conv.weight"])


def test_a_regression_keeps_its_head_and_no_key_of_it_changes_meta_training(
    tmp_path: Path,
) -> None:
    folder = pretrain(config(POINTS, output=str(tmp_path / "pre")))
    _, meta = bundle.load(f"{folder}/bundle")
    start = prepare(config(POINTS).recipe()).meta
    assert not any(torch.equal(p, start.model[name]) for name, p in meta.model.items())

    results = [
        run.train(config(base, outer__steps=2, output=str(tmp_path / name)))[0]
        for name, base in (("with", POINTS), ("without", SINUSOID))
    ]
    with pytest.raises(InputError, match="is of a pre-training: start from it with --init"):
        run.train(config(POINTS, output=str(tmp_path / "no")), resume=str(folder))
    with pytest.raises(InputError, match="is of a run and no pre-training"):
        pretrain(config(POINTS, output=str(tmp_path / "no")), resume=str(results[0]))
    assert is_pretrained(str(folder), 6)
    assert not is_pretrained(str(folder), 7)  # resumed, and killed
    assert not is_pretrained(str(tmp_path), 6)
    for given, ways in (
        ("train", ["train RECIPE --init", "pretrain", "train"]),
        ("pretrain", ["pretrain", "pretrain"]),
    ):
        with pytest.raises(InputError, match="is a pre-training's folder: continue it") as refused:
            recipe_file.read(str(folder), [], given)
        for way in ways:
            assert f"metatrain {way} " in str(refused.value.remedy)
    with pytest.raises(InputError, match="is a run's folder") as refused:
        recipe_file.read(str(results[0]), [], "pretrain")
    assert f"metatrain pretrain {results[0]}/config.yaml --set" in str(refused.value.remedy)

    with_keys, without = (weights_at(str(folder)).tensors for folder in results)
    assert same(with_keys, without)
    recipe, _ = bundle.load(f"{results[0]}/bundle")
    assert recipe.pretraining is None  # its parameters are meta-learned


def test_a_pretraining_whose_steps_change_nothing_any_more_has_no_result() -> None:
    task = supervision(POINTS, pretraining=KEYS | {"lr": 1e30, "steps": 20})
    learner = Learner(task.meta, task.outer, task.seed)
    with pytest.raises(Diverged, match=r"lower pretraining\.lr"):
        list(pretraining.learn(task, learner))
    assert learner.version <= 5


def test_what_cannot_be_pretrained_is_refused() -> None:
    walk = SINUSOID | {
        "family": {"name": "navigation"},
        "algorithm": {"name": "maml", "inner_lr": 0.1},
    }
    with pytest.raises(InputError, match="labelled examples"):
        supervision(walk)
    with pytest.raises(InputError, match="2000 ways were asked for"):
        pretrain(config(SMALL, family__ways=2000))
    with pytest.raises(InputError) as refused:  # they would not be used
        supervision(POINTS, model__weights="elsewhere")
    assert (refused.value.what, refused.value.got) == ("model.weights", "elsewhere")


def test_the_command_names_the_folder_and_what_to_do_with_it_or_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(schema.as_yaml(config(POINTS, checkpoint={"every_steps": 2})))
    words = ("pretrain", "recipe.yaml", "--set", "output=out")
    with monkeypatch.context() as patch:
        patch.setattr(learning, "interruptible", lambda: nullcontext(lambda: True))
        code, _, err = command(*words)
    assert code == 130
    assert "stopped after 1 of 6 steps\nto continue: " in err
    assert err.endswith("--resume auto\n")
    assert command(*words).returncode == 2  # the folder holds it
    code, out, _ = command(*words, "--resume", "auto")
    assert code == 0
    assert out.startswith("folder: out\nnext:\n")
    assert "evaluate RUN --baselines --pretrained out\n" in out
