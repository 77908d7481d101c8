"""Small recipes for a GPU that is pretended, and what both devices compute of them."""

from __future__ import annotations

from typing import Any

import torch
from cases import config
from pretended_gpu import unmarked

from cluster.workers.plan import Plan
from cluster.workers.worker import Worker
from metatrain.core import ComputePath, Ticket
from metatrain.start import prepare

SMALL = {"steps": 4, "tasks_per_step": 3, "tasks_per_ticket": 2, "lr": 0.003}
SCORED = {"tasks": 3, "tasks_per_ticket": 2}


def small(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A case of two tickets a step, the second of one task, with a small network."""
    outer = {k: v for k, v in tree["outer"].items() if k in ("optimizer", "groups")}
    scored = {k: v for k, v in tree["evaluation"].items() if not k.startswith("tasks")}
    tree = tree | {"outer": SMALL | outer, "evaluation": SCORED | scored}
    if tree["model"]["name"] == "conv4":
        tree["model"] = tree["model"] | {"filters": 4}
    if "epoch_steps" in tree["algorithm"]:  # all steps are of one phase
        tree["algorithm"] = tree["algorithm"] | {"epoch_steps": 100}
    return tree | changes


def maml(**options: Any) -> dict[str, Any]:
    return {"name": "maml", "inner_lr": 0.1, **options}


def directions(tree: dict[str, Any], plan: Plan, steps: int) -> list[Any]:
    prepared = prepare(config(tree).recipe())
    worker = Worker(prepared, plan)
    worker.load(0, worker.layout.flatten(prepared.meta))
    tickets = [Ticket("update", "train", step, 0) for step in range(steps)]
    return [worker.compute(ticket)[0].direction for ticket in tickets]  # type: ignore[union-attr]


def agree(
    tree: dict[str, Any], steps: int = 6, path: ComputePath = "batched", *, compiles: bool = False
) -> None:
    """Assert that updates on both devices have the same bits."""
    found = directions(tree, Plan(path, "cuda", 1, compiles), steps)
    with unmarked():
        expected = directions(tree, Plan(path, "cpu", 1), steps)
        for here, there in zip(found, expected, strict=True):
            for name, p in there.model.items():
                assert torch.equal(here.model[name], p), name
