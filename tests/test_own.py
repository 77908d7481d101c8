"""Families, models and algorithms of one's own run by their names, on Ray workers as well."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import command

from cluster.config import RunConfig
from metatrain import recipe as recipes
from metatrain.core import InputError

RECIPES = Path(__file__).parent.parent / "recipes"
LESS = ("outer.steps=3", "outer.tasks_per_step=4", "validation.tasks=2", "evaluation.tasks=4", "tracking.uri=none")


OTHERS = """
from dataclasses import dataclass
from torch import Tensor, nn

@dataclass(frozen=True, kw_only=True)
class Nameless:
    def module(self, inputs, outputs, feedback):
        return nn.Linear(1, 1)

@dataclass(frozen=True, kw_only=True)
class Odd(Nameless):
    name: str
    weight: Tensor | None = None
"""


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Path]:
    """A folder with a package that is not part of this project."""
    (tmp_path / "mine").mkdir()
    shutil.copy(RECIPES / "own.py", tmp_path / "mine" / "classes.py")
    text = (RECIPES / "own.yaml").read_text().replace("recipes.own:", "mine.classes:")
    (tmp_path / "mine.yaml").write_text(text)
    yield tmp_path
    for name in ("mine", "mine.classes"):
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


def train(folder: Path, *sets: str) -> Any:
    arguments = [item for value in (*LESS, *sets) for item in ("--set", value)]
    return command("train", str(folder / "mine.yaml"), "--set", f"output={folder / 'run'}", *arguments)


def test_they_train_evaluate_and_are_in_the_bundle_by_name(mine: Path) -> None:
    done = train(mine, "workers.max=0")
    assert done.returncode == 0, done.stderr
    assert "parabolas 5-shot" in done.stdout
    assert "mine.classes:SignMAML inner_lr=0.03" in done.stdout
    bundled = yaml.safe_load((mine / "run" / "bundle" / "recipe.yaml").read_text())
    assert bundled["model"] == {"name": "mine.classes:SineNet", "width": 40}
    sets = ("--set", "workers.max=0", "--set", "evaluation.algorithm.inner_steps=1")
    done = command("evaluate", str(mine / "run"), *sets)
    assert done.returncode == 0, done.stderr
    assert "inner_steps=1" in done.stdout.splitlines()[-1], done.stderr


@pytest.mark.ray
def test_a_ray_worker_is_sent_them_and_gives_the_same_result(
    mine: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """From a process whose own folders, which Ray's workers of this machine look into, do not hold the package."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = elsewhere / "go.py"
    script.write_text(f"import sys; sys.path.append({str(mine)!r})\nfrom tuning.cli import main\nmain()\n")
    results = []
    for workers in (0, 1):
        sets = [*LESS, f"workers.max={workers}", f"output={elsewhere / str(workers)}"]
        arguments = ["train", str(mine / "mine.yaml"), *(item for value in sets for item in ("--set", value))]
        done = subprocess.run(
            [sys.executable, str(script), *arguments], cwd=elsewhere, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        results.append(done.stdout.splitlines()[-1])
    assert results[0] == results[1]


def test_what_a_cluster_is_sent_is_the_package_and_nothing_that_is_installed(mine: Path) -> None:
    config = recipes.load(RunConfig, mine / "mine.yaml")
    assert recipes.own_code(config.recipe()) == [mine / "mine"]
    assert recipes.own_code(recipes.load(RunConfig, RECIPES / "demo.yaml").recipe()) == []


def test_overrides_of_an_evaluation_are_as_strict_as_the_recipe(mine: Path) -> None:
    config = recipes.load(RunConfig, mine / "mine.yaml", ["evaluation.algorithm.inner_stpes=1"])
    with pytest.raises(
        InputError, match=r"evaluation.algorithm: inner_stpes is not a key .* did you mean 'inner_steps'"
    ):
        config.setting("score")
    config = recipes.load(RunConfig, mine / "mine.yaml", ["evaluation.algorithm.name=maml"])
    with pytest.raises(InputError, match=r"evaluation\.algorithm cannot change the name"):
        config.setting("score")


def test_dump_then_parse_is_identity(mine: Path) -> None:
    config = recipes.load(RunConfig, mine / "mine.yaml")
    assert recipes.parse(RunConfig, recipes.dump(config), "dumped") == config


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("family.name", "mine.clases:Parabolas", r"family: cannot import .* \(ModuleNotFoundError: No module named"),
        ("model.name", "mine.classes:Sinenet", r"model: cannot import .* \(AttributeError: module .* has no attribute"),
        ("model.name", ".classes:SineNet", r"model: cannot import '.classes:SineNet' \(TypeError"),
        ("model.name", "mine.broken:Net", r"model: cannot import 'mine.broken:Net' \(SyntaxError"),
        ("model.name", "mine.classes.SineNet", r'or a class of yours as "package.module:Class"'),
        ("model.name", "os:system", "model: 'os:system' is no dataclass"),
        ("model.name", "mine.others:Nameless", "model: 'mine.others:Nameless' has no field for its name: give it one"),
        ("model.name", "mine.others:Odd", "model: mine.others:Odd has a field that cannot be read from YAML"),
        ("model.name", "mine.classes:Parabolas", "model: 'mine.classes:Parabolas' is no Model, it lacks module: see"),
        ("algorithm.inner_rl", 0.1, "algorithm: inner_rl is not a key of .*; did you mean 'inner_lr'"),
        ("family.shots", "five", "family.shots is 'five', expected a valid integer"),
    ],
)
def test_what_is_wrong_is_one_sentence(mine: Path, key: str, value: Any, sentence: str) -> None:
    (mine / "mine" / "broken.py").write_text("def")
    (mine / "mine" / "others.py").write_text(OTHERS)
    tree = recipes.read(mine / "mine.yaml")
    if value in ("mine.others:Nameless", "mine.others:Odd", "mine.classes:Parabolas"):
        tree["model"] = {}
    recipes.put(tree, key, value)
    with pytest.raises(InputError, match=sentence):
        recipes.parse(RunConfig, tree, "mine.yaml")
