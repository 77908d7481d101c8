"""MLflow holds every result, and can neither slow nor stop training."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import GLYPHS, PROBES, SINUSOID, config, free_port, store

from cluster import run, tracking
from cluster.config import RunConfig, Tracking
from cluster.ui import served
from metatrain.core import InputError
from metatrain.tasks import open_data

pytestmark = pytest.mark.ray


def history(uri: str, run_id: str, name: str) -> dict[int, float]:
    from mlflow.tracking import MlflowClient

    return {m.step: m.value for m in MlflowClient(uri).get_metric_history(run_id, name)}


def test_a_run_is_in_mlflow_with_params_tags_metrics_and_artifacts(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    settings = config(
        GLYPHS,
        tracking__uri=uri,
        outer__steps=4,
        validation={"every_steps": 2, "tasks": 4},
        evaluation__tasks=8,
        output=str(tmp_path / "g"),
    )
    _, (score,) = run.train(settings)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("metatrain")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "glyphs"
    assert found.data.params["algorithm.inner_lr"] == "0.4"
    assert found.data.params["family.data"] == "glyphs"
    assert found.data.tags["version.torch"]
    assert len(found.data.tags["mlflow.source.git.commit"]) == 40
    tested = {name: value for name, value in found.data.metrics.items() if name.startswith("test/")}
    assert tested == pytest.approx(
        {
            "test/accuracy": score.mean,
            "test/accuracy_ci95": score.ci95,
            "test/accuracy_before": score.curve[0],
            "test/nearest_neighbour_on_pixels": score.baselines["nearest_neighbour_on_pixels"],
        }
    )
    assert found.data.params["family.checksum"] == open_data("glyphs").checksum
    run_id = found.info.run_id
    for name in ("train/loss_before", "train/accuracy_after", "learner/gradient_norm", "run/tasks_per_s"):
        assert sorted(history(uri, run_id, name)) == [1, 2, 3, 4]
    assert sorted(history(uri, run_id, "val/accuracy_after")) == [0, 2, 4]
    artifacts = {a.path for a in client.list_artifacts(run_id)}
    assert artifacts == {"result.json", "figures", "bundle", "config.yaml"}
    assert {Path(a.path).name for a in client.list_artifacts(run_id, "figures")} == {
        "adaptation_curve.png",
        "example.png",
        "learning_curve.png",
    }
    assert {Path(a.path).name for a in client.list_artifacts(run_id, "bundle")} == {
        "manifest.json",
        "meta.safetensors",
        "recipe.yaml",
    }


def test_what_an_algorithm_learns_is_in_mlflow_and_so_is_its_outer_group(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    run.train(config(PROBES["meta-sgd"], tracking__uri=uri, evaluation__tasks=8, output=str(tmp_path / "g")))
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("metatrain").experiment_id])
    assert found.data.params["outer.groups.algorithm._.lr"] == "0.1"  # MLflow takes no * in a name
    rates = history(uri, found.info.run_id, "algorithm/rate.head.bias")
    assert sorted(rates) == [1, 2, 3, 4]
    assert len(set(rates.values())) == 4
    assert "figures/learned.png" in {a.path for a in client.list_artifacts(found.info.run_id, "figures")}


def test_a_resumed_run_continues_its_mlflow_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)

    def settings(steps: int) -> RunConfig:
        return config(SINUSOID, tracking__uri=uri, outer__steps=steps, output=str(tmp_path / "s"))

    run.train(settings(3))
    run.train(settings(6), resume="auto")
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("metatrain").experiment_id])
    assert sorted(history(uri, found.info.run_id, "train/mse_after")) == [1, 2, 3, 4, 5, 6]
    assert found.info.status == "FINISHED"


def test_metrics_are_logged_as_often_as_asked(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    settings = config(SINUSOID, tracking={"uri": uri, "every_steps": 5}, validation={"every_steps": 7, "tasks": 4})
    run.train(settings)
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("metatrain").experiment_id])
    assert sorted(history(uri, found.info.run_id, "train/mse_after")) == [5, 10, 15, 20]
    assert sorted(history(uri, found.info.run_id, "val/mse_after")) == [0, 7, 14, 20]


def test_an_unreachable_server_is_one_sentence_at_the_start(tmp_path: Path) -> None:
    started = time.monotonic()
    settings = config(SINUSOID, tracking__uri=f"http://127.0.0.1:{free_port()}", output=str(tmp_path / "s"))
    with pytest.raises(InputError, match=r"MLflow does not answer at http://127.0.0.1.*set tracking.uri"):
        run.train(settings)
    assert time.monotonic() - started < 30
    assert not (tmp_path / "s" / "checkpoints").exists()


def test_a_server_that_dies_neither_stops_nor_slows_training(
    mlflow_server: tuple[str, subprocess.Popen[bytes]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, process = mlflow_server
    tracker = tracking.MLflowTracker(Tracking(uri=uri), "s", [], None, {})
    tracker.log(1, {"train/loss_after": 1.0})
    deadline = time.monotonic() + 30
    while not history(uri, tracker.run_id, "train/loss_after"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    place = tracker.place()
    assert place is not None
    with served(place, 0) as (page, wait):  # `metatrain ui`: the server is there already
        assert page == f"{uri}/#/experiments/{place.experiment_id}/runs/{tracker.run_id}"
        wait()
    os.killpg(process.pid, signal.SIGSTOP)  # worse than dead: it accepts and never answers
    started = time.monotonic()
    for step in range(2, 2000):
        tracker.log(step, {"train/loss_after": 1.0})
    assert time.monotonic() - started < 1.0
    os.killpg(process.pid, signal.SIGKILL)
    tracker.finish("FINISHED")
    assert tracker.errors >= 1
    assert "metrics.jsonl is complete" in caplog.text


def test_metrics_of_an_outage_arrive_once_it_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    tracker = tracking.MLflowTracker(Tracking(uri=uri), "s", [], None, {})
    original, failures = MlflowClient.log_batch, [OSError("down"), OSError("down")]

    def flaky(self: MlflowClient, *args: object, **kwargs: object) -> object:
        if failures:
            raise failures.pop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    for step in range(1, 6):
        tracker.log(step, {"train/loss_after": float(step)})
    deadline = time.monotonic() + 30
    while len(history(uri, tracker.run_id, "train/loss_after")) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    tracker.finish("FINISHED")
    assert tracker.errors == 2


def test_passwords_are_not_shown_and_not_recorded() -> None:
    with pytest.raises(InputError, match=r"tracking\.uri holds a password") as caught:
        config(SINUSOID, tracking__uri="https://me:hunter2@mlflow.example")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(InputError, match=r"checkpoint\.uri holds a password"):
        config(SINUSOID, checkpoint__uri="s3://key:hunter2@bucket/run")
    assert tracking.shown("https://me:hunter2@host/x") == "https://me:***@host/x"
    assert tracking.shown("sqlite:///mlflow.db") == "sqlite:///mlflow.db"


def test_a_password_in_the_environment_does_not_reach_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="MLflow does not answer") as caught:
        run.train(config(SINUSOID, tracking__uri=None))
    assert "hunter2" not in str(caught.value)


def test_where_runs_go_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:

    assert tracking.store(Tracking()) == f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    assert tracking.store(Tracking()) == "http://somewhere"
    assert tracking.store(Tracking(uri="sqlite:///x.db")) == f"sqlite:///{tmp_path / 'x.db'}"
    assert tracking.store(Tracking(uri="sqlite:////srv/x.db")) == "sqlite:////srv/x.db"


def test_a_trial_goes_on_without_a_server_and_no_password_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://me:hunter2@127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        ready = run.prepare(config(SINUSOID, tracking__uri=None, outer__steps=1, output=str(tmp_path / "s")))
        with run.tracked(ready, {tracking.PARENT: "0" * 32}) as tracker:
            assert isinstance(tracker, tracking.NoTracker)
        assert not tracking.end(Tracking(), "0" * 32, "FINISHED", 0.0)
    assert "MLflow does not answer at http://me:***@" in caplog.text
    assert "MLflow did not take that run" in caplog.text
    assert "hunter2" not in caplog.text
