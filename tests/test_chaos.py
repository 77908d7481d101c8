"""A run to which everything happens that can ends with the bits of one to which nothing does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
import chaos


@pytest.mark.ray
def test_chaos_changes_neither_parameters_nor_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """The short version of benchmarks/chaos.py."""
    outer = chaos.RECIPE["outer"] | {"tasks_per_step": 480, "tasks_per_ticket": 30}
    monkeypatch.setitem(chaos.RECIPE, "outer", outer)
    done = chaos.compare(steps=40, kills=3, seed=1, limit_s=850)
    assert done["kill a worker"] >= 1
    for what in ("kill the driver", "crash a node", "start a node", "stop a worker for ever"):
        assert done[what] == 1
    assert done["end MLflow"] == done["start MLflow"] == 2
    assert done["kill the driver and damage its checkpoint"] == 1
