"""The same updates on a GPU as on a CPU, to a tolerance; skipped, saying so, where there is
none.
"""

from __future__ import annotations

import pytest
import torch
from cases import CASES, config

from cluster import run
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.core import Meta, Scores, Ticket, Update, to_device
from metatrain.start import prepare

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.parametrize("probe", CASES)
def test_cpu_and_cuda_agree(probe: str) -> None:
    """On four tickets, of which all but the first are replayed where they draw nothing, and by two
    sets of parameters; a later ticket leaves what an earlier one gave.
    """
    recipe = config(CASES[probe]).recipe()
    found: list[list[Meta]] = []
    scored = []
    for gpus in (0, 1):
        worker = Worker(prepare(recipe), choose_plan(prepare(recipe), gpus, 1)[0])
        updates = []
        for step in range(4):
            meta = prepare(recipe).meta
            moved = Meta(
                {k: p * (1 + 0.1 * (step // 2)) for k, p in meta.model.items()},
                meta.algorithm,
                meta.state,
            )
            worker.load(step // 2, worker.layout.flatten(moved))
            update, _ = worker.compute(Ticket("update", "train", step, 0))
            assert isinstance(update, Update)
            updates.append(update.direction)
        scores, _ = worker.compute(Ticket("score", "test", 0, 0))
        assert isinstance(scores, Scores)
        found.append([to_device(direction, torch.device("cpu")) for direction in updates])
        scored.append(scores)
    for here, there in zip(*found, strict=True):
        for name, p in here.model.items():
            assert (p - there.model[name]).norm() < 2e-3 * p.norm() + 1e-6, name
    here, there = (scores.curves["transductive"]["loss"] for scores in scored)
    assert (here - there).abs().max() < 1e-2


def test_a_run_in_process_stays_on_the_device(tmp_path: object) -> None:
    settings = config(
        CASES["maml-conv4"], workers={"max": 0, "gpus": 1}, output=str(tmp_path) + "/run"
    )
    prepared = run.prepare(settings)
    assert all(p.is_cuda for p in prepared.learner.meta().model.values())
    _, scores = run.train(settings, resume="auto")
    assert 0 <= scores[0].mean <= 1
