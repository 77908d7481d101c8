"""Several training seeds in one command: a run each, and how the scores vary between them."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from cases import SINUSOID, config
from mlflow.tracking import MlflowClient
from scipy import stats
from services import store
from typer.testing import CliRunner

import metatrain
from cluster import recipe_file, run, seeds, spread
from cluster.cli import app
from cluster.config import RunConfig
from cluster.tracking.place import place_of
from cluster.tracking.sync import sync
from metatrain import bundle, figures
from metatrain.core import InputError
from metatrain.metrics import ACCURACY

TINY = SINUSOID | {
    "outer": {"steps": 2, "tasks_per_step": 2, "tasks_per_ticket": 2, "lr": 0.01},
    "evaluation": {"tasks": 6},
    "checkpoint": {"every_steps": 1},
}


def record(**changed: Any) -> dict[str, Any]:
    """A score as result.json has it, as far as seeds need it."""
    return {
        "metric": "accuracy",
        "better": "max",
        "shown": "percent",
        "mean": 0.5,
        "median": 0.75,
        "ci95": 0.02,
        "tasks": 100,
        "diverged": 0,
        "evaluation": "",
        "norm": "none",
        "protocol": "trained 9 steps, seed 0; losses are means",
    } | changed


def tiny(folder: Path, **changed: Any) -> RunConfig:
    return config(TINY, output=str(folder), **changed)


def test_the_spread_is_that_of_the_seeds_with_students_interval() -> None:
    means = [0.91, 0.87, 0.92, 0.85]
    (found,) = spread.summarise({seed: [record(mean=m)] for seed, m in enumerate(means)})
    expected = stats.describe(means)
    assert found.mean == pytest.approx(expected.mean, rel=1e-12)
    assert found.std == pytest.approx(math.sqrt(expected.variance), rel=1e-12)
    low, high = stats.t.interval(0.95, 3, expected.mean, stats.sem(means))
    assert found.ci95 == pytest.approx((high - low) / 2, rel=1e-9)
    assert [(each.seed, each.value, each.ci95) for each in found.seeds] == [
        (seed, m, 0.02) for seed, m in enumerate(means)
    ]
    assert found.rows()[-2:] == [
        ("mean of 4 seeds", "88.75 ± 5.26%"),
        ("standard deviation between seeds", "3.30 points"),
    ]


def test_the_closing_line_has_the_protocol_of_all_seeds() -> None:
    protocols = [f"9 steps, seed {seed}; losses are means" for seed in (7, -1)]
    records = {s: [record(protocol=p)] for s, p in zip((7, -1), protocols, strict=True)}
    (found,) = spread.summarise(records)
    assert found.line() == (
        "result: accuracy=50.00% seeds=2 seed_std=0.00 seed_ci95=0.00 tasks=100 "
        'protocol="9 steps, seeds 7, -1; losses are means"'
    )
    records[-1] = [record(protocol="4 steps, seed -1; losses are means")]
    (found,) = spread.summarise(records)
    assert found.protocol() == "9 steps, seeds 7, -1 (steps of the first seed); losses are means"


def test_seeds_with_tasks_that_diverged_are_compared_by_their_medians() -> None:
    (found,) = spread.summarise({0: [record(diverged=1)], 1: [record(median=0.85)]})
    assert (found.statistic, found.mean) == ("median", pytest.approx(0.8))
    assert found.rows()[0] == ("seed 0", "75.00%, 1 tasks diverged")
    assert found.lost == []
    (found,) = spread.summarise({0: [record(diverged=50)], 1: [record()]})
    assert found.lost == [0]
    assert math.isnan(found.mean)
    assert math.isnan(found.ci95)


@pytest.mark.parametrize("text", ["1", "1,1", "0,1.5", "1,,2", "a,b", "1 2", ""])
def test_seeds_that_are_none_are_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match="such as 0,1,2") as error:
        seeds.parse(text)
    assert (error.value.what, error.value.got) == ("--seeds", text)
    assert seeds.parse("3, -1,0") == [3, -1, 0]


def test_further_scores_have_names_of_their_own_in_mlflow() -> None:
    records = [record(), record(norm="support+1"), record(evaluation="ways10")]
    found = spread.as_metrics(spread.summarise({0: records, 1: records}))
    assert found.keys() == {
        f"test/{prefix}accuracy{suffix}"
        for prefix in ("", "support_plus_1/", "ways10/")
        for suffix in ("", "_ci95", "_seed_std")
    }


def test_the_picture_shows_each_seed_and_the_mean_of_all() -> None:
    rows = [
        figures.Interval("seed 4", 0.5, 0.1),
        figures.Interval("seed 2", 0.7, math.nan),  # a median
        figures.Interval("mean of 2 seeds", 0.6, 0.2),
    ]
    picture = figures.over_seeds({"result": rows, "ways10": rows}, ACCURACY, "demo")
    for axes in picture.axes:
        assert [label.get_text() for label in axes.get_yticklabels()] == [row.name for row in rows]
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        assert [list(dot.get_xdata()) for dot in dots] == [[50.0], [70.0], [60.0]]
    assert [axes.get_title() for axes in picture.axes] == ["result", "ways10"]


@pytest.mark.ray
def test_resuming_continues_the_first_seed_that_is_not_finished_to_its_own_bits(
    tmp_path: Path,
) -> None:
    """The seeds are also below one run in MLflow, and the command prints them."""
    folder = tmp_path / "all"
    of = {seed: {"seed": seed, "name": f"sinusoid-seed-{seed}"} for seed in (5, 2)}
    run.train(tiny(folder / "seed-5", **of[5]))
    run.train(tiny(folder / "seed-2", **of[2], outer__steps=1))  # its result is of fewer steps
    with pytest.raises(InputError, match="already holds runs of seeds: pass --resume auto"):
        seeds.train(tiny(folder), [5, 2])
    finished = (folder / "seed-5/result.json").stat().st_mtime_ns
    uri = store(tmp_path)
    place, (found,) = seeds.train(tiny(folder, tracking__uri=uri), [5, 2], resume="auto")
    assert (folder / "seed-5/result.json").stat().st_mtime_ns == finished  # not trained again
    steps = [json.loads(line)["step"] for line in (folder / "seed-2/metrics.jsonl").open()]
    assert steps == [1, 2]

    _, (alone,) = run.train(tiny(tmp_path / "alone", seed=2))
    places = (folder / "seed-2/bundle", tmp_path / "alone/bundle")
    (_, one), (_, other) = (bundle.load(str(place)) for place in places)
    assert all(one.flat()[name].equal(value) for name, value in other.flat().items())
    assert found.seeds[1] == spread.OfSeed(2, alone.mean, alone.ci95, 0, alone.protocol)
    assert found.seeds[0].value != found.seeds[1].value
    assert json.loads((place / "seeds.json").read_text())["scores"] == [found.record()]

    client = MlflowClient(uri)
    both, one_of_two = (client.get_run(place_of(f).run_id) for f in (folder, folder / "seed-2"))
    assert both.info.status == one_of_two.info.status == "FINISHED"
    assert both.data.metrics == spread.as_metrics([found])
    assert one_of_two.data.tags["mlflow.parentRunId"] == both.info.run_id
    assert one_of_two.data.metrics["test/mse"] == alone.mean  # a sweep's trial sends none

    with pytest.raises(InputError, match="is not the folder of one run: give that of a run"):
        sync(str(folder))

    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(TINY))
    with pytest.raises(InputError, match="is the folder of several seeds: give that of one seed"):
        recipe_file.read(str(folder), [])
    printed = CliRunner().invoke(
        app,
        ["train", str(recipe), "--seeds", "5,2", "--resume", "auto", "--set", f"output={folder}"],
    )
    assert printed.output.splitlines()[-1] == found.line()
    assert f"mean of 2 seeds {found.rows()[2][1]}" in " ".join(printed.output.split())

    again = metatrain.train(TINY, seeds=[5, 2], resume="auto", output=str(folder))
    assert again.result.loc[0, ["mean", "std"]].tolist() == [found.mean, found.std]
    assert again.runs[2].result.loc[0, "mean"] == alone.mean
    shown = f"mse {found.metric.interval(found.mean, found.ci95)} over 2 seeds)"
    assert repr(again).endswith(shown)

    (folder / "seed-7").touch()
    with pytest.raises(InputError, match="seed-7 is a file") as error:
        seeds.train(tiny(folder), [5, 7], resume="auto")
    assert vars(error.value) | {"run": str(folder), "saved": True} == vars(error.value)


def test_seeds_from_python_are_whole_numbers_and_a_folder_that_has_them(tmp_path: Path) -> None:
    for given in (3, "0,1", {0, 1}):
        with pytest.raises(InputError, match=r"seeds is .* whole numbers such as \[0, 1\]"):
            metatrain.train(TINY, seeds=given)
    with pytest.raises(InputError) as refused:
        metatrain.train(TINY, seeds=[1])
    assert refused.value.what == "seeds"
    (tmp_path / "seeds.json").write_text('{"scores": []}')
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="holds no finished runs of seeds"):
            metatrain.Seeds(place)


@pytest.mark.ray  # trains six short runs
def test_all_seeds_start_from_the_same_weights_or_say_that_they_do_not(tmp_path: Path) -> None:
    place = str(run.train(tiny(tmp_path / "start"))[0])
    given = tiny(tmp_path / "all", model__weights=place)
    seeds.train(given, [0, 1])
    result = tmp_path / "all/seed-0/result.json"
    before = result.stat().st_mtime_ns
    seeds.train(given, [0, 1], resume="auto")  # both are finished
    assert result.stat().st_mtime_ns == before
    run.train(tiny(tmp_path / "other", seed=3))
    shutil.rmtree(tmp_path / "start")
    (tmp_path / "other").rename(tmp_path / "start")
    with pytest.raises(InputError, match=r"was trained with started_from = .*cannot resume"):
        seeds.train(given, [0, 1, 2], resume="auto")


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own/photo.png").touch()
    with pytest.raises(InputError, match=r"own holds photo\.png and no runs of seeds"):
        seeds.train(tiny(tmp_path / "own"), [0, 1])
    with pytest.raises(InputError, match="own holds no runs of seeds to continue"):
        seeds.train(tiny(tmp_path / "own"), [0, 1], resume=str(tmp_path / "own"))
