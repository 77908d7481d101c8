"""What MLflow lacks of a sweep is sent from the sweep's folder: no Ray, and no server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from services import command, store
from test_space import load

from cluster import run
from cluster.claim import claimed
from cluster.config import Tracking
from cluster.tracking import description
from cluster.tracking.mlflow_run import PARENT
from cluster.tracking.place import place_of
from cluster.tracking.tracker import NoTracker, start_tracker
from metatrain.core import InputError
from tuning import sync
from tuning.config import as_files
from tuning.journal import Journal, Report, course
from tuning.result import conclude
from tuning.search import Search
from tuning.trial import TRIAL, Shared


def recorded(uri: str, experiment: str) -> dict[str, Any]:
    """All runs of an experiment by their names."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return {each.info.run_name: each for each in client.search_runs([found.experiment_id])}


def history(uri: str, found: Any, name: str) -> dict[int, float]:
    """A metric by its step, each of which comes once."""
    from mlflow.tracking import MlflowClient

    points = MlflowClient(uri).get_metric_history(found.info.run_id, name)
    values = {point.step: point.value for point in points}
    assert len(values) == len(points)
    return values


def train(search: Search, journal: Journal, number: int, rate: float) -> list[dict[str, Any]]:
    """Make a trial as Tune does, and without MLflow, which is away; return its validations."""
    values = {"algorithm.inner_lr": rate}
    tree = yaml.safe_load((search.folder / "recipe.yaml").read_text())
    shared = Shared("s", str(search.folder), tree, search.metric, "min", False, None, "", "s.yaml")
    config = shared.config(values, number)
    run.train(dataclasses.replace(config, tracking=Tracking(uri="none")))
    lines = (search.folder / f"trials/{number:02d}/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if search.metric in row]
    journal.write(number, "values", values)
    for row in rows:
        report = Report(row["step"], row[search.metric], 0.0, values)
        journal.write(number, "report", report._asdict())
    journal.write(number, "ended", {"state": "completed", "cause": ""})
    return rows


@pytest.mark.ray  # takes seconds
def test_a_sweep_without_mlflow_is_sent_once_with_parent_and_trials(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, folder = store(tmp_path), tmp_path / "out"
    changes = {"name": "s", "output": str(folder), "budget": {"trials": 2, "steps": 20}}
    changes["set"] = {"tracking": {"uri": uri, "experiment": "swept"}, "validation.every_steps": 10}
    changes["space"] = {"algorithm.inner_lr": {"choice": [0.1, 0.01]}}
    search = load(tmp_path, changes)
    folder.mkdir()
    for name, text in as_files(search.sweep, search.base).items():
        (folder / name).write_text(text)
    tracker = start_tracker(search.base.tracking, "the sweep", [])
    tracker.describe(description.note("as it is measured", []))
    place = tracker.place()
    assert place is not None
    (folder / "mlflow.json").write_text(json.dumps(place._asdict()))
    journal = Journal(folder / "journal.jsonl")
    rows = [train(search, journal, number, rate) for number, rate in ((0, 0.01), (1, 0.1))]
    outcome = conclude(search, journal, NoTracker(), place)

    with claimed(str(folder), "sweep"):
        busy = command("metrics", "sync", str(folder))
    assert (busy.returncode, busy.stderr.count("another process works on the sweep")) == (2, 1)
    done = command("metrics", "sync", str(folder))
    assert f"MLflow has all of {folder}: 2 trials, FINISHED" in done.stdout, done.stderr
    before = recorded(uri, "swept")
    names = [f"s-{number:02d}" for number in (0, 1)]
    won = outcome.winner.number
    names[won] += " (winner)"
    assert before.keys() == {"the sweep", *names}
    assert {each.info.status for each in before.values()} == {"FINISHED"}
    for number, name in enumerate(names):
        found, by_step = before[name], {row["step"]: row[search.metric] for row in rows[number]}
        assert (found.data.tags[PARENT], found.data.tags[TRIAL]) == (place.run_id, str(number))
        assert place_of(folder / f"trials/{number:02d}").run_id == found.info.run_id
        assert float(found.data.params["algorithm.inner_lr"]) == (0.01, 0.1)[number]
        assert history(uri, found, search.metric) == by_step
        assert found.info.end_time == int(1000 * journal.trials[number].at_s)
    own, way = before["the sweep"], course(folder / "journal.jsonl", "min")
    assert history(uri, own, search.metric) == {step: best.value for step, best in way.items()}
    assert list(way) == [0, 10, 20, 30, 40]
    assert way[40].value == outcome.winner.last.value  # type: ignore[union-attr]
    assert own.data.metrics["test/mse"] == outcome.scores[0].mean
    assert own.data.params == {
        "best.trial": str(won),
        "best.algorithm.inner_lr": str((0.01, 0.1)[won]),
    }
    assert "**result**" in own.data.tags[description.NOTE]

    assert sync.sync(f"{folder}/") == sync.Synced(2, 2, "FINISHED")
    after = recorded(uri, "swept")
    for name, found in before.items():
        assert after[name].data.metrics == found.data.metrics
        for metric in found.data.metrics:
            history(uri, after[name], metric)  # each step once

    lines = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
    (folder / "journal.jsonl").write_text("".join(line for line in lines if '"trial": 0' in line))
    said = sync.sync(str(folder)).sentence("s")
    assert said == "MLflow has what is left of s: 1 of 2 trials, FINISHED"
    assert f"{folder}/journal.jsonl lacks trial 1" in caplog.messages
    (folder / "journal.jsonl").write_text("")
    with pytest.raises(InputError, match="says nothing of the trials in"):
        sync.sync(str(folder))


def test_a_folder_that_holds_no_sweep_in_mlflow_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("")
    with pytest.raises(InputError, match="holds no run that was logged to MLflow"):
        sync.sync(str(tmp_path))
