"""A stored loss curve: a refactoring must reproduce it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cases import SINUSOID, config

from cluster import run

GOLDEN = Path(__file__).parent / "golden_sinusoid.json"


def test_fifty_steps_of_sinusoid_maml(tmp_path: Path) -> None:
    """To a tolerance for other processors' sums; within one machine runs are equal to the bit
    (test_ray_pool.py).
    """
    settings = config(SINUSOID, outer__steps=50, outer__lr=0.01, output=str(tmp_path / "golden"))
    folder, _ = run.train(settings)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [row["train/loss_after"] for row in rows]
    assert found == pytest.approx(json.loads(GOLDEN.read_text()), rel=1e-3)
