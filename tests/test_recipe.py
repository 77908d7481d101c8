"""Recipes: all of them load, nothing unknown is accepted, and what is wrong is said in one
sentence.
"""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from cases import GLYPHS, REPTILE, SINUSOID, config

from cluster.config import RunConfig
from metatrain import schema
from metatrain.algorithms import BuiltIn
from metatrain.core import PGD, InputError
from metatrain.models import heads
from metatrain.recipe import Recipe
from metatrain.start import prepare

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_is_named_like_its_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent.parent)  # where own.yaml finds its classes
    assert schema.load(RunConfig, path).name == path.stem


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if p.stem.endswith("_short")], ids=lambda path: path.stem
)
def test_a_short_recipe_differs_from_its_full_one_only_in_training(path: Path) -> None:
    short = schema.load(RunConfig, path)
    full = schema.load(RunConfig, path.with_name(path.name.replace("_short", "")))
    assert short.outer.steps < full.outer.steps
    assert short.family == full.family
    assert short.evaluation.norm == full.evaluation.norm
    assert short.evaluation.algorithm == full.evaluation.algorithm


def test_every_algorithm_has_a_recipe() -> None:
    named = {yaml.safe_load(path.read_text())["algorithm"]["name"] for path in RECIPES}
    assert {kind.name for kind in get_args(BuiltIn)} <= named


@pytest.mark.parametrize("base", [SINUSOID, GLYPHS, REPTILE])
def test_dump_then_parse_is_identity(base: dict[str, Any]) -> None:
    full = config(base)
    text = yaml.safe_dump(schema.dump(full))
    assert schema.parse(RunConfig, yaml.safe_load(text), "dumped") == full
    assert schema.parse(Recipe, schema.dump(full.recipe()), "dumped") == full.recipe()


def test_flatten_names_the_keys_that_put_sets() -> None:
    tree = schema.dump(config(SINUSOID))
    flat = dict(schema.flatten(tree))
    assert flat["algorithm.inner_lr"] == 0.01
    again: dict[str, Any] = {}
    for key, value in flat.items():
        schema.put(again, key, value)
    assert again == tree


def test_overrides_are_yaml_and_reach_any_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(SINUSOID))
    sets = [
        "algorithm.inner_lr=1e-3",
        "workers.max=3",
        "evaluation.family.shots=7",
        "model.hidden=[8, 8, 8]",
    ]
    found = schema.load(RunConfig, path, sets)
    assert found.algorithm.inner_lr == 0.001  # YAML reads 1e-3 as text
    assert found.workers.max == 3
    assert found.setting("score").family.shots == 7
    assert found.model.hidden == (8, 8, 8)
    path.write_text(yaml.safe_dump(schema.dump(found)))  # where evaluation.attack is null
    found = schema.load(RunConfig, path, ["evaluation.attack.name=pgd"])
    assert found.evaluation.attack == PGD()


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "algorithm.inner_rl",
            0.1,
            "algorithm.inner_rl is not a key of a recipe: did you mean 'inner_lr'?",
        ),
        ("algorithm.inner_lr", "nan", "algorithm.inner_lr is nan, expected a finite number"),
        ("outer.lr", -1, "outer.lr is -1.0, expected at least 0"),
        ("outer.lr", 1e38, "outer.lr is 1e+38, expected at most 1e+30"),
        ("outer.clip_norm", -1, "outer.clip_norm is -1.0, expected above 0"),
        ("outer.clip_value", 0, "outer.clip_value is 0.0, expected above 0"),
        ("outer.tasks_per_step", 10**12, "outer.tasks_per_step is 1000000000000, expected at most"),
        ("evaluation.tasks", 10**12, "evaluation.tasks is 1000000000000, expected at most 100,000"),
        ("validation.tasks", -3, "validation.tasks is -3, expected at least 1"),
        ("model", {"name": "conv4", "filters": 0}, "model.filters is 0, expected at least 1"),
        ("model.hidden", [-1], "model.hidden is [-1], expected numbers from 1 to 8,192"),
        ("model.hidden", [8192] * 9, "model.hidden is [8192, 8192"),
        ("model.init_std", -1, "model.init_std is -1.0, expected at least 1e-06"),
        ("workers.threads", 10**9, "workers.threads is 1000000000, expected at most 512"),
        ("workers.cpus", 1.5, "workers.cpus is 1.5, expected a part of one, or a whole number"),
        ("name", "../x", "name is '../x', expected one that a folder can have"),
        ("sed", 1, "sed is not a key of a recipe: did you mean 'seed'?"),
        ("outer.step", 1, "outer.step is not a key of a recipe: did you mean 'steps'?"),
        (
            "algorithm.name",
            "mamml",
            "algorithm.name is 'mamml', expected one of "
            f"{', '.join(kind.name for kind in get_args(BuiltIn))}, "
            "or a class of yours as \"package.module:Class\": did you mean 'maml'?",
        ),
        ("family.shots", "five", "family.shots is 'five', expected a valid integer"),
        ("family.shots", 0, "family.shots is 0, expected at least 1"),
        (
            "norm",
            "batch",
            "norm is 'batch', expected 'transductive', 'support', 'support+1', 'running' or 'none'",
        ),
        ("outer", 3, "outer is 3, expected keys with their values"),
        ("evaluations", {"x": {"task": 4}}, "evaluations.x.task is not a key of a recipe: did you"),
        ("evaluations", {"x": {"tasks": 1}}, "evaluations.x.tasks is 1, expected at least 2"),
        ("evaluations", {"x": 4}, "evaluations.x is 4, expected keys with their values"),
        ("outer.groups", {"a.*": 4}, "outer.groups.a.* is 4, expected keys with their values"),
        ("family.standalone", 1, "family.standalone is not a key of a recipe: choose one of name,"),
        (
            "model",
            {"name": "conv4", "classifier": "cosine"},
            "model.classifier is no longer a key of a recipe: leave it out if it is linear, or",
        ),
        ("model", {"name": "rnn"}, "model.name rnn is no longer there: write {name: mlp, head:"),
        ("model.head", "linear", "model.head is 'linear', expected keys, such as {name: linear}"),
        (
            "outer.optimizer",
            "Adm",
            "outer.optimizer is 'Adm', expected a class of torch.optim such as Adam or SGD",
        ),
        (
            "model",
            {"name": "mlp", "head": {"name": "lineal"}},
            "model.head.name is 'lineal', expected one of "
            f"{', '.join(kind.name for kind in get_args(get_args(heads.Head)[0]))}",
        ),
        (
            "model",
            {"name": "mlp", "head": {"name": "memory", "hiden": 3}},
            "model.head.hiden is not a key of a recipe: did you mean 'hidden'?",
        ),
        ("evaluation.tasks", 1, "evaluation.tasks is 1, expected at least 2"),
        ("workers.min", 5, "workers.min is 5, expected 1 to max, which is 2"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(key: str, value: Any, sentence: str) -> None:
    tree = {name: dict(v) if isinstance(v, dict) else v for name, v in SINUSOID.items()} | {
        "workers": {}
    }
    schema.put(tree, key, value)
    with pytest.raises(InputError) as caught:
        schema.parse(RunConfig, tree, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml: {sentence}")
    assert "\n" not in str(caught.value)


def test_each_purpose_has_tasks_of_its_own() -> None:
    recipe = config(
        SINUSOID,
        seed=3,
        evaluation__seed=4,
        validation={"tasks": 12, "seed": 5},
        evaluations={"again": {"seed": 6, "split": "val", "tasks": 8, "tasks_per_ticket": 4}},
    ).recipe()
    drawn = {
        (s.purpose.work, s.purpose.variant): (s.split, s.seed, s.tasks, s.tasks_per_ticket)
        for s in recipe.settings().values()
    }
    assert drawn == {
        ("update", ""): ("train", 3, 10, 3),
        ("validate", ""): ("val", 5, 12, 7),
        ("score", ""): ("test", 4, 30, 7),
        ("score", "again"): ("val", 6, 8, 4),
    }
    assert all(purpose == setting.purpose for purpose, setting in recipe.settings().items())


def test_overrides_of_the_evaluation_are_validated_too() -> None:
    with pytest.raises(InputError) as error:
        config(SINUSOID, evaluation__algorithm={"inner_stepz": 3}).setting("score")
    assert error.value.what == "evaluation.algorithm: inner_stepz is not a key of maml"
    assert error.value.remedy == "did you mean 'inner_steps'?"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1, 2]", "has no keys"),
        ("a: [", "is not YAML"),
        ("a: 1\na: 2", "duplicate key 'a'"),
        ("name: x", "family is missing"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=sentence):
        schema.load(RunConfig, path)
    with pytest.raises(InputError, match=r"cannot read .*absent\.yaml"):
        schema.load(RunConfig, tmp_path / "absent.yaml")


def test_what_a_notebook_cell_may_end_in_is_one_line() -> None:
    recipe = config(SINUSOID).recipe()
    assert repr(recipe) == "<Recipe sinusoid: sinusoid, mlp, maml, 20 outer steps>"
    settings = config(SINUSOID, name="<b>")
    assert repr(settings).startswith("<RunConfig <b>: ")
    assert "name: &lt;b&gt;" in settings._repr_html_()
    meta = prepare(recipe).meta
    assert repr(meta) == "<Meta: model 321 numbers>"
    task = recipe.family.sample(torch.Generator().manual_seed(0), 3, "train")
    assert (
        repr(task)
        == "<Task: support_x [3, 5, 1], support_y [3, 5, 1], query_x [3, 5, 1], query_y [3, 5, 1]>"
    )


def test_recipes_are_written_as_people_type_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SINUSOID | {"name": "曲线"}), encoding="utf-8")
    found = schema.load(RunConfig, path)
    assert "name: 曲线\n" in schema.as_yaml(found)
    assert "name: 曲线   " in schema.explain(found, schema.origins(path, []))


def test_explain_says_where_each_value_comes_from_and_what_its_key_means(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(SINUSOID))
    sets = ["algorithm.inner_lr=0.2", "evaluation.family.shots=3"]
    found = schema.load(RunConfig, path, sets)
    sources = schema.origins(path, sets, "run")
    brief = schema.explain(found, sources).splitlines()
    values = {line.split("#")[0].strip(): line.split("# ")[1] for line in brief if "#" in line}
    assert values["inner_lr: 0.2"] == values["shots: 3"] == "--set"
    assert values["name: sinusoid"] == "run"
    assert values["max_staleness: 0"] == "default"
    long = schema.explain(found, sources, meanings=True)
    assert yaml.safe_load(long) == schema.dump(found)
    lines = long.splitlines()
    assert [line for line in lines if line in brief] == brief
    at = next(i for i, line in enumerate(lines) if "tasks_per_step" in line and "#" in line[30:])
    assert lines[at - 1] == "  # Tasks of an outer step. 1 to 100,000."


@dataclass(frozen=True, kw_only=True)
class Base:
    first: int = 1
    """What a subclass keeps."""
    second: int = 2
    """What a subclass says anew."""


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    second: int = 3
    """What it says itself, in more
    than one line."""
    third: int = 4
    fourth: int = 5
    """Not of the third."""


def test_the_docstring_below_a_field_is_its_meaning() -> None:
    assert schema.fields_explained(Derived) == {
        "first": "What a subclass keeps.",
        "second": "What it says itself, in more than one line.",
        "fourth": "Not of the third.",
    }
    assert schema.fields_explained(make_dataclass("Typed", [("x", int)])) == {}
