"""Without Ray and MLflow everything but Ray and MLflow works, and asking for them is a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cases import GLYPHS, SINUSOID
from photos import album
from services import Done

pytestmark = pytest.mark.ray  # another Python, in which Ray cannot be imported

TESTS = Path(__file__).parent
HIDE = """
import sys
from importlib import util
from importlib.abc import MetaPathFinder

ABSENT = ("ray", "mlflow")

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
find = util.find_spec
util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in ABSENT else find(name, package)
)
"""
PROGRAM = """
import json
import sys
from services import command

for name in ("ray", "mlflow"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} is not hidden")

import metatrain

given = json.load(sys.stdin)
answers = {" ".join(arguments): command(*arguments) for arguments in given["commands"]}
answers["python"] = str(metatrain.train(given["recipe"]))
for name, call in (
    ("workers", lambda: metatrain.train(given["recipe"], workers={"max": 1})),
    ("sweep", lambda: metatrain.tune({})),
):
    try:
        call()
    except metatrain.InputError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""
COMMANDS = [
    "train s.yaml --set output=out",
    "evaluate out --set workers.max=0",
    "train g.yaml --set output=run",
    "adapt run --support few --query new",
    "train s.yaml --set workers.max=1 --set output=a",
    "train s.yaml --set tracking.uri=sqlite:///x.db --set output=b",
    "tune sweep.yaml",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(HIDE)
    short = SINUSOID | {"tracking": {}}
    images = GLYPHS | {"outer": GLYPHS["outer"] | {"steps": 1}, "evaluation": {"tasks": 2}}
    (folder / "s.yaml").write_text(yaml.safe_dump(short))
    (folder / "g.yaml").write_text(yaml.safe_dump(images))
    album(folder / "few", range(5), 1)
    album(folder / "new", range(5), 2, first=1)
    return folder


@pytest.fixture(scope="module")
def answers(home: Path) -> dict[str, Any]:
    """What each command and call says, one after the other in a Python that finds neither."""
    recipe = {key: value for key, value in SINUSOID.items() if key != "workers"}
    given = {"commands": [line.split() for line in COMMANDS], "recipe": recipe}
    path = os.pathsep.join(map(str, (home / "site", TESTS.parent, TESTS)))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        cwd=home,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {name: Done(*said) if name in COMMANDS else said for name, said in found.items()} | {
        "log": done.stderr
    }


def test_training_and_evaluation_in_process_work(answers: dict[str, Any], home: Path) -> None:
    trained, evaluated = (answers[line] for line in COMMANDS[:2])
    assert trained.returncode == 0, trained.stderr
    assert "mlflow is not installed: metrics go to metrics.jsonl only" in trained.stderr
    result = trained.stdout.splitlines()[-1]
    assert result.startswith("result: mse=")
    assert len((home / "out" / "metrics.jsonl").read_text().splitlines()) == 20
    assert evaluated.stdout.splitlines()[-1] == result


def test_a_run_adapts_to_images_and_predicts(answers: dict[str, Any]) -> None:
    done = answers[COMMANDS[3]]
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("written: adapted/predictions.json adapted/predictions.png\n")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            COMMANDS[4],
            "ray is not installed: pip install 'ray[default,tune,train]', or set workers.max to 0",
        ),
        (COMMANDS[5], "mlflow is not installed: pip install mlflow"),
        (COMMANDS[6], "ray is not installed: pip install 'ray[default,tune,train]' optuna"),
    ],
)
def test_asking_for_them_says_what_to_install(
    line: str, sentence: str, answers: dict[str, Any]
) -> None:
    done = answers[line]
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_from_python_training_is_in_process_and_says_so(answers: dict[str, Any]) -> None:
    assert "20 of 20 steps" in answers["python"]
    assert "ray is not installed: this process computes" in answers["log"]
    assert answers["workers"].startswith(
        "ray is not installed: pip install 'ray[default,tune,train]', or set workers.max to 0"
    )
    assert answers["sweep"] == "ray is not installed: pip install 'ray[default,tune,train]' optuna"
