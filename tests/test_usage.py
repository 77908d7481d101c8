"""Memory and processor of driver and workers are in MLflow, and nowhere where a run is repeated."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cases import SINUSOID, config
from services import store

from cluster import run
from cluster.workers.usage import Meter, Usage, metrics


def test_a_process_is_measured_when_it_is_due() -> None:
    meter = Meter(3600)
    assert meter.read() is None
    found = meter.read(now=True)
    assert found is not None
    assert found.memory_mb > 10
    assert found.cpu_percent >= 0
    assert found.gpu_memory_mb is None
    assert meter.read() is None
    first = Meter(3600, at_once=True)
    assert first.read() is not None
    assert first.read() is None


def test_without_psutil_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert Meter(0.0, at_once=True).read(now=True) is None


def test_what_is_not_there_has_no_metric() -> None:
    found = metrics({"driver": Usage(12.5, 99.0), "worker-0": Usage(1.0, 2.0, 3.0)})
    assert found == {
        "system/driver/memory_mb": 12.5,
        "system/driver/cpu_percent": 99.0,
        "system/worker-0/memory_mb": 1.0,
        "system/worker-0/cpu_percent": 2.0,
        "system/worker-0/gpu_memory_mb": 3.0,
    }


@pytest.mark.ray
def test_a_run_has_its_drivers_and_its_workers_and_its_folder_has_none(
    ray_cluster: None, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    settings = config(
        SINUSOID,
        tracking={"uri": store(tmp_path), "every_steps": 50},
        workers={"min": 2, "max": 2},
        output=str(tmp_path / "s"),
    )
    run.train(settings)
    client = MlflowClient(store(tmp_path))
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    memory = {
        name: value for name, value in found.data.metrics.items() if name.endswith("/memory_mb")
    }
    assert set(memory) == {
        f"system/{process}/memory_mb" for process in ("driver", "worker-0", "worker-1")
    }
    assert min(memory.values()) > 10
    assert "system/driver/cpu_percent" in found.data.metrics
    assert "_mb" not in (tmp_path / "s" / "metrics.jsonl").read_text()
