"""`metatrain ui` shows the run, its curves and its pictures, and leaves no server behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from cases import GLYPHS, SINUSOID, config
from services import command, free_port, store

from cluster import run
from cluster.config import Tracking
from cluster.tracking.mlflow_tracker import MLflowTracker
from cluster.tracking.pages import page, served
from cluster.tracking.place import Place

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("pictures")
def test_ui_serves_the_store_of_a_run_until_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "50% of #1? ***"
    here.mkdir()
    monkeypatch.chdir(here)
    folder = here / "run"
    run.train(
        config(GLYPHS, tracking__uri=None, outer__steps=3, evaluation__tasks=4, output=str(folder))
    )
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):  # it is taken
        arguments = [sys.executable, "-m", "tuning.cli", "ui", str(folder), "--port", str(port)]
        proxied = os.environ | {"http_proxy": "http://127.0.0.1:9"}  # which loopback needs not
        process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd="/",
            env=proxied,
        )
        assert process.stdout is not None
        printed = process.stdout.readline()
    try:
        run_page = r"/#/experiments/(\d+)/runs/(\w{32})\?workflowType=machine_learning"
        found = re.fullmatch(rf"MLflow: (http://127\.0\.0\.1:\d+){run_page}\n", printed)
        assert found, printed
        address, experiment_id, run_id = found.groups()
        assert int(address.rpartition(":")[2]) > port  # the next free one
        with urlopen(address, timeout=600) as answer:
            assert b"<title>MLflow</title>" in answer.read()
        with urlopen(f"{address}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=600) as answer:
            shown = json.loads(answer.read())["run"]
        assert shown["info"]["experiment_id"] == experiment_id
        assert {"train/accuracy_after", "test/accuracy"} <= {
            metric["key"] for metric in shown["data"]["metrics"]
        }
        for picture in ("learning_curve", "adaptation_curve", "example"):
            query = urlencode({"path": f"figures/{picture}.png", "run_uuid": run_id})
            with urlopen(f"{address}/get-artifact?{query}", timeout=600) as answer:
                assert answer.read() == (folder / "figures" / f"{picture}.png").read_bytes()
        process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 0
        with pytest.raises(URLError):
            urlopen(address, timeout=5)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def test_without_a_folder_the_runs_beside_the_newest_one_open(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, training = store(tmp_path), "workflowType=machine_learning"
    for name, columns in (("a", ["test/mse"]), ("b", [])):
        tracker = MLflowTracker(
            Tracking(uri=uri, experiment=name), "s", [], None, {}, columns=columns
        )
        tracker.finish("FINISHED")
        place = tracker.place()
        assert place is not None
        view = (
            "viewStateShareKey=results&" if columns else ""
        )  # without one MLflow would go to another page
        assert page(Place(uri)) == f"/#/experiments/{place.experiment_id}/runs?{view}{training}"
    with served(Place(uri), free_port()) as (address, _):
        assert address.endswith(page(Place(uri)))
    for experiment in MlflowClient(uri).search_experiments(filter_string="name != 'Default'"):
        MlflowClient(uri).delete_experiment(experiment.experiment_id)
    assert page(Place(uri)) == f"/#/experiments?{training}"


def test_ui_says_what_is_missing(tmp_path: Path) -> None:
    def refused(sentence: str, *arguments: str) -> None:
        done = command("ui", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.match(f"error: {sentence}", done.stderr), done.stderr

    refused(
        r"there is no MLflow store sqlite:////.*/mlflow\.db yet: train first, or name the run's "
        r"folder"
    )
    refused(
        "nowhere holds no run that was logged to MLflow: give the folder that `train` named",
        "nowhere",
    )
    run.train(config(SINUSOID, outer__steps=1, output=str(tmp_path / "untracked")))
    refused("untracked holds no run that was logged to MLflow", "untracked")
    (tmp_path / "untracked" / "mlflow.json").write_text("{")
    refused(r"untracked/mlflow\.json is damaged", "untracked")
    (tmp_path / "untracked" / "mlflow.json").write_text(json.dumps({"uri": "http://127.0.0.1:9"}))
    refused(
        "MLflow does not answer at http://127.0.0.1:9: start it, or check the address", "untracked"
    )
    (tmp_path / "untracked" / "mlflow.json").write_text(
        json.dumps({"uri": "postgresql://me:***@host/db"})
    )
    refused(
        "the store's password is not recorded: give its address in MLFLOW_TRACKING_URI", "untracked"
    )
    (tmp_path / "untracked" / "mlflow.json").write_text(json.dumps({"uri": None}))
    refused(r"untracked/mlflow\.json is damaged \(its values are not text\)", "untracked")
    (tmp_path / "mlflow.db").write_text("no database" * 100)
    refused(r"MLflow cannot use sqlite:////.*/mlflow\.db \(file is not a database\): fix that")
