"""Metrics are what they say they are, also those of a family of one's own."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from cases import SINUSOID, config

import metatrain
from cluster import run
from metatrain import inference
from metatrain.metrics import Metric, accuracy, cross_entropy, mean_squared_error
from metatrain.schema import dump
from metatrain.start import prepare
from tuning import search

OWN = """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from metatrain.core import ComputePath, Model, Norm, Split, Task
from metatrain.metrics import Metric, mean_squared_error
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated


def f1(prediction, target):
    said, true = (prediction > 0)[..., 0], (target > 0)[..., 0]
    hits = (said & true).sum(1)
    return 2 * hits / (said.sum(1) + true.sum(1)).clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class Signs(Generated):
    metric: ClassVar[Metric] = Metric("f1", "max", "percent")
    name: str = "signs:Signs"
    shots: int = 5

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        x, y = torch.randn(2, count, 2 * self.shots, 1, generator=generator)
        return Task(x[:, :self.shots], y[:, :self.shots], x[:, self.shots:], y[:, self.shots:])

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(model=model, inputs=(1,), outputs=1, loss=mean_squared_error,
                          metrics={"f1": f1}, norm=norm, path=path)
"""


@pytest.mark.parametrize(
    ("metric", "text", "brief", "interval"),
    [
        (Metric("f1", "max", "percent"), "91.03%", "91.0%", "91.03 ± 1.12%"),
        (Metric("accuracy", "max"), "0.9103", "0.910", "0.9103 ± 0.0112"),
        (Metric("error", "min", "log"), "0.9103", "0.910", "0.9103 ± 0.0112"),
    ],
)
def test_a_metric_is_read_as_it_says_and_not_as_it_is_called(
    metric: Metric, text: str, brief: str, interval: str
) -> None:
    assert (metric.text(0.9103), metric.brief(0.9103)) == (text, brief)
    assert metric.interval(0.9103, 0.0112) == interval
    assert metric.text(math.nan) == metric.brief(math.inf) == "none"
    assert metric.interval(math.nan, math.nan) == "none ± none"
    assert Metric("mse", "min").text(123456.7) == "1.235e+05"


def test_a_metric_of_ones_own_is_swept_and_shown_by_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing knows what f1 is but its family, which has no picture."""
    (tmp_path / "signs.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    given = config(
        SINUSOID | {"family": {"name": "signs:Signs"}},
        outer__steps=2,
        validation__every_steps=1,
        output="runs/signs",
    )
    _, (score,) = run.train(given)
    assert score.line().startswith(f"result: f1={100 * score.mean:.2f}%")
    (recorded,) = json.loads(Path("runs/signs/result.json").read_text())["scores"]
    said = {name: recorded[name] for name in ("metric", "better", "shown")}
    assert said == {"metric": "f1", "better": "max", "shown": "percent"}
    result = f"f1 {score.metric.interval(score.mean, score.ci95)}"
    assert metatrain.runs().result.tolist() == [result]
    shown = capsys.readouterr().err
    assert "  f1 " in shown
    assert "%  val " in shown
    assert inference.illustrate(given.recipe(), prepare(given.recipe()).meta) is None
    Path("recipe.yaml").write_text(yaml.safe_dump(dump(given.recipe())))
    Path("sweep.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "s",
                "recipe": "recipe.yaml",
                "space": {"outer.lr": {"uniform": [0.001, 0.1]}},
                "budget": {"trials": 2},
            }
        )
    )
    found = search.load(Path("sweep.yaml"))
    assert (found.metric, found.mode) == ("val/f1_after", "max")


def test_errors_are_means_over_examples() -> None:
    logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [1.0, 3.0]]])
    labels = torch.tensor([[0, 0, 1]])
    each = [math.log1p(math.exp(-2)), math.log1p(math.exp(2)), math.log1p(math.exp(-2))]
    assert cross_entropy(logits, labels).tolist() == pytest.approx([sum(each) / 3])
    assert accuracy(logits, labels).tolist() == pytest.approx([2 / 3])
    prediction = torch.tensor([[[1.0], [3.0]]])
    assert mean_squared_error(prediction, torch.zeros(1, 2, 1)).tolist() == [5.0]
