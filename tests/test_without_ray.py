"""Where neither Ray nor MLflow is installed, everything but Ray and MLflow works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cases import GLYPHS, SINUSOID, config
from photos import album

from cluster import run

HIDE = """
import sys
from importlib.abc import MetaPathFinder

class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from importlib import util
find = util.find_spec
ABSENT = ("ray", "mlflow")
util.find_spec = lambda name, package=None: (
    None if name.split(".")[0] in ABSENT else find(name, package)
)
"""


@pytest.fixture
def hidden(tmp_path: Path) -> dict[str, str]:
    """An environment in which Python does not find them."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HIDE)
    return os.environ | {"PYTHONPATH": str(tmp_path / "site")}


def command(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    full = [sys.executable, "-m", "tuning.cli", *arguments]
    return subprocess.run(full, capture_output=True, text=True, check=False, env=env)


def test_they_are_hidden(hidden: dict[str, str]) -> None:
    for name in ("ray", "mlflow"):
        done = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, env=hidden, check=False
        )
        assert done.returncode != 0


def test_training_and_evaluation_in_process_work(hidden: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "s.yaml"
    recipe.write_text(yaml.safe_dump(SINUSOID | {"tracking": {}}))
    done = command(hidden, "train", str(recipe), "--set", "output=out")
    assert done.returncode == 0, done.stderr
    assert "mlflow is not installed: metrics go to metrics.jsonl only" in done.stderr
    result = done.stdout.splitlines()[-1]
    assert result.startswith("result: mse=")
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 20
    assert (
        command(hidden, "evaluate", "out", "--set", "workers.max=0").stdout.splitlines()[-1]
        == result
    )


def test_a_run_adapts_to_images_and_predicts(hidden: dict[str, str], tmp_path: Path) -> None:
    run.train(config(GLYPHS, outer__steps=1, evaluation__tasks=2, output=str(tmp_path / "run")))
    album(tmp_path / "few", range(5), 1)
    album(tmp_path / "new", range(5), 2, first=1)
    done = command(hidden, "adapt", "run", "--support", "few", "--query", "new")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("written: adapted/predictions.json adapted/predictions.png\n")


def test_asking_for_them_says_what_to_install(hidden: dict[str, str], tmp_path: Path) -> None:
    recipe = tmp_path / "s.yaml"
    recipe.write_text(yaml.safe_dump(SINUSOID))
    sentences = {
        "workers.max=1": (
            "ray is not installed: pip install 'ray[default,tune,train]', or set workers.max to 0"
        ),
        "tracking.uri=sqlite:///x.db": "mlflow is not installed: pip install mlflow",
    }
    started = {
        sentence: subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tuning.cli",
                "train",
                str(recipe),
                "--set",
                setting,
                "--set",
                f"output=run-{i}",
            ],
            stderr=subprocess.PIPE,
            text=True,
            env=hidden,
        )
        for i, (setting, sentence) in enumerate(sentences.items())
    }
    for sentence, process in started.items():
        _, errors = process.communicate()
        assert process.returncode == 2
        assert sentence in errors
        assert "Traceback" not in errors


def test_a_sweep_says_so_too(hidden: dict[str, str]) -> None:
    done = command(hidden, "tune", "sweep.yaml")
    assert done.returncode == 2
    assert "ray is not installed: pip install 'ray[default,tune,train]' optuna" in done.stderr
