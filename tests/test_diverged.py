"""Tasks that diverge are counted and left out, are never labels, and never make a result that looks
like one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import GLYPHS, SINUSOID, config
from services import command

import metatrain
from cluster import run
from metatrain import figures, inference
from metatrain.core import InputError, Scores
from metatrain.evaluate import summarise
from metatrain.figures import adaptation_curve
from metatrain.metrics import MSE
from metatrain.plain import to_json
from metatrain.tasks import Sinusoid
from tuning.journal import Journal, Report, Trial, ranked

NAN = math.nan


def strict(text: str) -> Any:
    """JSON as other readers take it: without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)


def test_a_score_is_that_of_the_tasks_that_did_not_diverge_and_counts_the_others() -> None:
    curve = torch.tensor([[4.0, 1.0], [4.0, math.inf], [4.0, 2.0], [4.0, NAN], [4.0, 6.0]])
    parts = [
        Scores([0, 1], {"none": {"mse": part}}, {"nothing": torch.full((len(part),), 5.0)})
        for part in curve.split(2)
    ]
    score = summarise(parts, MSE, {}, "none", "a protocol")
    assert (score.tasks, score.diverged, score.curve_diverged) == (5, 2, [0, 2])
    assert score.mean == pytest.approx(3.0)
    assert score.ci95 == pytest.approx(1.96 * math.sqrt(7) / math.sqrt(3))
    assert (score.median, *score.quartiles) == pytest.approx((2.0, 1.5, 4.0))
    assert score.curve == pytest.approx([4.0, 3.0])
    assert score.differences["nothing"][0] == pytest.approx(-2.0)
    assert score.usable
    assert score.line() == (
        "result: mse=2.0000 statistic=median quartiles=1.5000..4.0000 tasks=5 diverged=2 "
        'protocol="a protocol"'
    )
    assert "2 of 5 tasks diverged" in (score.warning() or "")


def test_a_mean_that_few_tasks_decide_is_said_to_be() -> None:
    """Their adaptation is on its way to overflow: the mean is finite, and says nothing."""
    curve = torch.tensor([[1.0]] * 50 + [[2.0]] * 50 + [[1e9]])
    score = summarise([Scores([0], {"none": {"mse": curve}}, {})], MSE, {}, "none", "")
    assert "a few tasks decide the mean, 9.901e+06, as their adaptation is about to diverge" in (
        score.warning() or ""
    )
    even = summarise([Scores([0], {"none": {"mse": curve[:100]}}, {})], MSE, {}, "none", "")
    assert even.warning() is None


def test_with_half_of_the_tasks_lost_there_is_no_result() -> None:
    lost = summarise(
        [Scores([0], {"none": {"mse": torch.tensor([[1.0], [NAN]])}}, {})], MSE, {}, "none", ""
    )
    assert not lost.usable
    none = summarise(
        [Scores([0], {"none": {"mse": torch.tensor([[NAN], [NAN]])}}, {})], MSE, {}, "none", ""
    )
    assert math.isnan(none.mean)
    assert none.line().startswith(
        "result: mse=none statistic=median quartiles=none..none tasks=2 diverged=2"
    )


def test_json_has_null_for_what_is_no_finite_number() -> None:
    found = strict(
        to_json({"a": NAN, "b": [math.inf, (1.5, -math.inf)], "c": {"d": NAN}, "e": "nan", "f": 3})
    )
    assert found == {"a": None, "b": [None, [1.5, None]], "c": {"d": None}, "e": "nan", "f": 3}
    assert strict(to_json({math.inf: 0.2, 1.5: 0.8})) == {"inf": 0.2, "1.5": 0.8}  # classes


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diverged") / "run"
    run.train(config(GLYPHS, output=str(folder), outer__steps=1, evaluation__tasks=4))
    return folder


def test_predictions_that_are_nan_are_no_accuracy_of_the_first_class(glyphs: Path) -> None:
    """argmax of nan is the first class: an overflow looked like 20 % of five ways, with exit code
    0.
    """
    wild = ("--set", "evaluation.algorithm.inner_lr=1e30", "--set", "workers.max=0")
    done = command("evaluate", str(glyphs), *wild)
    assert done.returncode == 2
    assert "result:" not in done.stdout
    assert done.stderr.splitlines()[-1].startswith(
        "error: there is no result, as 0 of 4 tasks did not diverge: lower"
    )


def test_adaptation_that_diverges_gives_no_labels(
    glyphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned = metatrain.load(glyphs)
    images = torch.randint(0, 256, (5, 1, 28, 28), dtype=torch.uint8)
    adapted = learned.adapt(images, range(5))
    lost = {name: p * NAN for name, p in adapted.after.items()}
    object.__setattr__(adapted, "after", lost)
    found = adapted.predict(images)
    assert found.labels == [None] * 5
    texts = [
        text.get_text()
        for axes in adapted.picture(images, ["0"] * 5, "").axes
        for text in axes.texts
    ]
    assert "after: ✗ none" in texts
    setting = learned._setting
    wild = setting._replace(algorithm=type(setting.algorithm)(inner_lr=1e30, inner_steps=2))
    monkeypatch.setattr(learned, "_setting", wild)
    with pytest.raises(
        InputError, match=r"adaptation to these 5 examples diverged .* lower the inner rate"
    ):
        learned.adapt(images, range(5))


@pytest.mark.usefixtures("pictures")
def test_a_run_with_some_diverged_tasks_says_so_everywhere(tmp_path: Path) -> None:
    """Of a rate at the edge of stability some tasks are lost, in training's validation as in the
    evaluation.
    """
    folder = tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(
        to_json(
            SINUSOID
            | {
                "output": str(folder),
                "outer": SINUSOID["outer"] | {"steps": 4, "lr": 1e-9},
                "validation": {"every_steps": 2, "tasks": 40},
                "evaluation": {"tasks": 60, "algorithm": {"inner_steps": 10, "inner_lr": 0.4}},
            }
        )
    )
    done = command("train", str(tmp_path / "recipe.yaml"))
    result = strict((folder / "result.json").read_text())["scores"][0]
    assert 0 < result["diverged"] < 30, result["diverged"]
    assert done.returncode == 0, done.stderr
    assert f"{result['diverged']} of 60 tasks diverged" in done.stderr
    assert "statistic=median" in done.stdout.splitlines()[-1]
    assert f"tasks=60 diverged={result['diverged']}" in done.stdout.splitlines()[-1]
    assert math.isfinite(result["median"])
    rows = [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "val/mse_after" in row]
    assert [row["step"] for row in validated] == [0, 2, 4]
    assert all(row["val/diverged_tasks"] > 0 for row in validated)
    assert (folder / "figures" / "adaptation_curve.png").stat().st_size > 0
    for name in ("learning_curve", "example"):
        assert (folder / "figures" / f"{name}.png").exists()


@pytest.mark.usefixtures("pictures")
def test_a_run_of_which_nothing_is_left_keeps_its_folder_and_ends_in_a_sentence(
    tmp_path: Path,
) -> None:
    """There is no number for a logarithmic axis: a traceback cost the result."""
    wild = {"steps": 1, "lr": 1e30, "optimizer": "SGD"}
    settings = SINUSOID | {
        "output": "run",
        "outer": SINUSOID["outer"] | wild,
        "validation": {"every_steps": 1, "tasks": 4},
    }
    (tmp_path / "recipe.yaml").write_text(to_json(settings))
    done = command("train", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("; all else is in run")
    assert "there is no result, as 0 of 30 tasks did not diverge" in done.stderr
    score = strict(Path("run/result.json").read_text())["scores"][0]
    assert (score["mean"], score["diverged"], score["curve"]) == (None, 30, [None, None])
    assert {path.stem for path in Path("run/figures").iterdir()} == {
        "learning_curve",
        "adaptation_curve",
        "example",
    }
    assert command("evaluate", "run", "--set", "workers.max=0").returncode == 2


class Unpictured(Sinusoid):
    def picture(self, *given: Any) -> Any:
        raise KeyError("x")


def test_a_picture_that_fails_costs_no_result(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config(SINUSOID, output=str(tmp_path / "run"), outer__steps=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sinusoid, "picture", Unpictured.picture)
        run.train(settings)
    assert "there is no picture of an example, as `picture` failed: KeyError: 'x'" in caplog.text
    assert (tmp_path / "run" / "result.json").exists()


def test_the_picture_of_diverged_tasks_shows_medians_and_says_how_many_are_missing() -> None:
    curve = torch.tensor([[4.0, 1.0], [4.0, NAN], [4.0, 3.0]])
    score = summarise([Scores([0, 1], {"none": {"mse": curve}}, {})], MSE, {}, "none", "")
    axes = adaptation_curve([("all", score)], "Title").axes[0]
    assert axes.lines[0].get_ydata().tolist() == [4.0, 2.0]
    assert axes.get_title() == "Title; 1 of 3 tasks diverged"
    assert "median" in axes.get_ylabel()


class Searched:
    mode = "min"


def test_a_trial_with_diverged_validation_tasks_comes_behind_those_without(tmp_path: Path) -> None:
    """Its mean over the other tasks may well be the smallest."""
    values: dict[str, Any] = {}
    reports = [
        Report(4, 0.1, 0.0, values, diverged_tasks=1),
        Report(4, 0.5, 0.0, values),
        Report(4, 0.3, 0.0, values),
    ]
    reports.append(Report(4, NAN, NAN, values, diverged_tasks=9))
    trials = [Trial(i, values, [report], "completed") for i, report in enumerate(reports)]
    search: Any = Searched()
    assert [trial.number for trial in ranked(search, trials)] == [2, 1, 0, 3]
    assert [report.compared("min") for report in reports] == [math.inf, 0.5, 0.3, math.inf]
    assert reports[0].compared("max") == -math.inf
    journal = Journal(tmp_path / "journal.jsonl")
    journal.write(3, "values", {})
    journal.write(3, "report", reports[3]._asdict())
    assert all(strict(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines())
    again = Journal(tmp_path / "journal.jsonl").trials[3].reports[0]
    assert math.isnan(again.value)
    assert again.diverged_tasks == 9


@pytest.mark.usefixtures("pictures")
def test_illustrations_of_a_network_without_finite_outputs_are_drawn(glyphs: Path) -> None:
    learned = metatrain.load(glyphs)
    meta = learned.meta._replace(model={name: p * NAN for name, p in learned.meta.model.items()})
    figures.save(inference.illustrate(learned.recipe, meta), glyphs / "nan.png")
