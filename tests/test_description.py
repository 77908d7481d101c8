"""What MLflow shows of a run besides its numbers: where it comes from, what it came to, what to do
with it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cases import CASES, GLYPHS, SINUSOID, config
from services import store

from cluster import closing, run
from cluster.config import Tracking
from cluster.jobs.job import COMMIT, JOB, USER
from cluster.tracking import (
    description,
    mlflow_run,
    mlflow_tracker,
    provenance,
    recording,
    sender,
)
from cluster.tracking.place import store_uri
from cluster.tracking.sender import BATCH
from metatrain.core import InputError
from metatrain.evaluate import Score
from metatrain.metrics import ACCURACY

ROOT = Path(__file__).parent.parent


def score(norm: str = "transductive", **changes: Any) -> Score:
    values: dict[str, Any] = {
        "metric": ACCURACY,
        "mean": 0.75,
        "ci95": 0.02,
        "tasks": 40,
        "diverged": 0,
        "median": 0.75,
        "quartiles": (0.7, 0.8),
        "norm": norm,
        "protocol": "5-way 1-shot",
        "steps": [0, 1, 2, 3, 4],
        "curve": [0.2, 0.5, 0.6, 0.7, 0.75],
        "curve_ci95": [0.1] * 5,
        "curve_diverged": [0] * 5,
        "curve_median": [0.5] * 5,
        "curve_quartiles": [(0.4, 0.6)] * 5,
        "baselines": {"nearest_neighbour_on_pixels": 0.45},
        "differences": {"nearest_neighbour_on_pixels": (0.3, 0.02)},
        "measures": {"ece": 0.125},
    }
    return Score(**values | changes)


def test_each_family_and_its_data_have_an_experiment() -> None:
    for family, name in (
        (config(GLYPHS).family, "fewshot glyphs"),
        (config(SINUSOID).family, "sinusoid"),
        (config(CASES["rl2"]).family, "bandit"),
        (SimpleNamespace(name="fewshot", data="/data/my.images/"), "fewshot my"),
        (SimpleNamespace(name="table", data="s3://bucket/houses.csv"), "table houses"),
        (SimpleNamespace(name="recipes.own:Parabolas", data="x"), "Parabolas"),
    ):
        assert provenance.experiment(family) == name
    assert recording.experiment_of(config(SINUSOID)).experiment == "sinusoid"
    assert (
        recording.experiment_of(config(SINUSOID, tracking__experiment="metatrain")).experiment
        == "metatrain"
    )


def test_a_commit_says_whether_the_checkout_has_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    module = tmp_path / "cluster" / "tracking" / "provenance.py"
    module.parent.mkdir(parents=True)
    shutil.copy(ROOT / "cluster" / "tracking" / "provenance.py", module)
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.commit() == ""
    git("init", "-q")
    git("add", "cluster")
    git("commit", "-q", "-m", "first")
    git("tag", "v1")
    assert provenance.commit() == git("rev-parse", "HEAD")
    module.write_text("# changed\n")
    assert provenance.commit() == git("rev-parse", "HEAD") + "-dirty"
    # Installed in a folder of somebody else's checkout.
    inside = tmp_path / "site-packages" / "cluster" / "tracking" / "provenance.py"
    inside.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inside))
    assert provenance.commit() == ""


def test_a_job_tells_who_sent_it_and_from_which_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    here = provenance.tags("runs/a", "demo", "recipes/demo.yaml")
    assert here["metatrain.recipe"] == here["mlflow.source.name"] == "recipes/demo.yaml"
    assert here["metatrain.output"] == str(Path("runs/a").absolute())
    assert (here["mlflow.source.type"], "metatrain.job" in here) == ("LOCAL", False)
    for name, value in ((JOB, "demo-1"), (COMMIT, "abc-dirty"), (USER, "somebody")):
        monkeypatch.setenv(name, value)
    sent = provenance.tags("s3://bucket/a", "demo", "recipe.yaml")
    assert sent["metatrain.recipe"] == "demo"  # the file is a copy, which has another name there
    assert sent["metatrain.output"] == "s3://bucket/a"
    assert (sent["mlflow.user"], sent["mlflow.source.git.commit"]) == ("somebody", "abc-dirty")
    assert (sent["mlflow.source.type"], sent["metatrain.job"]) == ("JOB", "demo-1")
    monkeypatch.setenv(COMMIT, "")  # what was sent was no checkout
    assert "mlflow.source.git.commit" not in provenance.tags("s3://bucket/a", "demo", None)


def test_who_has_no_name_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr(provenance.getpass, "getuser", nameless)
    assert "mlflow.user" not in provenance.tags("a", "b", None)


def test_passwords_are_not_shown_and_not_recorded() -> None:
    with pytest.raises(InputError, match=r"uri holds a password") as caught:
        config(SINUSOID, tracking__uri="https://me:hunter2@mlflow.example")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InputError, match=r"uri holds a password"):
        config(SINUSOID, checkpoint__uri="s3://key:hunter2@bucket/run")
    assert config(SINUSOID, tracking__uri="https://me@mlflow.example").tracking.uri
    assert config(SINUSOID, tracking__uri="sqlite:///x.db?timeout=5").tracking.uri


def test_where_runs_go_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert store_uri(Tracking()) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    assert store_uri(Tracking()) == "http://somewhere"
    assert store_uri(Tracking(uri="sqlite:///x.db")) == f"sqlite:///{tmp_path / 'x.db'}"
    assert store_uri(Tracking(uri="sqlite:////srv/x.db")) == "sqlite:////srv/x.db"


def test_the_columns_of_an_experiment_are_those_of_all_its_runs() -> None:
    first = description.view("", ["test/accuracy"])
    second = json.loads(description.view(first, ["test/mse", "test/accuracy"]))
    assert second["selectedColumns"][:2] == ["metrics.`test/accuracy`", "metrics.`test/mse`"]
    assert description.view(json.dumps(second), ["test/accuracy"]) == json.dumps(second)
    for damaged in ("{", "[]", "1", '{"selectedColumns": 3}', '{"selectedColumns": [3]}'):
        assert (
            json.loads(description.view(damaged, ["test/mse"]))["selectedColumns"][0]
            == "metrics.`test/mse`"
        )


def test_metrics_go_in_batches_and_what_failed_goes_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metric = namedtuple("metric", "key value timestamp step")  # for MLflow's, a second to import
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=metric))
    monkeypatch.setattr(sender, "DRAIN_S", 3600.0)  # no round takes a part of the points
    names = [f"train/{i}" for i in range(2 * BATCH + 1)]
    batches: list[list[str]] = []

    def log_batch(run_id: str, metrics: Any) -> None:
        batches.append([metric.key for metric in metrics])
        if len(batches) == 2:
            raise ConnectionError

    client: Any = SimpleNamespace(log_batch=log_batch, set_terminated=lambda *_: None)
    opened = mlflow_run.Opened(client, "1", "run", set(), False)
    monkeypatch.setattr(mlflow_tracker, "open_run", lambda *_: opened)
    tracker = mlflow_tracker.MLflowTracker(Tracking(uri="sqlite:///x.db"), "s", [], None, {})
    tracker.log(1, dict.fromkeys(names, 1.0))
    tracker.flush()
    tracker.finish("FINISHED")
    assert tracker.errors == 1
    assert [len(batch) for batch in batches] == [BATCH, BATCH, BATCH, 1]
    assert [name for batch in batches[:1] + batches[2:] for name in batch] == names


def test_scores_have_the_names_of_their_norms() -> None:
    scores = [score(), score("support+1", mean=0.7, curve=[0.1, 0.4, 0.5, 0.6, 0.7])]
    found = description.as_metrics(scores)
    assert found["test/accuracy"] == 0.75
    assert found["test/support_plus_1/accuracy"] == 0.7
    assert found["test/support_plus_1/accuracy_ci95"] == 0.02
    assert found["test/support_plus_1/accuracy_before"] == 0.1
    assert found["test/ece"] == found["test/support_plus_1/ece"] == 0.125
    curve = description.adaptation(scores)
    assert curve[0] == {"adaptation/accuracy": 0.2, "adaptation/support_plus_1/accuracy": 0.1}
    assert [curve[step]["adaptation/accuracy"] for step in range(5)] == scores[0].curve
    assert description.adaptation([score(steps=[0], curve=[0.8])]) == {}  # it adapts without steps


def test_the_result_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    closing.print_results([score(), score("support+1", mean=0.5), score(evaluation="ways10")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("%")[0] for line in lines] == [
        "result: accuracy=50.00",
        "result ways10: accuracy=75.00",
        "result: accuracy=75.00",
    ]


def test_a_description_says_the_result_and_keeps_what_others_wrote_below_it() -> None:
    empty = description.note("5-way", ["python\nimport metatrain"])
    assert "There is no result yet." in empty
    full = description.note(
        "5-way", ["python\nimport metatrain"], [score(), score("support+1", diverged=2)]
    )
    for line in (
        "| before adaptation | 20.00% |",
        "| after step 3 | 70.00% |",
        "| **result**, 40 tasks | **75.00% ± 2.00** |",
        "| nearest neighbour on pixels | 45.00% |",
        "| **result**, 40 tasks | **median 75.00%, 2 of 40 tasks diverged** |",
        "**Protocol:** 5-way",
        "```python\nimport metatrain\n```",
    ):
        assert line in full
    assert "after step 4" not in full  # that is the result
    assert description.merged(full, "") == full
    assert description.merged(full, empty) == full
    assert description.merged(full, "mine") == f"{full}\n\nmine"
    assert description.merged(full, f"{empty}\n\nmine\nand more") == f"{full}\n\nmine\nand more"


@pytest.mark.ray
def test_a_metric_that_is_zero_all_along_is_not_sent_and_a_result_of_zero_is(
    tmp_path: Path,
) -> None:
    from mlflow.tracking import MlflowClient

    def history(run_id: str, name: str) -> list[tuple[int, float]]:
        return [
            (m.step, m.value)
            for m in MlflowClient(store(tmp_path)).get_metric_history(run_id, name)
        ]

    settings = Tracking(uri=store(tmp_path), every_steps=2)
    tracker = mlflow_tracker.MLflowTracker(settings, "s", [], None, {})
    for step in range(1, 6):
        lost = float(step == 4) + float(step == 5)
        metrics = {
            "train/accuracy_after": 0.0,
            "system/lost_tickets": lost,
            "system/dropped_updates": 0.0,
        }
        tracker.log(step, metrics)
    tracker.log(5, {"test/accuracy": 0.0})
    tracker.log(0, {"adaptation/accuracy": 0.0})
    tracker.log(1, {"adaptation/accuracy": 0.5})
    tracker.finish("FINISHED")
    parent = tracker.run_id
    assert history(parent, "system/dropped_updates") == []
    assert history(parent, "system/lost_tickets") == [(4, 1.0), (5, 1.0)]
    assert history(parent, "train/accuracy_after") == [
        (2, 0.0),
        (4, 0.0),
        (5, 0.0),
    ]  # the last of all is there, too
    assert history(parent, "test/accuracy") == [(5, 0.0)]
    assert history(parent, "adaptation/accuracy") == [(0, 0.0), (1, 0.5)]

    other = Tracking(uri=store(tmp_path), experiment="another")
    child = mlflow_tracker.MLflowTracker(other, "t", [], None, {mlflow_run.PARENT: parent})
    child.log(
        1,
        {
            "val/mse_after": 1.0,
            "system/tasks_per_s": 9.0,
            "learner.lr": 0.1,
            "searched.outer.lr": 0.1,
        },
    )
    child.finish("FINISHED")
    found = MlflowClient(store(tmp_path)).get_run(child.run_id)
    assert found.data.metrics == {"val/mse_after": 1.0, "searched.outer.lr": 0.1}
    assert (
        found.info.experiment_id == MlflowClient(store(tmp_path)).get_run(parent).info.experiment_id
    )


@pytest.mark.ray
def test_a_run_of_the_experiment_that_used_to_be_the_default_goes_on_there(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    def train(steps: int, experiment: str | None, resume: str | None) -> None:
        changes = {"outer__steps": steps, "evaluation__tasks": 2, "output": str(tmp_path / "s")}
        named = {"tracking__uri": store(tmp_path), "tracking__experiment": experiment}
        run.train(config(SINUSOID, **named, **changes), resume=resume)

    train(1, "metatrain", None)
    client = MlflowClient(store(tmp_path))
    (before,) = client.search_runs([client.get_experiment_by_name("metatrain").experiment_id])
    client.set_tag(
        before.info.run_id, description.NOTE, before.data.tags[description.NOTE] + "\n\nmine"
    )
    train(2, None, "auto")
    assert client.get_experiment_by_name("sinusoid") is None
    (after,) = client.search_runs([before.info.experiment_id])
    assert after.info.run_id == before.info.run_id
    assert "trained 2 steps" in after.data.tags[description.NOTE]
    assert after.data.tags[description.NOTE].endswith("\n\nmine")
