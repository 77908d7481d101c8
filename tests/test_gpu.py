"""The same updates on a GPU as on a CPU, to a tolerance; skipped, saying so, where there is none."""

from __future__ import annotations

import pytest
import torch
from conftest import PROBES, config

from cluster.worker import Worker, choose_plan, initial_meta
from metatrain.core import Scores, Ticket, Update

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.parametrize("probe", PROBES)
def test_cpu_and_cuda_agree(probe: str) -> None:
    recipe = config(PROBES[probe]).recipe()
    results = []
    for gpus in (0, 1):
        worker = Worker(recipe, choose_plan(recipe, gpus, 1)[0])
        worker.load(0, worker.layout.flatten(initial_meta(recipe)))
        update, _ = worker.compute(Ticket("update", "train", 0, 0))
        scores, _ = worker.compute(Ticket("score", "test", 0, 0))
        assert isinstance(update, Update)
        assert isinstance(scores, Scores)
        results.append((worker.layout.flatten(update.direction), scores))
    (here, here_scores), (there, there_scores) = results
    assert (here - there).norm() < 1e-3 * here.norm()
    assert (here_scores.curves["loss"] - there_scores.curves["loss"]).abs().max() < 1e-2
