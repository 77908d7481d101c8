"""The table of what two cores reach: written from recorded runs alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from services import until

from metatrain.core import InputError

sys.path.append(str(ROOT / "benchmarks"))
import two_cores

SCORE: dict[str, Any] = {
    "metric": "accuracy",
    "shown": "percent",
    "norm": "running",
    "mean": 0.9,
    "ci95": 0.01,
    "differences": {"nearest_neighbour_on_pixels": [0.4, 0.02]},
}
RECORD: dict[str, Any] = {
    "minutes": 2.44,
    "tasks_per_s": 1234.5,
    "worker_mb": 788,
    "parameters": 112_000,
    "score": SCORE,
}


def collected(tmp_path: Path, records: Path) -> dict[str, str]:
    """Both pages after --collect."""
    pages = {language: tmp_path / f"{language}.md" for language in two_cores.PAGES}
    for language, page in pages.items():
        page.write_text(two_cores.PAGES[language].read_text())
    two_cores.collect(pages, records)
    return {language: page.read_text() for language, page in pages.items()}


def test_the_pages_have_the_table_of_the_recorded_runs(tmp_path: Path) -> None:
    for language, text in collected(tmp_path, two_cores.RECORDS).items():
        own = two_cores.PAGES[language].read_text()
        assert text == own, "run `python benchmarks/two_cores.py --collect`"


def test_each_record_is_of_a_recipe() -> None:
    names = {path.stem for path in two_cores.RECORDS.glob("*.json")}
    assert names
    assert names <= {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_a_record_is_a_row(tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    (records / "made_up.json").write_text(json.dumps(RECORD))
    number = SCORE | {"metric": "mse", "shown": "log", "norm": "none", "differences": {}}
    above = {"differences": {"least_squares": [0.9, 0.9], "ridge": [0.012, 0.004]}}
    (records / "regression.json").write_text(json.dumps(RECORD | {"score": number | above}))
    (records / "number.json").write_text(json.dumps(RECORD | {"score": number}))
    for page in collected(tmp_path, records).values():
        assert (
            "| `made_up` | 90.0 ± 1.0 % running | 40.0 ± 2.0 % | 1,234 | 788 | 112,000 | 2.4 |"
        ) in page
        assert "| `number` | mse 0.9 ± 0.01 |  | 1,234 |" in page
        assert "| `regression` | mse 0.9 ± 0.01 | mse 0.012 ± 0.004 | 1,234 |" in page
    page = tmp_path / "without.md"
    page.write_text("nothing")
    with pytest.raises(InputError, match="lacks the lines"):
        two_cores.collect({"en": page}, records)


WORKER = [sys.executable, "-c", "b = b'1' * 50_000_000; input()", "ray::RayWorker"]


def test_the_memory_is_that_of_the_largest_worker_below_the_driver() -> None:
    program = f"import subprocess; subprocess.run({WORKER})"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as driver:
        until(lambda: two_cores._largest_worker_mb(driver.pid) > 50)
        driver.communicate(b"\n")
    assert two_cores._largest_worker_mb(driver.pid) == 0  # all have ended
