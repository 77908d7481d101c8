"""A recipe is bound once: how often a driver builds its network, and what a purpose draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import SINUSOID, config
from torch import nn

from cluster import run
from metatrain.core import Purpose
from metatrain.models.conv import Conv4
from metatrain.models.mlp import MLP
from metatrain.problems import network
from metatrain.start import prepare

CHANGED = {"tasks": 8, "tasks_per_ticket": 4, "family": {"queries": 7}}
EVALUATED = SINUSOID | {
    "outer": {"steps": 2, "tasks_per_step": 4, "tasks_per_ticket": 2, "lr": 0.001},
    "validation": {"every_steps": 1, "tasks": 4, "algorithm": {"inner_steps": 2}},
    "evaluation": CHANGED,
    "evaluations": {"longer": {"tasks": 4, "algorithm": {"inner_steps": 3}}},
}


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A network of one's own that counts how often it is built."""

    name: str = "test_prepared:Counted"

    def module(self, inputs: tuple[int, ...], outputs: int, feedback: int) -> nn.Module:
        BUILT.append("own")
        return nn.Sequential(nn.Linear(*inputs, 4), nn.Tanh(), nn.Linear(4, outputs))


BUILT: list[str] = []


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each network that this process builds."""
    network._kept.cache_clear()
    BUILT.clear()
    for kind in (MLP, Conv4):
        module = kind.module

        def counted(self: Any, *spec: Any, module: Any = module) -> nn.Module:
            BUILT.append(self.name)
            return module(self, *spec)

        monkeypatch.setattr(kind, "module", counted)
    return BUILT


@pytest.mark.parametrize(
    "model",
    [{"name": "mlp", "hidden": [4]}, {"name": "conv4", "filters": 16}],
    ids=["batched", "fused"],
)
def test_a_run_in_this_process_builds_its_network_twice(
    model: dict[str, Any], built: list[str]
) -> None:
    """Once for its shape, and once for its numbers; also with a validation and two evaluations."""
    images = {"family": {"name": "fewshot", "data": "glyphs"}} if model["name"] == "conv4" else {}
    run.train(config(EVALUATED | images | {"model": model}, output="run"))
    assert built == [model["name"]] * 2


def test_a_network_of_ones_own_is_built_once_more_to_try_it_out(built: list[str]) -> None:
    run.train(config(EVALUATED, model={"name": "test_prepared:Counted"}, output="run"))
    assert built == ["own"] * 3


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_driver_of_a_run_on_ray_builds_its_network_twice(built: list[str]) -> None:
    run.train(config(EVALUATED, workers={"min": 1, "max": 1, "cpus": 1.0}, output="run"))
    assert built == ["mlp"] * 2


def test_networks_that_share_a_shape_leave_each_other_as_they_are(built: list[str]) -> None:
    prepared = prepare(config(EVALUATED).recipe())
    first, second = (prepared.problems[Purpose(work)] for work in ("update", "score"))
    seed = torch.Generator().manual_seed(3)
    before = second.init(seed)["head.bias"].clone()
    first.init(seed)["head.bias"].add_(1.0)
    assert torch.equal(second.init(seed)["head.bias"], before)
    assert built == ["mlp"] * 3  # one shape, and the numbers of two seeds
