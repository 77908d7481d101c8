"""A member of each kind of meta-learning, small enough for a test, and what binds it."""

from __future__ import annotations

from typing import Any

import torch

from cluster.config import RunConfig
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import schema
from metatrain.core import (
    ComputePath,
    Context,
    Meta,
    Norm,
    Scores,
    Task,
    Ticket,
    Work,
    generator_for,
)
from metatrain.learner import Learner
from metatrain.metrics import accuracy, cross_entropy
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe
from metatrain.start import prepare

SYLLABLES = ("ba", "ko", "mi", "su", "tel", "ran", "vo", "qi", "zu", "xe", "lol", "wyn")
SINUSOID: dict[str, Any] = {
    "name": "sinusoid",
    "family": {"name": "sinusoid", "shots": 5, "queries": 5},
    "model": {"name": "mlp", "hidden": [16, 16]},
    "algorithm": {"name": "maml", "inner_lr": 0.01},
    "outer": {"steps": 20, "tasks_per_step": 10, "tasks_per_ticket": 3, "lr": 0.001},
    "evaluation": {"tasks": 30, "tasks_per_ticket": 7},
    "workers": {"max": 0, "wait_s": 600},  # a busy machine starts one in minutes
    "tracking": {"uri": "none"},
}
GLYPHS: dict[str, Any] = SINUSOID | {
    "name": "glyphs",
    "family": {"name": "fewshot", "data": "glyphs"},
    "model": {"name": "conv4", "filters": 8, "pool": "stride", "features": "mean"},
    "algorithm": {"name": "maml", "inner_lr": 0.4},
    "outer": {"steps": 20, "tasks_per_step": 5, "tasks_per_ticket": 2, "lr": 0.003},
}
REPTILE: dict[str, Any] = GLYPHS | {
    "name": "reptile",
    "family": {"name": "fewshot", "data": "glyphs", "shots": 4},
    "algorithm": {"name": "reptile", "inner_lr": 0.001, "inner_steps": 3, "inner_batch": 7},
    "outer": {
        "steps": 20,
        "tasks_per_step": 5,
        "tasks_per_ticket": 2,
        "optimizer": "SGD",
        "lr": 1.0,
    },
}
SHORT = {"steps": 4, "tasks_per_step": 5, "tasks_per_ticket": 2, "lr": 0.003}
NARROW = {"name": "mlp", "hidden": [8]}
READING: dict[str, Any] = SINUSOID | {
    "family": {"name": "series", "shots": 4, "queries": 3},
    "algorithm": {"name": "recurrent"},
    "outer": SHORT,
}
CASES: dict[str, dict[str, Any]] = {  # a member of each kind of meta-learning
    "sinusoid": SINUSOID,
    "averaged": SINUSOID
    | {
        "outer": SINUSOID["outer"] | {"average": 0.9},
        "validation": {"every_steps": 1, "tasks": 5},
    },
    "maml-conv4": GLYPHS,
    "maml-conv4-fused": GLYPHS | {"model": GLYPHS["model"] | {"filters": 16}, "outer": SHORT},
    "reptile-conv4": REPTILE,
    "maml-plus-plus": GLYPHS
    | {
        "algorithm": {
            "name": "maml_plus_plus",
            "inner_lr": 0.4,
            "inner_steps": 2,
            "per_step": ["*.norm.*"],
            "epoch_steps": 1,
            "multi_step_epochs": 2,
        },
        "outer": SHORT,
    },
    "imaml": SINUSOID | {"algorithm": {"name": "imaml", "inner_lr": 0.01, "inner_steps": 3}},
    "meta-knowledge": SINUSOID
    | {"algorithm": {"name": "meta_knowledge", "inner_lr": 0.01, "model_steps": 3}},
    "adml": GLYPHS
    | {
        "algorithm": {"name": "adml", "inner_lr": 0.4, "epsilon": 8},
        "outer": SHORT,
        "evaluation": {
            "tasks": 30,
            "tasks_per_ticket": 7,
            "corruption": {"name": "noise"},
            "attack": {"name": "pgd", "steps": 2, "part": "both"},
        },
    },
    "adversarial-querying": GLYPHS
    | {
        "algorithm": {
            "name": "adversarial_querying",
            "learner": {"name": "prototypical"},
            "steps": 2,
        },
        "outer": SHORT,
    },
    "reptile-moments": SINUSOID
    | {
        "algorithm": {
            "name": "reptile",
            "inner_lr": 0.01,
            "inner_steps": 2,
            "carries_moments": True,
        }
    },
    "anil": GLYPHS
    | {"algorithm": {"name": "maml", "inner_lr": 0.4, "adapts": ["head.*"]}, "outer": SHORT},
    "meta-sgd": GLYPHS
    | {
        "algorithm": {"name": "meta_sgd", "initial_lr": 0.4},
        "outer": SHORT | {"groups": {"algorithm.*": {"lr": 0.1}}},
    },
    "layer-step-rates": SINUSOID
    | {
        "algorithm": {
            "name": "meta_sgd",
            "initial_lr": 0.01,
            "inner_steps": 2,
            "rates": "layer_step",
        }
    },
    "prototypical": GLYPHS
    | {
        "algorithm": {"name": "prototypical"},
        "norm": "running",
        "outer": SHORT,
        "evaluation": {
            "tasks": 30,
            "tasks_per_ticket": 7,
            "norm": "running",
            "family": {"ways": 3},
        },
    },
    "imaginary-data": GLYPHS
    | {
        "algorithm": {"name": "imaginary_data", "noise": 2, "filters": 4},
        "outer": SHORT,
        "evaluation": {"tasks": 30, "tasks_per_ticket": 7, "algorithm": {"made": 2}},
    },
    "matching": GLYPHS
    | {
        "model": GLYPHS["model"] | {"head": {"name": "attention"}},
        "algorithm": {"name": "matching"},
        "outer": SHORT,
    },
    "matching-context": GLYPHS
    | {
        "model": GLYPHS["model"] | {"head": {"name": "attention", "reads": 2}},
        "algorithm": {"name": "matching"},
        "outer": SHORT,
    },
    "relation": GLYPHS
    | {
        "model": {
            "name": "conv",
            "filters": [8, 16],
            "pool": "stride",
            "head": {"name": "pairs", "filters": 16},
        },
        "algorithm": {"name": "relation"},
        "norm": "running",
        "outer": SHORT,
        "evaluation": {"tasks": 30, "tasks_per_ticket": 7, "norm": "running"},
    },
    "ridge": GLYPHS | {"algorithm": {"name": "ridge"}, "outer": SHORT},
    "meta-lstm": SINUSOID
    | {"algorithm": {"name": "meta_lstm", "inner_steps": 2, "units": 4}, "outer": SHORT},
    "learned-optimizer": SINUSOID
    | {
        "algorithm": {"name": "learned_optimizer", "inner_steps": 2, "units": 4},
        "outer": SHORT,
    },
    "learned-optimizer-evolution": SINUSOID
    | {
        "algorithm": {
            "name": "learned_optimizer",
            "inner_steps": 2,
            "units": 4,
            "gradient": "evolution",
        },
        "outer": SHORT,
    },
    "generated-parameters": SINUSOID
    | {
        "algorithm": {"name": "generated_parameters", "inner_lr": 0.01, "units": 8},
        "outer": SHORT,
    },
    "meta-networks": GLYPHS
    | {
        "model": GLYPHS["model"] | {"head": {"name": "fast"}},
        "algorithm": {"name": "meta_networks", "units": 4, "examples": 2},
        "outer": SHORT,
    },
    "recurrent": SINUSOID
    | {
        "family": {"name": "series", "shots": 4, "queries": 3},
        "model": {
            "name": "mlp",
            "hidden": [8],
            "head": {"name": "memory", "cell": "lstm", "hidden": 8},
        },
        "algorithm": {"name": "recurrent"},
    },
    "mann": READING | {"model": NARROW | {"head": {"name": "mann", "hidden": 6, "slots": 8}}},
    "snail": READING
    | {
        "model": NARROW | {"head": {"name": "snail", "width": 8, "length": 8}},
        "algorithm": {"name": "recurrent", "losses": "last"},
    },
    "in-context": SINUSOID
    | {
        "family": {"name": "linear_regression", "inputs": 2, "shots": [3, 3], "queries": 3},
        "model": {
            "name": "mlp",
            "hidden": [],
            "head": {"name": "transformer", "width": 8, "depth": 1, "heads": 2},
        },
        "algorithm": {"name": "in_context"},
    },
    "cells": SINUSOID
    | {
        "family": {
            "name": "tabular_regression",
            "columns": [2, 3],
            "shots": [4, 4],
            "queries": 3,
            "buckets": 6,
        },
        "model": {
            "name": "mlp",
            "hidden": [],
            "head": {"name": "cells", "width": 8, "depth": 1, "heads": 2},
        },
        "algorithm": {"name": "in_context"},
        "outer": SHORT,
    },
    "decisions": SINUSOID
    | {
        "family": {"name": "bandit_history", "arms": 3, "pulls": 4, "shots": [3, 3]},
        "model": {
            "name": "mlp",
            "hidden": [],
            "head": {"name": "transformer", "width": 8, "depth": 1, "heads": 2},
        },
        "algorithm": {"name": "in_context"},
        "outer": SHORT,
    },
    "recurrent-conv4": GLYPHS
    | {
        "model": GLYPHS["model"] | {"head": {"name": "memory", "cell": "gru", "hidden": 8}},
        "algorithm": {"name": "recurrent"},
        "outer": SHORT,
    },
    "rl2": SINUSOID
    | {
        "family": {"name": "bandit", "pulls": 4, "episodes": 3},
        "model": {
            "name": "mlp",
            "hidden": [],
            "head": {"name": "memory", "cell": "gru", "hidden": 8},
        },
        "algorithm": {"name": "recurrent"},
    },
    "gail": SINUSOID
    | {
        "family": {
            "name": "imitation",
            "environment": {"name": "navigation", "horizon": 6, "episodes": 2},
            "demonstrations": 2,
            "queries": 2,
            "steps": 4,
        },
        "model": NARROW,
        "algorithm": {"name": "gail", "inner_lr": 0.05, "inner_steps": 2, "units": 4},
        "outer": SHORT,
    },
    "r2d2": SINUSOID
    | {
        "family": {"name": "t_maze", "shortest": 2, "longest": 3, "slack": 2, "episodes": 3},
        "model": {
            "name": "mlp",
            "hidden": [],
            "head": {"name": "memory", "cell": "lstm", "hidden": 8},
        },
        "algorithm": {
            "name": "r2d2",
            "length": 3,
            "burn_in": 2,
            "ahead": 2,
            "batch": 8,
            "tickets": 2,
            "capacity": 20,
            "target_steps": 2,
        },
        "outer": SHORT | {"tasks_per_step": 3},
    },
    "rl2-proximal": SINUSOID
    | {
        "family": {"name": "mdp", "states": 3, "horizon": 2, "trial": 2},
        "model": {"name": "mlp", "hidden": [], "head": {"name": "memory", "hidden": 4}},
        "algorithm": {"name": "recurrent", "proximal": {"epochs": 2}},
        "outer": SHORT,
    },
    "texts": GLYPHS  # of the data set that conftest.py writes
    | {
        "family": {"name": "texts", "data": "invented", "ways": 3, "shots": 2, "length": 24},
        "model": {"name": "text_bag", "buckets": 64, "longest": 2, "width": 8},
        "outer": SHORT,
    },
    "maml-navigation": SINUSOID
    | {
        "family": {"name": "navigation", "horizon": 8, "episodes": 4},
        "algorithm": {"name": "maml", "inner_lr": 0.1},
        "outer": SHORT,
    },
}


def config(base: dict[str, Any], **overrides: Any) -> RunConfig:
    """A run's configuration; overrides are dotted keys with __ for the dot."""
    tree = schema.dump(schema.parse(RunConfig, base, "test"))
    for key, value in overrides.items():
        schema.put(tree, key.replace("__", "."), value)
    return schema.parse(RunConfig, tree, "test")


def context(seed: int = 0, work: Work = "update") -> Context:
    ticket = Ticket(work, "train", 0, 0)
    return Context(ticket, generator_for(seed, ticket, "adaptation"))


def images(
    model: Any, path: ComputePath = "reference", ways: int = 3, norm: Norm = "transductive"
) -> Any:
    """A problem of classes of images, which it takes as the floats that they are."""
    return Supervised(
        model=model,
        inputs=(1, 28, 28),
        outputs=ways,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        norm=(norm,),
        path=path,
        classes=True,
    )


def drawn_images(count: int = 2, ways: int = 3, shots: int = 2) -> Task:
    """Noise of double precision, in classes that do not mean anything."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(2, count, ways * shots, 1, 28, 28, generator=g, dtype=torch.float64)
    y = torch.arange(ways).repeat_interleave(shots).expand(count, -1)
    return Task(x[0], y, x[1], y)


def languages(count: int = 20, each: int = 8) -> dict[str, list[str]]:
    """Invented languages: a few syllables of their own among digits that say nothing."""
    g = torch.Generator().manual_seed(0)
    found = {}
    for i in range(count):
        own = [SYLLABLES[j] for j in torch.randperm(len(SYLLABLES), generator=g)[:4]]
        rows = torch.randint(4000, (each, 5), generator=g).tolist()
        found[f"language {i:02}"] = ["".join(f"{own[n % 4]}{n}" for n in row) for row in rows]
    return found


def exact(meta: Meta) -> Meta:
    """The same in double precision."""
    return Meta(*({name: p.double() for name, p in params.items()} for params in meta))


def trained(recipe: Recipe) -> Scores:
    """Train a recipe of one ticket a step in this process, and score its first test ticket."""
    prepared = prepare(recipe)
    worker = Worker(prepared, choose_plan(prepared, 0, 1)[0])
    learner = Learner(prepared.meta, recipe.outer)
    for step in range(recipe.outer.steps):
        worker.load(step, worker.layout.flatten(learner.meta()))
        learner.apply([worker.compute(Ticket("update", "train", step, 0))[0]])
    worker.load(recipe.outer.steps, worker.layout.flatten(learner.meta()))
    scores = worker.compute(Ticket("score", "test", 0, 0))[0]
    assert isinstance(scores, Scores)
    return scores
