"""What a job sends of a recipe or a sweep, and the places that it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from metatrain.core import InputError
from tuning.submission import check_retries, places_read, read

ROOT = Path(__file__).parent.parent


def test_the_places_of_all_evaluations_and_all_trials_are_read(tmp_path: Path) -> None:
    data = {"data": "a/train", "ways": 2}
    recipe = {
        "name": "r",
        "family": {"name": "fewshot", **data},
        "model": {"name": "conv4", "weights": "w.safetensors"},
        "algorithm": {"name": "prototypical"},
        "evaluation": {"family": {"data": "a/score"}},
        "evaluations": {"other": {"family": {"data": "a/other"}}},
        "validation": {"every_steps": 1},
        "outer": {"steps": 2, "tasks_per_step": 1, "tasks_per_ticket": 1, "lr": 0.1},
    }
    sweep = {"name": "s", "recipe": "r.yaml", "space": {"family.data": {"choice": ["a/1", "a/2"]}}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep | {"budget": {"trials": 1}}))
    given = {("model.weights", "w.safetensors")}
    given |= {("family.data", f"a/{name}") for name in ("train", "score", "other")}
    one = read(str(tmp_path / "r.yaml"), [], None)
    assert set(places_read(one.base, one.ranges)) == given
    assert (one.arguments, set(one.files)) == (["train", "recipe.yaml"], {"recipe.yaml"})
    network = read(str(tmp_path / "r.yaml"), [], None, pretrain=True)
    assert (network.name, network.arguments) == ("r-pretraining", ["pretrain", "recipe.yaml"])
    with pytest.raises(InputError, match=r"s\.yaml is a sweep: give a recipe, or leave out"):
        read(str(tmp_path / "s.yaml"), [], None, pretrain=True)
    many = read(str(tmp_path / "s.yaml"), [], None)
    searched = {("family.data", "a/1"), ("family.data", "a/2")}
    assert set(places_read(many.base, many.ranges)) == given | searched
    assert (many.arguments, set(many.files)) == (
        ["tune", "sweep.yaml"],
        {"sweep.yaml", "recipe.yaml"},
    )


@pytest.mark.parametrize("checkpoint", ["", "/checkpoints", "/checkpoints/step-00000002"])
def test_a_resumed_run_has_its_folder_as_output(checkpoint: str) -> None:
    resumed = read(str(ROOT / "recipes" / "demo.yaml"), [], f"runs/a{checkpoint}")
    assert resumed.output == "runs/a"
    assert "output: runs/a\n" in resumed.files["recipe.yaml"]  # also if it starts again


def test_retries_continue_in_the_output_and_refuse_to_start_from_another_run() -> None:
    demo = str(ROOT / "recipes" / "demo.yaml")
    for resume in (None, "auto", "runs/a", "runs/a/checkpoints/step-00000002"):
        check_retries(read(demo, ["output=runs/a"], resume), resume)
    check_retries(read(demo, [], "runs/b"), "runs/b")
    with pytest.raises(InputError) as refused:
        check_retries(read(demo, ["output=runs/a"], "runs/b"), "runs/b")
    assert "which is runs/a, and --resume runs/b starts from another run" in refused.value.what
