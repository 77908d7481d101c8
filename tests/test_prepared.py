"""A recipe is bound once: how often a driver builds its network, and what a purpose draws."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SINUSOID, config
from torch import nn

from cluster import run
from cluster.api.run import Run
from cluster.tracking import description
from metatrain.core import InputError, Purpose, Ticket, generator_for
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


@dataclass(frozen=True, kw_only=True)
class Changeable(Counted):
    """The same with a list, so that it cannot be hashed."""

    name: str = "test_prepared:Changeable"
    hidden: list[int] = field(default_factory=lambda: [4])


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
@pytest.mark.ray
def test_a_run_in_this_process_builds_its_network_twice(
    model: dict[str, Any], built: list[str]
) -> None:
    """Once for its shape, and once for its numbers; also with a validation and two evaluations."""
    images = {"family": {"name": "fewshot", "data": "glyphs"}} if model["name"] == "conv4" else {}
    run.train(config(EVALUATED | images | {"model": model}, output="run"))
    assert built == [model["name"]] * 2


@pytest.mark.parametrize("name", ["Counted", "Changeable"])
def test_a_network_of_ones_own_is_built_once_more_to_try_it_out(
    name: str, built: list[str]
) -> None:
    run.train(config(EVALUATED, model={"name": f"test_prepared:{name}"}, output="run"))
    assert built == ["own"] * 3


def test_a_network_is_built_again_if_its_model_was_changed(built: list[str]) -> None:
    model = Changeable()
    one, again = (network.network(network.Spec(model, (1,), 1, 1)) for _ in range(2))
    model.hidden.append(8)
    other = network.network(network.Spec(model, (1,), 1, 1))
    assert one is again is not other
    assert built == ["own"] * 2


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


def test_further_evaluations_are_scored_under_their_names_everywhere(tmp_path: Path) -> None:
    further = {
        "ten": {"tasks": 6, "family": {"queries": 10}},
        "val_split": {"tasks": 4, "split": "val", "seed": 5},
    }
    folder, scores = run.train(
        config(EVALUATED, evaluations=further, output=str(tmp_path / "run"), outer__steps=1)
    )
    assert [(score.evaluation, score.tasks) for score in scores] == [
        ("", 8),
        ("ten", 6),
        ("val_split", 4),
    ]
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]
    assert [row["evaluation"] for row in recorded] == ["", "ten", "val_split"]
    metrics = description.as_metrics(scores)
    assert metrics["test/mse"] == scores[0].mean
    assert metrics["test/ten/mse"] == scores[1].mean
    assert metrics["test/ten/mse_ci95"] == scores[1].ci95
    assert "10 query points" in scores[1].protocol
    assert scores[1].line().startswith("result ten: mse=")
    assert scores[0].line().startswith("result: mse=")
    alone = [s.mean for s in run.evaluate(str(folder), ["workers.max=0"]) if s.evaluation]
    assert alone == [scores[1].mean, scores[2].mean]
    seen = Run(str(folder))
    assert list(seen.result["evaluation"]) == ["", "ten", "val_split"]
    assert ", ten: mse " in repr(seen)


def test_an_evaluation_with_a_name_draws_tasks_of_its_own_and_the_others_keep_theirs() -> None:
    like = {name: {"tasks": 8, "tasks_per_ticket": 4} for name in ("a", "b")}
    settings = prepare(config(EVALUATED, evaluations=like).recipe()).settings
    first = {name: settings[Purpose("score", name)].tickets()[0] for name in ("", "a", "b")}
    drawn = {name: generator_for(1, t, "tasks").initial_seed() for name, t in first.items()}
    assert len(set(drawn.values())) == 3
    plain = Ticket("score", "test", 0, 0)
    assert first[""] == plain
    key = b"1/score/test/0/0/tasks"  # what the tasks of recipes have been drawn by so far
    digest = hashlib.blake2b(key, digest_size=8).digest()
    assert drawn[""] == int.from_bytes(digest, "little") >> 1


def test_a_further_evaluation_keeps_what_the_evaluation_changes() -> None:
    main = {"family": {"shots": 3, "queries": 7}, "algorithm": {"inner_steps": 4}}
    further = {"more": {"family": {"queries": 9}}}
    recipe = config(SINUSOID, evaluation=main, evaluations=further).recipe()
    found = recipe.setting("score", "more")
    assert (found.family.shots, found.family.queries, found.algorithm.inner_steps) == (3, 9, 4)


@pytest.mark.parametrize("name", ["support_plus_1", "a b", "ways/10", ""])
def test_a_name_that_mlflow_could_not_tell_from_another_is_refused(name: str) -> None:
    with pytest.raises(InputError) as error:
        config(SINUSOID, evaluations={name: {"tasks": 4}})
    assert repr(name) in str(error.value)
