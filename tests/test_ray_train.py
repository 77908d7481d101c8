"""Ray Train's workers pre-train to the bits of one process."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import SINUSOID, config

from cluster import checkpoint
from cluster.config import Workers
from cluster.pretraining.run import pretrain
from metatrain.weights import weights_at

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

KEYS = {"steps": 8, "examples_per_step": 20, "examples_per_part": 6}


def test_two_workers_continue_a_checkpoint_of_one_process_to_its_bits(tmp_path: Path) -> None:
    given = SINUSOID | {"pretraining": KEYS, "checkpoint": {"every_steps": 3, "keep": 9}}
    alone = config(given, output=str(tmp_path / "alone"))
    whole = weights_at(str(pretrain(alone))).tensors

    pretrain(replace(alone, output="two"))  # not where Ray's workers are
    root = tmp_path / "two" / "checkpoints"
    checkpoint.forget_after(str(root), 3)  # as if the process had been killed then
    two = replace(alone, output="two", workers=Workers(max=2, cpus=0.5))

    found = weights_at(str(pretrain(two, resume="auto"))).tensors
    assert found.keys() == whole.keys()
    assert all(torch.equal(p, found[name]) for name, p in whole.items())
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [*range(1, 9)]
    assert checkpoint.latest(str(root)) == str(root / "step-00000008")
