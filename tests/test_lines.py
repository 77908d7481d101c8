"""A line of metrics.jsonl that no run wrote, and a pipe in place of a file, hinder no reader."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.api.files import rows
from cluster.api.listing import runs
from cluster.api.run import Figures
from cluster.patience import Patience
from cluster.tracking.metrics_file import metrics_file, read_metrics
from cluster.tracking.parameters import metric_name
from metatrain import disk, files, storage
from metatrain.core import InputError
from metatrain.metrics import Metric
from metatrain.storage import Folder
from tuning.journal import Journal, course

GOOD = b'{"step": 1, "at_ms": 5, "val/mse_after": 2.0, "val/diverged_tasks": null}'
ODD = [
    b'{"step": 2, "at_ms": "x"}',
    b'{"step": 2, "at_ms": NaN}',
    b'{"step": 2, "at_ms": 1e999}',
    b'{"step": 2, "at_ms": 1%s}' % (b"0" * 30),
    b'{"step": 2, "at_ms": -1}',
    b'{"step": 2, "val/mse_after": "x"}',
    b'{"step": 2, "val/mse_after": [1]}',
    b'{"step": 2, "val/mse_after": true}',
    b'{"step": 2, "val/mse_after": NaN}',
    b'{"step": 2, "val/mse_after": 1e999}',
    b'{"step": 2, "val/mse_after": 1%s}' % (b"0" * 400),
    b'{"step": 2, "%s": 1}' % (b"x" * 251),
    b'{"step": 2, "a\\u001b": 1}',
    b'{"step": 1%s}' % (b"0" * 24),
    b'{"step": -1}',
    b'{"step": true}',
    b'{"step": 2.0}',
    b'{"at_ms": 1}',
    b"[2]",
    b"\xff",
    b'{"step": 2',
]


def test_a_line_with_values_of_other_kinds_is_damaged_to_every_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, good = tmp_path / "metrics.jsonl", json.loads(GOOD)
    path.write_bytes(b"\n".join([*ODD, GOOD, *ODD]))
    assert rows(path.read_bytes()) == [good]
    assert read_metrics(path) == [{k: v for k, v in good.items() if v is not None}]
    with metrics_file(Folder(tmp_path), 3) as (kept, write, _):
        assert Patience(1, Metric("mse", "min"), kept).best == 1
        write(4, {"val/mse_after": 1.0})
    assert caplog.messages == [f"{path} lacks 2 of the 3 outer steps before"]
    assert [row["step"] for row in rows(path.read_bytes())] == [1, 4]


def test_steps_that_lack_are_counted_and_not_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with metrics_file(Folder(tmp_path), 10**15):
        assert f"lacks {10**15} of" in caplog.text


def test_numbers_that_no_table_holds_cost_the_list_of_runs_their_row_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, steps in (("good", "9"), ("odd", "1" + 30 * "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"name: {name}\nouter: {{steps: {steps}}}\n")
        (tmp_path / name / "metrics.jsonl").write_bytes(b"\n".join([GOOD, *ODD]))
    assert runs(tmp_path)[["name", "steps", "of"]].to_numpy().tolist() == [["good", 1, 9]]
    assert caplog.messages == [f"skipped {tmp_path}/odd: its config.yaml is not a run's"]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("val/mse_after", "val/mse_after"),
        ("test/准确率", "test/准确率"),
        ("test/acc@1", "test/acc_1"),
        ("../a//b/", "a/b"),
        ("/.", "_"),
        ("", "_"),
    ],
)
def test_a_metric_has_a_name_that_mlflow_takes(name: str, taken: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    assert metric_name(name) == taken
    _validate_metric_name(taken)


def enter(folder: Path) -> None:
    with metrics_file(Folder(folder), 3):
        pass


READERS: list[tuple[str, Callable[[Path], Any]]] = [
    ("metrics.jsonl", enter),
    ("metrics.jsonl", lambda folder: read_metrics(folder / "metrics.jsonl")),
    ("journal.jsonl", lambda folder: Journal(folder / "journal.jsonl")),
    ("journal.jsonl", lambda folder: course(folder / "journal.jsonl", "min")),
]


@pytest.mark.parametrize(("name", "reader"), READERS)
def test_a_pipe_in_place_of_a_record_is_refused_and_nobody_waits_for_it(
    name: str, reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError) as error:
        reader(tmp_path)
    assert error.value.what == f"cannot read {tmp_path / name} (it is no regular file)"


def test_a_folder_with_a_pipe_is_not_sent_to_mlflow(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").write_text("")
    files.check_regular(tmp_path)
    os.mkfifo(tmp_path / "a/y.png")
    with pytest.raises(OSError, match=r"a/y\.png is no regular file"):
        files.check_regular(tmp_path)
    assert [*Figures(str(tmp_path / "a"))] == ["x"]  # which a notebook shows


def test_a_pipe_or_a_link_in_place_of_what_is_written_is_replaced(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    os.mkfifo(tmp_path / "mlflow.json")
    (tmp_path / "result.json").symlink_to(victim)
    for name in ("mlflow.json", "result.json"):
        storage.write(str(tmp_path / name), b"{}")
        assert (tmp_path / name).read_text() == "{}"
    (tmp_path / "a.partial").symlink_to(victim)
    os.mkfifo(tmp_path / "b.partial")
    for name in ("a", "b"):
        with pytest.raises(OSError, match=r"symbolic links|No such device"):
            disk.write(tmp_path / name, b"{}")
        disk.write(tmp_path / name, b"{}")  # what was in the way is gone
    (tmp_path / "journal.jsonl").symlink_to(victim)
    with pytest.raises(InputError, match="cannot read"):
        Journal(tmp_path / "journal.jsonl")
    assert victim.read_text() == "mine"
