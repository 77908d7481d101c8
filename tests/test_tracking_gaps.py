"""What MLflow lacks of a run is sent by resuming it, and by `metatrain metrics sync`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from cases import SINUSOID, config
from services import command, free_port, store, until

from cluster import run
from cluster.config import RunConfig
from cluster.tracking import description
from cluster.tracking.place import place_of
from cluster.tracking.sync import sync
from metatrain import schema
from metatrain.addresses import without_secrets
from metatrain.core import InputError

pytestmark = pytest.mark.ray

# A driver that trains the run of a configuration, given as JSON.
DRIVER = """
import json, sys
from cluster import run
from cluster.config import RunConfig
from metatrain import schema
run.train(schema.parse(RunConfig, json.loads(sys.argv[1]), "recipe"))
"""
# What no line of metrics.jsonl has.
OTHERS = ("test/", "adaptation/", "system/driver/")


def settings(folder: Path, steps: int) -> RunConfig:
    return config(
        SINUSOID,
        tracking__uri=store(folder),
        outer__steps=steps,
        validation={"every_steps": 10, "tasks": 2},
        evaluation__tasks=4,
        checkpoint__every_steps=20,
        output=str(folder / "s"),
    )


def check_record(folder: Path, status: str) -> None:
    """MLflow has the numbers of metrics.jsonl, each step once, with their time, and the status."""
    from mlflow.tracking import MlflowClient

    client, run_id = MlflowClient(store(folder)), place_of(folder / "s").run_id
    rows = [json.loads(line) for line in (folder / "s/metrics.jsonl").read_text().splitlines()]
    times = {row["step"]: row["at_ms"] for row in rows}
    recorded = client.get_run(run_id)
    assert recorded.info.status == status
    sent = {"train/mse_after", "val/mse_after", "learner.lr", "system/workers"}
    assert sent <= recorded.data.metrics.keys()
    for name in recorded.data.metrics:
        history = sorted(client.get_metric_history(run_id, name), key=lambda point: point.step)
        steps = [point.step for point in history]
        assert len(set(steps)) == len(steps), name
        if not name.startswith(OTHERS):
            assert steps == [row["step"] for row in rows if name in row], name
            # Of a step that was made twice MLflow keeps the first attempt.
            assert all(point.timestamp <= times[point.step] for point in history), name
        if not name.startswith("system/") and not name.startswith(OTHERS):
            assert [point.value for point in history] == [row[name] for row in rows if name in row]


def test_a_killed_driver_leaves_a_record_that_sync_and_resuming_make_whole(tmp_path: Path) -> None:
    tree, folder = json.dumps(schema.dump(settings(tmp_path, 3000))), tmp_path / "s"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, tree], stderr=subprocess.DEVNULL)
    metrics = folder / "metrics.jsonl"
    until(lambda: metrics.exists() and len(metrics.read_bytes().splitlines()) > 50)
    under_way = command("metrics", "sync", str(folder))
    driver.kill()
    driver.wait()
    assert under_way.returncode == 2
    assert "works on the run in" in under_way.stderr
    made = len(metrics.read_text().splitlines()) - 1  # one is of step 0
    done = command("metrics", "sync", str(folder))
    assert f"MLflow has all of {folder}: {made} outer steps, KILLED" in done.stdout
    check_record(tmp_path, "KILLED")
    run.train(settings(tmp_path, made + 10), resume="auto")
    check_record(tmp_path, "FINISHED")


def test_a_run_is_resumed_without_mlflow_and_sent_by_the_command_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run.train(settings(tmp_path, 20))
    tracking = {"uri": f"http://127.0.0.1:{free_port()}"}  # nobody is there
    away = schema.dump(settings(tmp_path, 40)) | {"tracking": tracking}
    run.train(schema.parse(RunConfig, away, "recipe"), resume="auto")
    (said,) = (text for text in caplog.messages if "MLflow does not answer" in text)
    words = said.partition("until `")[2].partition("`")[0].split()
    assert words[1:3] == ["metrics", "sync"]
    assert command(*words[1:]).returncode == 0
    client, run_id = MlflowClient(store(tmp_path)), place_of(tmp_path / "s").run_id
    history = client.get_metric_history(run_id, "train/mse_after")
    assert [point.step for point in history] == list(range(1, 41))
    assert client.get_run(run_id).data.metrics["test/mse"] > 0


def test_a_run_that_ends_without_mlflow_is_sent_by_the_command_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    send = MlflowClient.log_batch

    def away(self: MlflowClient, run_id: str, metrics: Any = (), **other: Any) -> None:
        if metrics:
            raise requests.ConnectionError("nobody is there")
        send(self, run_id, **other)

    folder, client = tmp_path / "s", MlflowClient(store(tmp_path))
    with monkeypatch.context() as outage:
        outage.setattr(MlflowClient, "log_batch", away)
        run.train(settings(tmp_path, 30))
    place = place_of(folder)
    assert client.get_run(place.run_id).info.status == "RUNNING"
    assert client.get_run(place.run_id).data.metrics == {}
    (said,) = (text for text in caplog.messages if "MLflow lacks a part of this run" in text)
    words = said.partition("to send it: ")[2].split()
    assert words[1:3] == ["metrics", "sync"]

    def check() -> str:
        check_record(tmp_path, "FINISHED")
        found = client.get_run(place.run_id)
        result = json.loads((folder / "result.json").read_text())["scores"][0]
        assert found.data.metrics["test/mse"] == result["mean"]
        assert "**result**" in found.data.tags[description.NOTE]
        assert {item.path for item in client.list_artifacts(place.run_id)} >= {
            "bundle",
            "config.yaml",
            "result.json",
        }
        (model,) = found.outputs.model_outputs
        return str(model.model_id)

    done = command(*words[1:])
    assert (done.returncode, done.stdout.count("30 outer steps, FINISHED")) == (0, 1)
    model = check()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ended_ms = client.get_run(place.run_id).info.end_time
    assert ended_ms == rows[-1]["at_ms"]
    sync(f"file://{folder}")  # as in a storage
    assert check() == model
    run.train(settings(tmp_path, 30), resume="auto")
    assert check() == model
    (folder / "metrics.jsonl").write_text(
        "".join(f"{json.dumps(row)}\n" for row in rows[:-9])
        + '{"step": 30, "val/mse_after": "x"}\n{"step": 29, "at_ms": NaN}\n'
    )
    assert sync(str(folder)).sentence("s") == (
        "MLflow has what is left of s: 21 of 30 outer steps, FINISHED"
    )
    assert f"{folder}/metrics.jsonl lacks 9 of the 30 outer steps" in caplog.messages


def test_what_cannot_be_sent_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(sentence: str) -> None:
        with pytest.raises(InputError) as error:
            sync(str(tmp_path))
        assert sentence in str(error.value)
        assert "hunter2" not in str(error.value)

    refused("holds no run that was logged to MLflow")
    (tmp_path / "config.yaml").write_text("tracking: {every_steps: 1}")
    place = {"experiment_id": "1", "run_id": "0" * 32}
    uri = f"http://me:hunter2@127.0.0.1:{free_port()}"
    (tmp_path / "mlflow.json").write_text(json.dumps(place | {"uri": without_secrets(uri)}))
    refused("the store's password is not recorded: set MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    refused("MLflow does not answer at http://***@127.0.0.1")
    (tmp_path / "mlflow.json").write_text(json.dumps(place | {"uri": store(tmp_path)}))
    refused(f"MLflow's run {'0' * 32} is deleted or unknown")
    (tmp_path / "sweep.yaml").write_text("")
    refused("is not the folder of one run")
