"""Runs are compared by pairs of the same tasks, and refused if the tasks are others."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cases import SINUSOID, config
from services import command

from cluster import run
from cluster.comparison import check_free, compare
from metatrain import figures
from metatrain.core import InputError
from metatrain.metrics import ACCURACY

Trained = dict[str, tuple[str, float]]  # the folder of a run, and its score


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    changes = {"a": {}, "b": {"outer__steps": 40}, "other": {"family__shots": 4}}
    found: Trained = {}
    for name, keys in changes.items():
        output = str(tmp_path_factory.mktemp("runs") / name)
        folder, (score, *_) = run.train(config(SINUSOID, output=output, **keys))
        found[name] = (str(folder), score.mean)
    return found


def test_the_difference_is_that_of_the_means_and_a_tie_is_called_one(trained: Trained) -> None:
    (a, mean_a), (b, mean_b) = trained["a"], trained["b"]
    longer, same = compare(a, [b, a])
    assert longer.difference == pytest.approx(mean_b - mean_a, rel=1e-6)
    assert longer.first_mean == pytest.approx(mean_a, rel=1e-6)
    assert (same.difference, same.ci95, same.verdict) == (0.0, 0.0, "a tie")
    assert longer.paired
    assert longer.tasks == 30
    assert longer.ci95 < math.hypot(longer.first_ci95, longer.second_ci95)
    assert "trained 40 steps" in longer.second_protocol


def test_the_command_shows_all_runs_beside_the_first_and_leaves_a_picture(
    trained: Trained, tmp_path: Path
) -> None:
    (a, _), (b, _) = trained["a"], trained["b"]
    done = command("compare", a, b, a, "--output", "beside")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("over 30 tasks, paired") == 2
    assert "a tie" in done.stdout
    assert f'{b}: protocol="sinusoid' in done.stdout
    assert done.stdout.splitlines()[-1] == "written: beside/comparison.json beside/comparison.png"
    longer, same = json.loads(Path("beside/comparison.json").read_text())
    assert (longer["second"], longer["metric"], same["verdict"]) == (b, "mse", "a tie")
    assert longer["tested_on"] == "sinusoid 5-shot 5 query points, test split"
    assert command("compare", a).returncode == 2
    check_free(Path("beside"), [a, b, a])  # the same comparison again
    with pytest.raises(InputError) as refused:
        check_free(Path("beside"), [a, b])
    assert refused.value.what == f"beside/comparison.json is of {a}, {b}, {a}"
    Path("beside/comparison.json").write_text("{}")
    with pytest.raises(InputError, match="is of something else"):
        check_free(Path("beside"), [a, b])


def test_other_tasks_are_refused_unless_one_is_told_and_then_intervals_are_independent(
    trained: Trained,
) -> None:
    (a, mean), (other, other_mean) = trained["a"], trained["other"]
    with pytest.raises(InputError) as refused:
        compare(a, [other])
    assert "were not tested on the same tasks, family.shots is 5 and 4" in refused.value.what
    (found,) = compare(a, [other], unpaired=True)
    assert not found.paired
    assert found.difference == pytest.approx(other_mean - mean, rel=1e-6)
    assert found.ci95 == pytest.approx(math.hypot(found.first_ci95, found.second_ci95))


def test_runs_of_different_metrics_are_refused(trained: Trained, tmp_path: Path) -> None:
    from cases import GLYPHS

    short = {"outer__steps": 1, "evaluation__tasks": 4}
    folder, _ = run.train(config(GLYPHS, output=str(tmp_path / "glyphs"), **short))
    with pytest.raises(InputError) as refused:
        compare(trained["a"][0], [str(folder)], unpaired=True)
    assert refused.value.remedy == "compare runs of one metric"


def test_the_picture_has_a_row_for_each_run_with_its_interval() -> None:
    scores = [figures.Interval("one", 0.9, 0.02), figures.Interval("other", 0.95, 0.01)]
    ahead = [figures.Interval("other", 0.05, 0.015)]
    left, right = figures.comparison(scores, ahead, ACCURACY, "on the same tasks").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["one", "other"]
    assert [float(bar[0].get_xdata()[0]) for bar in right.containers] == [0.0, 5.0]
    assert left.yaxis_inverted()
