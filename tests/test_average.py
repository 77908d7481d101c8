"""The moving average of the parameters: what it is, that scores are of it, that training is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SINUSOID, config

from cluster import checkpoint, run
from cluster.api.files import read_result
from metatrain import bundle
from metatrain.core import InputError, Meta, Update
from metatrain.learner import Learner
from metatrain.outer import Outer

OUTER = {"steps": 6, "tasks_per_step": 4, "tasks_per_ticket": 2, "lr": 0.01}
VALIDATION = {"every_steps": 3, "tasks": 20}


def learner(average: float = 0.9, **fields: Any) -> Learner:
    meta = Meta({"w": torch.zeros(2)}, {"rate": torch.ones(())}, {"seen": torch.zeros(1)})
    outer = {"steps": 9, "tasks_per_step": 1, "tasks_per_ticket": 1, "optimizer": "SGD", "lr": 1.0}
    return Learner(meta, Outer(**(outer | {"average": average} | fields)))


def update(value: float) -> Update:
    w = torch.full((2,), value)
    return Update(Meta({"w": w}, {"rate": torch.ones(())}, {"seen": torch.ones(1)}), 1, {})


def test_the_past_decays_sooner_at_first() -> None:
    one, expected = learner(average=0.4), 0.0
    for step, decay in enumerate((0.1, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 0.4)):
        one.apply([update(-1.0)])
        expected = decay * expected + (1 - decay) * (step + 1.0)
        assert one.scored().model["w"].tolist() == pytest.approx([expected] * 2)
    assert one.meta().model["w"].tolist() == [7.0, 7.0]
    assert one.scored().algorithm["rate"] != one.meta().algorithm["rate"]
    assert one.scored().state["seen"] == 1.0, "what is tracked is a mean already"


def test_a_resumed_learner_goes_on_averaging_or_begins_to() -> None:
    straight, stopped, resumed, begun = learner(), learner(), learner(), learner()
    for i in range(4):
        straight.apply([update(float(i))])
        if i < 2:
            stopped.apply([update(float(i))])
    resumed.load_state_dict(*stopped.state_dict())
    without = learner(average=0.0)
    without.apply([update(0.0)])
    without.apply([update(1.0)])
    begun.load_state_dict(*without.state_dict())
    assert torch.equal(begun.scored().model["w"], without.meta().model["w"])
    for each in (resumed, begun):
        for i in (2, 3):
            each.apply([update(float(i))])
        assert torch.equal(each.meta().model["w"], straight.meta().model["w"])
    assert torch.equal(resumed.scored().model["w"], straight.scored().model["w"])


def test_workers_that_lag_behind_are_refused() -> None:
    with pytest.raises(InputError) as error:
        learner(max_staleness=1)
    assert (error.value.what, error.value.got) == ("average", 0.9)


def test_scores_and_bundles_are_of_the_average_and_training_is_not(tmp_path: Path) -> None:
    plain = config(SINUSOID, outer=OUTER, validation=VALIDATION, output=str(tmp_path / "plain"))
    both = config(
        SINUSOID,
        outer=OUTER | {"average": 0.9},
        validation=VALIDATION,
        output=str(tmp_path / "averaged"),
    )
    folders, found = zip(*map(run.train, (plain, both)), strict=True)
    scores = [score for (score,) in found]
    saved = [checkpoint.load(str(folder)) for folder in folders]
    for name, p in saved[0].tensors.items():
        assert torch.equal(saved[1].tensors[name], p), "the average changes no step"
    averaged = saved[1].meta().flat()
    kept = bundle.load(str(folders[1] / "bundle"))[1].flat()
    assert all(torch.equal(p, averaged[name]) for name, p in kept.items())
    assert not torch.equal(kept["model.head.weight"], saved[0].meta().model["head.weight"])
    lines = (folders[1] / "metrics.jsonl").read_text().splitlines()
    last = json.loads([line for line in lines if "val/mse_after" in line][-1])
    again = run.evaluate(
        str(folders[1]),
        ["evaluation.split=val", "evaluation.seed=2", "evaluation.tasks=20", "workers.max=0"],
    )
    assert last["val/mse_after"] == again[0].mean
    assert read_result(str(folders[1]))["scores"][0]["mean"] == scores[1].mean
    assert scores[1] == run.evaluate(str(folders[1]), ["workers.max=0"])[0]
    assert scores[1].mean != scores[0].mean
    assert "trained 6 steps of 4 tasks, averaged with decay 0.9 (" in scores[1].protocol
    assert "averaged" not in scores[0].protocol
