"""MLflow holds every result, and can neither slow nor stop training."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cases import CASES, GLYPHS, SINUSOID, config
from services import free_port, store, until

from cluster import run
from cluster.config import RunConfig, Tracking
from cluster.tracking import (
    description,
    mlflow_errors,
    mlflow_run,
    mlflow_store,
    mlflow_tracker,
    parameters,
    provenance,
    recording,
)
from cluster.tracking.pages import served
from cluster.tracking.place import place_of, store_uri
from cluster.tracking.tracker import NoTracker
from metatrain.core import InputError
from metatrain.start import prepare
from metatrain.tasks import open_data

pytestmark = pytest.mark.ray

# A process that dies while it makes a store: by its twentieth table.
DYING = """
import os, signal
from sqlalchemy import Engine, event
from cluster.config import Tracking
from cluster.tracking.tracker import start_tracker

made = []

@event.listens_for(Engine, "before_cursor_execute")
def count(connection, cursor, statement, *others):
    made.extend([statement] * statement.strip().startswith("CREATE TABLE"))
    if len(made) == 20:
        os.kill(os.getpid(), signal.SIGKILL)

start_tracker(Tracking(), "a", [])
"""
# A process that makes a run in each of some new folders at the same moment as others.
TOGETHER = """
import os, sys, time
from pathlib import Path
from cluster.tracking.tracker import start_tracker
from cluster.config import Tracking
import mlflow.tracking

name, others, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
top = Path.cwd()
for number in range(rounds):
    (top / f"ready-{number}-{name}").touch()
    while len(list(top.glob(f"ready-{number}-*"))) < others:
        time.sleep(0.001)
    folder = top / f"round-{number}"
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    tracker = start_tracker(Tracking(), name, [("seed", name)])
    tracker.log(1, {"loss": 1.0})
    tracker.finish("FINISHED")
    assert tracker.errors == 0
"""


def history(uri: str, run_id: str, name: str) -> dict[int, float]:
    from mlflow.tracking import MlflowClient

    return {m.step: m.value for m in MlflowClient(uri).get_metric_history(run_id, name)}


@pytest.mark.usefixtures("pictures")
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
    experiment = client.get_experiment_by_name("fewshot glyphs")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert re.fullmatch(r"glyphs \d{4}-\d\d-\d\d \d\d:\d\d", found.info.run_name)
    assert found.data.params["algorithm.inner_lr"] == "0.4"
    assert found.data.params["family.data"] == "glyphs"
    assert found.data.tags["version.torch"]
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", found.data.tags["mlflow.source.git.commit"])
    assert found.data.tags["metatrain.output"] == str(tmp_path / "g")
    assert found.data.tags["metatrain.recipe"] == found.data.tags["mlflow.source.name"] == "glyphs"
    assert found.data.tags["mlflow.source.type"] == "LOCAL"
    assert found.data.tags["mlflow.user"] == provenance.user()
    tested = {name: value for name, value in found.data.metrics.items() if name.startswith("test/")}
    assert tested == pytest.approx(
        {
            "test/accuracy": score.mean,
            "test/accuracy_ci95": score.ci95,
            "test/accuracy_before": score.curve[0],
            **{f"test/{name}": value for name, value in score.measures.items()},
            "test/nearest_neighbour_on_pixels": score.baselines["nearest_neighbour_on_pixels"],
        }
    )
    assert found.data.params["family.checksum"] == open_data("glyphs").checksum
    run_id = found.info.run_id
    for name in (
        "train/loss_before",
        "train/accuracy_after",
        "learner.gradient_norm",
        "system/tasks_per_s",
    ):
        assert sorted(history(uri, run_id, name)) == [1, 2, 3, 4]
    assert sorted(history(uri, run_id, "val/accuracy_after")) == [0, 2, 4]
    artifacts = {a.path for a in client.list_artifacts(run_id)}
    assert artifacts == {"result.json", "figures", "bundle", "config.yaml"}
    assert {Path(a.path).name for a in client.list_artifacts(run_id, "figures")} == {
        "adaptation_curve.png",
        "example.png",
        "learning_curve.png",
        "reliability.png",
    }
    assert {Path(a.path).name for a in client.list_artifacts(run_id, "bundle")} == {
        "manifest.json",
        "meta.safetensors",
        "recipe.yaml",
    }
    here, few = ["workers.max=0"], ["evaluation.tasks=4"]  # another evaluation than the run's
    for overrides, logged in ((few, set()), ([], {"gain_over_from_scratch", "from_scratch"})):
        (compared,) = run.evaluate(str(tmp_path / "g"), [*here, *overrides], baselines=True)
        measured = client.get_run(run_id).data.metrics
        assert {n.removeprefix("test/") for n in measured if n.endswith("from_scratch")} == logged
    assert measured["test/from_scratch"] == compared.baselines["from_scratch"]
    assert "baselines.json" in {a.path for a in client.list_artifacts(run_id)}


@pytest.mark.usefixtures("pictures")
def test_what_an_algorithm_learns_is_in_mlflow_and_so_is_its_outer_group(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    run.train(
        config(
            CASES["meta-sgd"], tracking__uri=uri, evaluation__tasks=8, output=str(tmp_path / "g")
        )
    )
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("fewshot glyphs").experiment_id])
    assert found.data.params["outer.groups.algorithm._.lr"] == "0.1"  # MLflow takes no * in a name
    rates = history(uri, found.info.run_id, "algorithm.rate.head.bias")
    assert sorted(rates) == [1, 2, 3, 4]
    assert len(set(rates.values())) == 4
    assert "figures/learned.png" in {
        a.path for a in client.list_artifacts(found.info.run_id, "figures")
    }


def test_a_resumed_run_continues_its_mlflow_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)

    def settings(steps: int) -> RunConfig:
        return config(SINUSOID, tracking__uri=uri, outer__steps=steps, output=str(tmp_path / "s"))

    run.train(settings(3))
    run.train(settings(6), resume="auto")
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("sinusoid").experiment_id])
    assert sorted(history(uri, found.info.run_id, "train/mse_after")) == [1, 2, 3, 4, 5, 6]
    assert found.info.status == "FINISHED"


def test_what_a_resumed_run_changes_is_beside_what_it_was(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, folder = store(tmp_path), tmp_path / "s"

    def train(steps: int, lr: float, resume: str | None = "auto") -> dict[str, str]:
        changed = {
            "outer__steps": steps,
            "outer__lr": lr,
            "checkpoint__every_steps": 2,
            "output": str(folder),
        }
        run.train(
            config(SINUSOID, tracking__uri=uri, evaluation__tasks=2, **changed), resume=resume
        )
        return MlflowClient(uri).get_run(place_of(folder).run_id).data.params

    first = train(2, 0.001, None)
    assert not any("from step" in name for name in first)
    second = first | {"outer.steps from step 2": "4", "outer.lr from step 2": "0.002"}
    assert train(4, 0.002) == second
    assert train(4, 0.002) == second
    third = second | {"outer.steps from step 4": "6", "outer.lr from step 4": "0.003"}
    assert train(6, 0.003) == third
    again = {"outer.steps from step 4 attempt 2": "8", "outer.lr from step 4 attempt 2": "0.004"}
    assert train(8, 0.004, f"{folder}/checkpoints/step-00000004") == third | again


def test_the_course_of_a_parameter_can_be_read_from_its_names() -> None:
    def after(*resumed: tuple[int, str]) -> dict[str, str]:
        recorded = {"outer.lr": "1"}
        for step, value in resumed:
            recorded |= parameters.changes(recorded, {"outer.lr": value}, step)
        return {name: value for name, value in recorded.items() if name != "outer.lr"}

    assert after((4, "1"), (8, "1")) == {}
    assert after((4, "2"), (8, "2"), (9, "3")) == {
        "outer.lr from step 4": "2",
        "outer.lr from step 9": "3",
    }
    assert after((4, "2"), (8, "1")) == {"outer.lr from step 4": "2", "outer.lr from step 8": "1"}
    twice = {"outer.lr from step 4": "2", "outer.lr from step 4 attempt 2": "3"}
    assert after((4, "2"), (4, "2"), (4, "3"), (4, "3")) == twice
    back = {
        "outer.lr from step 4": "2",
        "outer.lr from step 3 attempt 2": "1",
        "outer.lr from step 6 attempt 2": "5",
    }
    assert after((4, "2"), (3, "1"), (5, "1"), (6, "5")) == back
    assert after((0, "2"), (0, "3")) == {
        "outer.lr from step 0": "2",
        "outer.lr from step 0 attempt 2": "3",
    }
    recorded = {"evaluation.family.ways": "3", "note": "mine"}
    assert parameters.changes(recorded, {"evaluation.family": "{}"}, 5) == {
        "evaluation.family.ways from step 5": "not set",
        "evaluation.family from step 5": "{}",
    }


def test_metrics_are_logged_as_often_as_asked(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    settings = config(
        SINUSOID, tracking={"uri": uri, "every_steps": 5}, validation={"every_steps": 7, "tasks": 4}
    )
    run.train(settings)
    client = MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("sinusoid").experiment_id])
    assert sorted(history(uri, found.info.run_id, "train/mse_after")) == [5, 10, 15, 20]
    assert sorted(history(uri, found.info.run_id, "val/mse_after")) == [0, 7, 14, 20]


def test_runs_that_start_together_make_one_store(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    names, rounds = ["a", "b"], 3
    started = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, name, str(len(names)), str(rounds)], cwd=tmp_path
        )
        for name in names
    ]
    try:
        assert [process.wait(600) for process in started] == [0, 0]
    finally:
        for process in started:
            process.kill()
    for number in range(rounds):
        folder = tmp_path / f"round-{number}"
        assert [path.name for path in folder.iterdir()] == ["mlflow.db"]
        client = MlflowClient(store(folder))
        assert sorted(experiment.name for experiment in client.search_experiments()) == [
            "Default",
            "metatrain",
        ]
        found = client.search_runs([client.get_experiment_by_name("metatrain").experiment_id])
        assert sorted(run.info.run_name for run in found) == names
        assert all(run.data.metrics == {"loss": 1.0} for run in found)


def test_a_store_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    died = subprocess.run([sys.executable, "-c", DYING], cwd=tmp_path, check=False)
    assert died.returncode == -signal.SIGKILL
    assert (tmp_path / ".mlflow.db.making" / "mlflow.db").exists()
    assert not (tmp_path / "mlflow.db").exists()
    tracker = mlflow_tracker.MLflowTracker(Tracking(uri=store(tmp_path)), "b", [], None, {})
    tracker.finish("FINISHED")
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_runs_that_start_together_make_one_experiment_on_a_server(
    mlflow_server: tuple[str, subprocess.Popen[bytes]],
) -> None:
    uri, _ = mlflow_server
    together = threading.Barrier(6)

    def start(name: str) -> str:
        together.wait()
        tracker = mlflow_tracker.MLflowTracker(
            Tracking(uri=uri, experiment="new"), name, [], None, {}
        )
        tracker.finish("FINISHED")
        place = tracker.place()
        assert place is not None
        return place.experiment_id

    with ThreadPoolExecutor(6) as threads:
        assert len(set(threads.map(start, "abcdef"))) == 1


@pytest.mark.parametrize("name", ["50%", "%41 #1?", ":b@c d;é日'\"[x]", "***"])
def test_a_working_folder_may_have_any_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    here = tmp_path / name
    here.mkdir()
    monkeypatch.chdir(here)
    run.train(
        config(SINUSOID, tracking__uri=None, outer__steps=1, evaluation__tasks=2, output="out")
    )
    assert {path.name for path in here.iterdir()} == {"mlflow.db", "mlartifacts", "out"}
    assert [path.name for path in tmp_path.iterdir()] == [name]
    monkeypatch.chdir("/")
    place = place_of(here / "out")
    client = MlflowClient(place.uri)
    assert client.get_run(place.run_id).info.status == "FINISHED"
    assert {found.path for found in client.list_artifacts(place.run_id)} >= {
        "config.yaml",
        "figures",
        "bundle",
    }
    copy = client.download_artifacts(place.run_id, "result.json")
    assert Path(copy).read_bytes() == (here / "out" / "result.json").read_bytes()
    assert store_uri(Tracking(uri=place.uri)) == place.uri  # as a trial gets it
    assert mlflow_store.database(place.uri) == here / "mlflow.db"


def test_a_deleted_experiment_is_one_sentence_whose_advice_works(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    tracker = mlflow_tracker.MLflowTracker(Tracking(uri=uri), "s", [], None, {})
    place = tracker.place()
    tracker.finish("FINISHED")
    assert place is not None
    MlflowClient(uri).delete_experiment(place.experiment_id)
    for run_id in (None, place.run_id):
        with pytest.raises(
            InputError, match=r"experiment 'metatrain' at .* was deleted: restore it"
        ) as refused:
            mlflow_tracker.MLflowTracker(Tracking(uri=uri), "s", [], run_id, {})
    mlflow_tracker.MLflowTracker(Tracking(uri=uri, experiment="other"), "s", [], None, {}).finish(
        "FINISHED"
    )
    advice = re.search("`(.+) mlflow (.+)`", str(refused.value))
    assert advice
    command = f"{advice[1]} {sys.executable} -m mlflow {advice[2]}"
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
    tracker = mlflow_tracker.MLflowTracker(Tracking(uri=uri), "s", [], place.run_id, {})
    tracker.finish("FINISHED")
    assert tracker.run_id == place.run_id


def test_a_run_that_its_store_has_lost_goes_on_in_a_new_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)

    def train(steps: int, resume: str | None) -> str:
        changed = {"outer__steps": steps, "evaluation__tasks": 2, "output": str(tmp_path / "s")}
        run.train(config(SINUSOID, tracking__uri=uri, **changed), resume=resume)
        return place_of(tmp_path / "s").run_id

    first = train(1, None)
    MlflowClient(uri).delete_run(first)
    second = train(2, "auto")
    assert (
        f"MLflow's run {first} is deleted or unknown at {uri}: all of its metrics go to a new one"
        in caplog.text
    )
    (tmp_path / "mlflow.db").unlink()  # another store
    third = train(3, "auto")
    assert f"MLflow's run {second} is deleted or unknown" in caplog.text
    assert len({first, second, third}) == 3
    assert sorted(history(uri, third, "train/mse_after")) == [1, 2, 3]
    assert train(4, "auto") == third


def test_what_is_the_matter_with_a_store_is_said(tmp_path: Path) -> None:
    def refused(sentence: str, name: str) -> None:
        uri = name if "://" in name else f"sqlite:///{tmp_path / name}"
        started = time.monotonic()
        with pytest.raises(InputError, match=sentence) as error:
            mlflow_tracker.MLflowTracker(Tracking(uri=uri), "s", [], None, {})
        assert "\n" not in str(error.value)
        assert time.monotonic() - started < 90  # MLflow itself would try for minutes

    (tmp_path / "text.db").write_text("no database" * 100)
    (tmp_path / "folder.db").mkdir()
    refused(
        r"MLflow cannot use .*text\.db \(file is not a database\): fix that, or set "
        r"tracking.uri",
        "text.db",
    )
    refused(r"MLflow cannot use .*folder\.db \(unable to open database file\)", "folder.db")
    refused(r"MLflow cannot use .*below\.db \(File exists: .*text\.db\)", "text.db/below.db")
    refused("MLflow cannot use nowhere://x .*unsupported URI", "nowhere://x")
    mlflow_tracker.MLflowTracker(Tracking(uri=store(tmp_path)), "s", [], None, {}).finish(
        "FINISHED"
    )
    for name, change in (
        ("other.db", "update alembic_version set version_num = 'abcdef012345'"),
        ("half.db", "delete from alembic_version; drop table trace_tags"),
    ):
        shutil.copy(tmp_path / "mlflow.db", tmp_path / name)
        with sqlite3.connect(tmp_path / name) as connection:
            connection.executescript(change)
        connection.close()
    refused(
        r"other\.db is of another version than MLflow .*found version abcdef012345.*mlflow db "
        r"upgrade",
        "other.db",
    )
    refused(r"half\.db is only half made \(.*duplicate column name.*\): move it away", "half.db")


def test_a_server_that_refuses_is_not_one_that_does_not_answer() -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"Invalid Host header")

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(
            InputError, match=r"MLflow cannot use http://127\.0\.0\.1:.*403.*Invalid Host header"
        ):
            mlflow_tracker.MLflowTracker(
                Tracking(uri=f"http://127.0.0.1:{server.server_port}"), "s", [], None, {}
            )
        server.shutdown()


def test_an_unreachable_server_is_one_sentence_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    started = time.monotonic()
    settings = config(
        SINUSOID, tracking__uri=f"http://127.0.0.1:{free_port()}", output=str(tmp_path / "s")
    )
    with pytest.raises(
        InputError, match=r"MLflow does not answer at http://127.0.0.1.*set tracking.uri"
    ):
        run.train(settings)
    assert time.monotonic() - started < 90
    assert "connecting to MLflow at http://127.0.0.1" in caplog.text  # which may take half a minute
    assert not (tmp_path / "s" / "checkpoints").exists()


def test_a_server_that_takes_connections_and_says_nothing_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mlflow_errors, "PROBE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"MLflow does not answer at {uri}"):
            mlflow_tracker.MLflowTracker(Tracking(uri=uri), "s", [], None, {})
        silent.setblocking(False)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # nobody else came
            silent.accept()


def test_a_server_that_dies_neither_stops_nor_slows_training(
    mlflow_server: tuple[str, subprocess.Popen[bytes]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri, process = mlflow_server
    tracker = mlflow_tracker.MLflowTracker(Tracking(uri=uri), "s", [], None, {})
    tracker.log(1, {"train/loss_after": 1.0})
    until(lambda: history(uri, tracker.run_id, "train/loss_after"))
    place = tracker.place()
    assert place is not None
    with served(place, 0) as (page, wait):  # `metatrain ui`: the server is there already
        run = f"{uri}/#/experiments/{place.experiment_id}/runs/{tracker.run_id}"
        assert page == f"{run}?workflowType=machine_learning"
        wait()
    os.killpg(process.pid, signal.SIGSTOP)  # worse than dead: it accepts and never answers
    started = time.monotonic()
    for step in range(2, 2000):
        tracker.log(step, {"train/loss_after": 1.0})
    assert time.monotonic() - started < 60  # a server is waited for longer than that, once
    os.killpg(process.pid, signal.SIGKILL)  # no test below asks it
    tracker.finish("FINISHED")
    assert tracker.errors >= 1
    assert "MLflow lacks a part of this run" in caplog.text


def test_who_has_no_answer_does_not_ask_again_for_what_is_only_nice_to_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    recipe = config(SINUSOID).recipe()
    tracker = mlflow_tracker.MLflowTracker(Tracking(uri=store(tmp_path)), "s", [], None, {})
    there, asked = tracker._client, []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            with suppress(OSError):
                while True:
                    asked.append(server.accept()[0].close())

        threading.Thread(target=hang_up, daemon=True).start()
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        tracker._client = MlflowClient(f"http://127.0.0.1:{server.getsockname()[1]}")
        tracker.describe("first")
        assert tracker.errors == 1
        until(lambda: len(asked) == 1)
        tracker.describe("second")
        tracker.inputs(prepare(recipe).used())
        assert tracker.model(tmp_path / "bundle", 1) == ""
        assert (tracker.errors, len(asked)) == (1, 1)
        server.shutdown(socket.SHUT_RDWR)
    tracker._client = there
    tracker.log(1, {"val/mse_after": 1.0})
    tracker.flush()  # does nothing while nobody answers: the thread sends
    until(lambda: history(tracker.uri, tracker.run_id, "val/mse_after"))
    until(lambda: not tracker._health.away)  # which the thread knows a moment later
    tracker.describe("third")
    tracker.inputs(prepare(recipe).used())
    tracker.finish("FINISHED")
    found = there.get_run(tracker.run_id)
    assert found.data.tags[description.NOTE] == "third"
    assert [each.dataset.name for each in found.inputs.dataset_inputs] == [
        "sinusoid train",
        "sinusoid test",
    ]
    assert tracker.errors == 1


def test_columns_that_cannot_be_set_refuse_no_run_and_a_resumed_one_sends_what_is_zero_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.tracking import MlflowClient

    def forbidden(*args: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", forbidden)
    first = mlflow_tracker.MLflowTracker(
        Tracking(uri=store(tmp_path)), "s", [], None, {}, columns=["test/mse"]
    )
    assert "not yours" in caplog.text
    first.log(1, {"system/lost_tickets": 1.0, "system/dropped_updates": 0.0})
    first.finish("KILLED")
    again = mlflow_tracker.MLflowTracker(
        Tracking(uri=store(tmp_path)), "s", [], first.run_id, {}, step=1
    )
    again.log(2, {"system/lost_tickets": 0.0, "system/dropped_updates": 0.0})
    again.finish("FINISHED")
    assert history(again.uri, first.run_id, "system/lost_tickets") == {1: 1.0, 2: 0.0}
    assert history(again.uri, first.run_id, "system/dropped_updates") == {}


def test_metrics_of_an_outage_arrive_once_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    uri = store(tmp_path)
    tracker = mlflow_tracker.MLflowTracker(Tracking(uri=uri), "s", [], None, {})
    original, failures = MlflowClient.log_batch, [OSError("down"), OSError("down")]

    def flaky(self: MlflowClient, *args: object, **kwargs: object) -> object:
        if failures:
            raise failures.pop()
        return original(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", flaky)
    for step in range(1, 6):
        tracker.log(step, {"train/loss_after": float(step)})
    until(lambda: len(history(uri, tracker.run_id, "train/loss_after")) == 5)
    tracker.finish("FINISHED")
    assert tracker.errors == 2


def test_a_password_in_the_environment_does_not_reach_a_message(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{free_port()}")
    with pytest.raises(InputError, match="MLflow does not answer") as caught:
        run.train(config(SINUSOID, tracking__uri=None))
    assert "hunter2" not in str(caught.value) + caplog.text


def test_a_trial_goes_on_without_a_server_and_no_password_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"http://me:hunter2@127.0.0.1:{free_port()}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        ready = run.prepare(
            config(SINUSOID, tracking__uri=None, outer__steps=1, output=str(tmp_path / "s"))
        )
        with recording.recorded(ready, {mlflow_run.PARENT: "0" * 32}) as tracker:
            assert isinstance(tracker, NoTracker)
        assert not mlflow_run.mark_ended(Tracking(), "0" * 32, "s-00", "FINISHED", 0.0)
    assert "MLflow does not answer at http://***@" in caplog.text
    assert "MLflow did not record that run" in caplog.text
    assert "hunter2" not in caplog.text
