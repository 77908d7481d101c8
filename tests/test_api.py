"""What Python callers are promised: train, tune, runs and Run, without a command line and without a
traceback.
"""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cases import GLYPHS, SINUSOID, config
from services import S3, drawing

import metatrain
from cluster.config import RunConfig, Workers
from metatrain.recipe import Recipe
from tuning.config import Sweep

SHORT = SINUSOID | {"outer": SINUSOID["outer"] | {"steps": 3}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> metatrain.Run:
    with drawing():
        return metatrain.train(SHORT, output=str(tmp_path_factory.mktemp("api") / "a"))


@pytest.fixture
def copied(trained: metatrain.Run) -> metatrain.Run:
    """The run in runs/a, to be damaged."""
    shutil.copytree(trained.folder, "runs/a")
    return metatrain.Run("runs/a")


def test_what_is_public_is_what_dir_shows() -> None:
    names = ["Diverged", "InputError", "Interrupted", "Run", "Seeds", "SweepRun", "WorkersLost"]
    assert dir(metatrain) == [*names, "__version__", "load", "open_data", "runs", "train", "tune"]
    assert all(getattr(metatrain, name) is not None for name in dir(metatrain))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        _ = metatrain.trian


def test_the_version_is_known_of_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    (tmp_path / "metatrain").mkdir()
    shutil.copy(root / "metatrain" / "__init__.py", tmp_path / "metatrain")
    code = "import metatrain; print(metatrain.__version__)"
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-S", "-c", code],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=True,
        )
        found.append(done.stdout.strip())
        shutil.copy(root / "pyproject.toml", tmp_path)
    assert found == ["unknown", metatrain.__version__]


def test_a_recipe_is_a_file_a_dict_or_the_dataclass(trained: metatrain.Run) -> None:
    Path("r.yaml").write_text(yaml.safe_dump(SHORT))
    whole = config(SHORT)
    before = copy.deepcopy(SHORT)
    for i, given in enumerate(["r.yaml", Path("r.yaml"), SHORT, whole, whole.recipe()]):
        run = metatrain.train(
            given, output=f"run-{i}", workers={"max": 0}, tracking={"uri": "none"}
        )
        assert run.result["mean"].tolist() == trained.result["mean"].tolist()
    assert before == SHORT


def test_overrides_set_dotted_keys_and_merge_dicts() -> None:
    options: dict[str, Any] = {
        "algorithm.inner_lr": np.float32(0.5),
        "model": {"hidden": np.array([4, 4])},
    }
    run = metatrain.train(SHORT, output=Path("run"), outer={"steps": np.int64(2)}, **options)
    found = run.config
    assert (found.outer.steps, found.outer.lr, found.algorithm.inner_lr, found.model.hidden) == (
        2,
        0.001,
        0.5,
        (4, 4),
    )
    assert (
        metatrain.train(SHORT, outer=found.outer, workers=Workers(max=0)).config.outer
        == found.outer
    )
    other = {"name": "reptile", "inner_lr": 0.01, "inner_steps": 2, "inner_batch": 5}
    again = metatrain.train(
        SHORT | {"algorithm": SHORT["algorithm"] | {"inner_steps": 2}}, algorithm=other
    )
    assert again.config.algorithm.name == "reptile"  # and no key of maml's is left


HOLDS_ITSELF: dict[str, Any] = {"name": "x"}
HOLDS_ITSELF["outer"] = HOLDS_ITSELF


@pytest.mark.parametrize(
    ("recipe", "arguments", "sentence"),
    [
        (
            SHORT,
            {"outer": {"stepz": 3}},
            "outer.stepz is not a key of a recipe: did you mean 'steps'",
        ),
        (SHORT, {"outer.steps": "many"}, "outer.steps is 'many', expected a valid integer"),
        (SHORT, {"outer.lr": math.nan}, "nan"),
        (SHORT, {"name.first": "x"}, "name.first cannot be set"),
        ({"name": "x"}, {}, "family is missing"),
        (HOLDS_ITSELF, {}, "the recipe holds itself"),
        (5, {}, "the recipe is 5, expected a YAML file's path, a dict or the dataclass"),
        (None, {}, "the recipe is None, expected"),
        ([SHORT], {}, "expected a YAML file's path, a dict or the dataclass"),
        ("no.yaml", {}, "cannot read no.yaml"),
        ([SHORT] * 50, {}, "expected a YAML file's path, a dict or the dataclass"),
        (SHORT, {"outer": 5}, "outer is 5, expected"),
        (SHORT, {"workers": 5}, "workers is 5, expected"),
        (SHORT, {"recipes": "x"}, "recipes is not a key of a recipe"),
        (SHORT, {"resume": True}, "resume is True, expected 'auto' or a run's folder"),
        (SHORT, {"address": 5}, "address is 5, expected a Ray cluster's address"),
        (SHORT, {"resume": "nowhere"}, "nowhere holds no checkpoint"),
    ],
)
def test_bad_input_is_one_sentence(recipe: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(metatrain.InputError) as raised:
        metatrain.train(recipe, **arguments)
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not raised.value.__cause__
    assert not Path("runs").exists()


def test_no_key_of_a_recipe_or_a_sweep_has_the_name_of_an_argument() -> None:
    assert not {"recipe", "resume", "address"} & set(RunConfig.__dataclass_fields__)
    assert not {"sweep", "resume", "address"} & set(Sweep.__dataclass_fields__)
    assert set(Recipe.__dataclass_fields__) < set(RunConfig.__dataclass_fields__)


def test_a_sentence_names_arguments_and_no_options(trained: metatrain.Run) -> None:
    with pytest.raises(metatrain.InputError, match=r"leave out address or set workers\.max"):
        metatrain.train(SHORT, address="auto")
    with pytest.raises(
        metatrain.InputError, match="already holds a run: pass resume='auto' to continue it"
    ):
        metatrain.train(SHORT, output=trained.folder)


def test_an_error_keeps_its_parts_on_the_way_to_python() -> None:
    with pytest.raises(metatrain.InputError) as refused:
        metatrain.train(SHORT, workers={"max": 2, "min": 5})
    error = refused.value
    found = (error.what, error.got, error.expected)
    assert found == ("the recipe: workers.min", 5, "1 to max, which is 2")


def test_a_folder_that_cannot_be_made_is_one_sentence() -> None:
    Path("file").touch()
    with pytest.raises(metatrain.InputError, match="file"):
        metatrain.train(SHORT, output="file/run")


def test_what_stops_training_says_how_to_continue() -> None:
    again = r"metatrain.train\(..., resume='auto'\) continues"
    with pytest.raises(metatrain.Diverged, match=again) as error:
        metatrain.train(SHORT, **{"algorithm.inner_lr": 1e30, "outer.steps": 60})
    assert "is saved" not in str(error.value)  # not one step was whole


def test_an_error_after_a_checkpoint_says_how_to_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise metatrain.InputError("the folder is gone")

    monkeypatch.setattr("cluster.results.leave", fail)
    with pytest.raises(metatrain.InputError, match="the folder is gone") as error:
        metatrain.train(SHORT)
    assert error.value._render_traceback_()[1:] == ["metatrain.train(..., resume='auto') continues"]


def test_runs_of_the_same_second_have_folders_of_their_own() -> None:
    folders = {metatrain.train(SHORT, outer={"steps": 1}).folder for _ in range(3)}
    assert len(folders) == 3
    assert len(metatrain.runs()) == 3


def test_training_works_in_a_thread_that_is_not_the_main_one() -> None:
    found: list[metatrain.Run] = []
    thread = threading.Thread(target=lambda: found.append(metatrain.train(SHORT)))
    thread.start()
    thread.join()
    assert found[0].metrics.index.tolist() == [1, 2, 3]


def test_torch_has_the_callers_threads_afterwards(trained: metatrain.Run) -> None:
    torch.set_num_threads(2)
    try:
        run = metatrain.train(SHORT)
        assert torch.get_num_threads() == 2
        run.compare(trained)
        assert torch.get_num_threads() == 2
        with pytest.raises(metatrain.InputError):
            metatrain.train(SHORT, **{"workers.threads": 0})
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.ray
def test_messages_are_shown_once_and_logging_is_left_as_it_was() -> None:
    code = f"""
import logging, metatrain
train = lambda: metatrain.train({SHORT!r}, resume="auto", output="run")
train()
ours = [logging.getLogger(name) for name in ("cluster", "metatrain")]
assert not any(logger.handlers or logger.level for logger in ours)
logging.basicConfig(format="mine: %(message)s")
train()
logging.getLogger("cluster").setLevel("ERROR")
train()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=True
    )
    said = [
        line for line in done.stderr.splitlines() if re.search("nothing to resume|resuming", line)
    ]
    assert len(said) == 2
    assert said[0].startswith("there is nothing to resume")
    assert said[1].startswith("mine: resuming")


def test_a_run_is_opened_from_its_folder(trained: metatrain.Run) -> None:
    run = metatrain.Run(f"{trained.folder}/")
    assert run.folder == trained.folder
    saved = json.loads((Path(run.folder) / "result.json").read_text())["scores"][0]
    assert list(run.result)[:3] == ["metric", "mean", "ci95"]
    for name in ("metric", "mean", "ci95", "tasks", "norm", "protocol", "baselines"):
        assert run.result[name].tolist() == [saved[name]]
    assert run.metrics.index.tolist() == [1, 2, 3]
    assert run.metrics["train/loss_after"].dtype == float
    assert run.config.name == "sinusoid"
    assert run.figures["learning_curve"].exists()
    assert repr(run) == (
        f"Run({run.folder!r}: sinusoid, 3 of 3 steps, mse {saved['mean']:.3f} ± "
        f"{saved['ci95']:.3f})"
    )


@pytest.mark.ray
def test_what_a_run_learned_adapts_to_images() -> None:
    run = metatrain.train(GLYPHS, outer={"steps": 1}, evaluation={"tasks": 2})
    drawings = metatrain.open_data("glyphs").images.unflatten(0, (1000, 20))[:5]
    found = run.load().adapt(drawings[:, 0], list("abcde")).predict(drawings[:, 1])
    assert set(found.labels) <= set("abcde")


@pytest.mark.parametrize(
    "damage",
    [
        b'{"step": 4, "train/lo',
        b"\xff\xfe\n",
        b"5\n",
        b"{}\n",
        b"[1]\n",
        b'{"step": null}\n',
        b'{"step": "x"}\n',
        b"\n\n",
    ],
)
def test_metrics_leave_out_lines_that_are_none(copied: metatrain.Run, damage: bytes) -> None:
    with Path("runs/a/metrics.jsonl").open("ab") as file:
        file.write(damage)
    assert copied.metrics.index.tolist() == [1, 2, 3]
    assert metatrain.runs().steps.tolist() == [3]


def test_a_null_is_a_number_that_is_none(copied: metatrain.Run) -> None:
    with Path("runs/a/metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 4, "train/loss_after": null, "more": NaN}\n{"step": 4, "train/loss_after": '
            "null}\n"
        )
    assert copied.metrics.index.tolist() == [1, 2, 3, 4]
    assert math.isnan(copied.metrics["train/loss_after"][4])
    result = json.loads(Path("runs/a/result.json").read_text())
    result["scores"][0] |= {"mean": None, "ci95": None, "diverged": 30}
    Path("runs/a/result.json").write_text(json.dumps(result))
    assert math.isnan(copied.result["mean"][0])
    assert "30 of 30 tasks diverged" in repr(copied)
    assert math.isnan(metatrain.runs()["mean"][0])


def test_a_run_that_is_under_way_is_opened_too(copied: metatrain.Run) -> None:
    for name in ("result.json", "metrics.jsonl"):
        Path("runs/a", name).unlink()
    assert copied.metrics.empty
    assert copied.metrics.index.name == "step"
    assert repr(copied) == "Run('runs/a': sinusoid, 0 of 3 steps)"
    with pytest.raises(metatrain.InputError, match="has no result yet: train it to its end"):
        _ = copied.result
    assert metatrain.runs()[["steps", "of", "metric"]].values.tolist() == [[0, 3, None]]


@pytest.mark.parametrize(
    "text", ["", "{", "5", "{}", '{"scores": []}', '{"scores": [5]}', "[" * 100_000]
)
def test_a_result_that_is_damaged_is_said_so(copied: metatrain.Run, text: str) -> None:
    Path("runs/a/result.json").write_text(text)
    with pytest.raises(metatrain.InputError, match=r"result\.json is damaged"):
        _ = copied.result
    assert "cannot be read" in repr(copied)
    assert "cannot be read" in copied._repr_html_()


@pytest.mark.parametrize("folder", ["nowhere", ".", "runs/a/bundle", "runs/a/result.json"])
def test_what_is_no_run_is_not_opened(copied: metatrain.Run, folder: str) -> None:
    with pytest.raises(metatrain.InputError, match="holds no run"):
        metatrain.Run(folder)


@pytest.mark.usefixtures("pictures")
def test_notebooks_get_html_in_which_names_are_text() -> None:
    run = metatrain.train(SHORT, name="<b>x", output="<i>y")
    for shown in (
        run._repr_html_(),
        run.compare(run)._repr_html_(),
        metatrain.runs("<i>y")._repr_html_(),
    ):
        assert "&lt;i&gt;" in shown
        assert "<b>x" not in shown
        assert "<i>" not in shown
    assert run.figures._repr_html_().count("data:image/png;base64,") == len(run.figures) == 3
    assert run.figures["example"]._repr_png_().startswith(b"\x89PNG")
    assert "\n" not in repr(run) + repr(run.compare(run))


def test_a_comparison_is_paired_on_the_same_tasks(trained: metatrain.Run) -> None:
    other = metatrain.train(SHORT, outer={"steps": 40}, output="b")
    found = trained.compare(other)
    means = [run.result["mean"][0] for run in (trained, other)]
    assert [found.first_mean, found.second_mean] == pytest.approx(means, rel=1e-6)
    assert found.difference == pytest.approx(means[1] - means[0], rel=1e-4)
    assert found.ci95 < trained.result["ci95"][0] / 2
    assert (found.tasks, found.verdict) == (30, "a difference")
    assert trained.compare(Path(other.folder)) == trained.compare("b") == found
    same = trained.compare(trained)
    assert (same.difference, same.ci95, same.verdict) == (0, 0, "a tie")


@pytest.mark.parametrize(
    "change",
    [
        {"evaluation.seed": 5},
        {"evaluation.tasks": 31},
        {"evaluation.tasks_per_ticket": 6},
        {"evaluation.split": "val"},
        {"evaluation.family": {"shots": 4}},
        {"family.shots": 4},
    ],
)
def test_runs_that_were_tested_on_other_tasks_are_not_compared(
    trained: metatrain.Run, change: dict[str, Any]
) -> None:
    other = metatrain.train(SHORT, output="b", outer={"steps": 1}, **change)
    with pytest.raises(metatrain.InputError, match="were not tested on the same tasks"):
        trained.compare(other)


def test_no_verdict_is_given_where_results_are_no_numbers(trained: metatrain.Run) -> None:
    bad = metatrain.train(SHORT, output="b", **{"evaluation.algorithm": {"inner_lr": 1e30}})
    for first, second in ((trained, bad), (bad, trained), (bad, bad)):
        with pytest.raises(metatrain.InputError, match="b has no finite mse on 30 of 30 tasks"):
            first.compare(second)


def test_runs_lists_what_lies_below_and_notes_what_is_none(
    trained: metatrain.Run, caplog: pytest.LogCaptureFixture
) -> None:
    for i, name in enumerate(
        ["runs/new", "runs/deep/er/old", "runs/.hidden/x", "runs/mlartifacts/0/x"]
    ):
        shutil.copytree(trained.folder, name)
        for path in Path(name).iterdir():
            os.utime(path, (1.7e9 - i, 1.7e9 - i))
    shutil.copytree(trained.folder, "runs/rates/trials/00")
    for name, tree in (("sweep", {"name": "rates"}), ("recipe", SHORT)):
        Path(f"runs/rates/{name}.yaml").write_text(yaml.safe_dump(tree))
    result = json.loads(Path("runs/new/result.json").read_text())
    trials = [{"trial": 0, "step": 3, "state": "completed", "value": None}]
    Path("runs/rates/result.json").write_text(json.dumps(result | {"winner": 0, "trials": trials}))
    Path("runs/loop").symlink_to(Path("runs").absolute())
    Path("runs/notes.txt").touch()
    foreign = {
        "hydra": "db: {driver: mysql}",
        "text": "\x00",
        "list": "- 1",
        "steps": "{name: x, outer: {steps: y}}",
    }
    for name, text in foreign.items():
        Path(f"runs/{name}").mkdir()
        Path(f"runs/{name}/config.yaml").write_text(text)
    Path("runs/half").mkdir()
    Path("runs/half/metrics.jsonl").touch()
    os.mkfifo("runs/half/config.yaml")  # to read it would wait for ever
    found = metatrain.runs()
    assert found.folder.tolist() == ["runs/rates", "runs/new", "runs/deep/er/old"]
    assert found.kind.tolist() == ["sweep", "run", "run"]
    assert found[["name", "steps", "of", "metric"]].values.tolist()[:2] == [
        ["rates", 3, 3, "mse"],
        ["sinusoid", 3, 3, "mse"],
    ]
    assert found.protocol.str.startswith("sinusoid 5-shot").all()
    notes = caplog.text
    assert all(notes.count(f"skipped runs/{name}: ") == 1 for name in [*foreign, "half"])
    assert "Traceback" not in notes
    sweep = metatrain.SweepRun("runs/rates")
    assert sweep.config.output == trained.folder
    assert sweep.metrics.index.tolist() == [1, 2, 3]
    assert math.isnan(sweep.trials["value"][0])
    assert repr(sweep).startswith("SweepRun('runs/rates': rates, 3 of 3 steps, mse ")
    with pytest.raises(metatrain.InputError, match="holds a run and no sweep"):
        metatrain.SweepRun("runs/new")


def test_where_there_are_no_runs_the_table_is_empty(caplog: pytest.LogCaptureFixture) -> None:
    Path("empty").mkdir()
    assert list(metatrain.runs("empty")) == list(metatrain.runs())
    assert len(metatrain.runs("empty")) == len(metatrain.runs()) == 0
    assert "there is no folder runs" in caplog.text


def test_looking_at_runs_imports_no_code_of_theirs(copied: metatrain.Run) -> None:
    tree = yaml.safe_load(Path("runs/a/config.yaml").read_text())
    tree["family"] = {"name": "evil:Family"}
    Path("runs/a/config.yaml").write_text(yaml.safe_dump(tree))
    Path("evil.py").write_text("raise SystemExit(3)")
    assert len(metatrain.runs()) == 1
    assert "3 of 3 steps" in repr(copied)


@pytest.mark.usefixtures("pictures")
@pytest.mark.ray
def test_runs_in_a_storage_are_opened_and_listed(trained: metatrain.Run, s3: S3) -> None:
    run = metatrain.train(SHORT, output="s3://bucket/api/first")
    assert run.result["mean"].tolist() == trained.result["mean"].tolist()
    assert run.metrics.index.tolist() == [1, 2, 3]
    assert run.figures["example"].read_bytes().startswith(b"\x89PNG")
    assert metatrain.runs("s3://bucket/api").folder.tolist() == ["s3://bucket/api/first"]
    assert run.compare(trained).verdict == "a tie"


SWEEP: dict[str, Any] = {
    "name": "rates",
    "recipe": SHORT | {"workers": {"max": 1}},
    "set": {"validation.every_steps": 1, "validation.tasks": 5},
    "space": {"algorithm.inner_lr": {"loguniform": [0.001, 0.1]}},
    "budget": {"trials": 2},
}


@pytest.mark.parametrize(
    ("sweep", "changes", "sentence"),
    [
        (
            SWEEP,
            {"budget": {"trialz": 3}},
            "budget.trialz is not a key of a sweep: did you mean 'trials'",
        ),
        (
            SWEEP,
            {"recipe": {"outer": {"stepz": 1}}},
            "its recipe with `set` of the sweep: outer.stepz is not a key",
        ),
        (SWEEP, {"recipe": "no.yaml"}, "cannot read no.yaml"),
        (SWEEP, {"recipe": 5}, "recipe is 5, expected a valid string"),
        (
            SWEEP,
            {"space": {"outer.steps": {"choice": [1]}}},
            "space.outer.steps cannot be searched",
        ),
        (SWEEP, {"space": 5}, "space is 5, expected keys with their values"),
        ({"name": "x"}, {}, "recipe is missing"),
        (5, {}, "the sweep is 5, expected a YAML file's path, a dict or the dataclass"),
        (SWEEP, {"resume": True}, "resume is True, expected 'auto' or a sweep's folder"),
        (
            SWEEP,
            {"resume": "nowhere"},
            "nowhere holds no sweep to continue: give a sweep's folder, or resume='auto'",
        ),
        (SHORT, {}, "the sweep is a recipe: give it to metatrain.train"),
    ],
)
def test_a_bad_sweep_is_one_sentence(sweep: Any, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(metatrain.InputError) as raised:
        metatrain.tune(sweep, **changes)
    assert sentence in str(raised.value)
    assert not Path("runs").exists()


def test_a_sweep_file_names_its_recipe_from_where_it_lies() -> None:
    Path("sweeps").mkdir()
    Path("sweeps/recipe.yaml").write_text(yaml.safe_dump(SWEEP["recipe"]))
    Path("sweeps/sweep.yaml").write_text(yaml.safe_dump(SWEEP | {"recipe": "recipe.yaml"}))
    for sweep in ("sweeps/sweep.yaml", SWEEP | {"recipe": Path("sweeps/recipe.yaml")}):
        with pytest.raises(metatrain.InputError, match=r"space\.outer\.steps cannot be searched"):
            metatrain.tune(sweep, space={"outer.steps": {"choice": [1]}})


@pytest.mark.ray
def test_ray_trains_twice_in_one_process_and_tunes(
    ray_cluster: None, trained: metatrain.Run
) -> None:
    runs = [metatrain.train(SHORT, workers={"max": 1}) for _ in range(2)]
    assert [run.result["mean"][0] for run in runs] == 2 * [trained.result["mean"][0]]
    before = copy.deepcopy(SWEEP)
    found = metatrain.tune(
        SWEEP, space={"algorithm.inner_lr": {"choice": [0.01, 0.02]}}, **{"budget.steps": 2}
    )
    assert before == SWEEP
    assert found.folder == "runs/rates"
    assert len(found.trials) == 2
    assert set(found.trials["algorithm.inner_lr"]) <= {0.01, 0.02}
    assert found.trials["state"].tolist() == ["completed", "completed"]
    assert found.trials["diverged_tasks"].tolist() == [0, 0]
    assert ", val split, " in found.chosen_by
    assert "winner: trial " in repr(found)
    assert "algorithm.inner_lr 0.0" in repr(found)
    assert found.config.outer.steps == 2
    assert found.result["metric"].tolist() == ["mse"]
    assert found.compare(runs[0]).tasks == 30
    with pytest.raises(metatrain.InputError, match="pass resume='auto' to continue it"):
        metatrain.tune(SWEEP)
    assert sorted(metatrain.runs().kind) == ["run", "run", "sweep"]
