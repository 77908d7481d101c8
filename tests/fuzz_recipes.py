"""Recipes, sweeps and command lines, mutated: kinds of fuzz.py."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mutations
import yaml
from cases import CASES, SINUSOID

import tuning.cli
from cluster import run
from cluster.config import RunConfig, Tracking
from metatrain import schema
from metatrain.first_look import check_data
from metatrain.learner import Learner
from metatrain.start import prepare
from tuning import search

MOST_TRAINED = 100  # steps, tasks and sizes
SECRET = "hunter2hunter2"
SWEEP: dict[str, Any] = {
    "name": "sweep",
    "recipe": "recipe.yaml",
    "space": {
        "outer.lr": {"loguniform": [0.001, 0.1]},
        "algorithm.inner_steps": {"integers": [1, 3]},
        "model.hidden": {"choice": [[4], [8, 8]]},
        "algorithm.inner_lr": {"quantised": [0.1, 0.5, 0.1]},
    },
    "budget": {"trials": 4, "steps": 20, "minutes": 5},
    "scheduler": {"name": "asha", "first_rung": 5, "reduction": 3},
    "set": {"validation.every_steps": 5},
    "seed": 3,
    "at_once": 2,
}
TEXTS = [
    "'",
    '"',
    "!!python/object:os.system x",
    "!!binary x",
    "&a [*a]",
    "*a",
    "<<: *a",
    "? [a]",
    "0x_",
    "2001-99-99",
    "1:99",
    "\\x1b",
    '"\\ud800"',
    "[" * 300,
    "{a: " * 50,
    "- " * 300,
    "9" * 5000,
    ".nan",
    "~",
    "%YAML 9",
    "---\n",
    "\t",
    "\x00",
    "é",
    f"s3://me:{SECRET}@b/x",
    f"http://me:{SECRET}#/?@h[:x",
    "s3://[",
    "://",
    "a/../../b",
    "x" * 5000,
]


def _tree(chance: random.Random, base: dict[str, Any]) -> dict[str, Any]:
    """A tree with some of its parts changed."""
    found: Any = copy.deepcopy(base)
    for _ in range(chance.choice([1, 1, 2, 4])):
        found = mutations.tree(found, chance)
    return found


def _written(chance: random.Random, tree: Any, name: str) -> None:
    """Write a tree as YAML, at times with mistakes in its text."""
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=chance.random() < 0.5)
    data = text.encode("utf-8", "surrogatepass")
    kind = chance.random()
    if kind < 0.2:
        data = mutations.raw(data, chance)
    elif kind < 0.4:
        at = chance.randrange(len(data) + 1)
        data = data[:at] + chance.choice(TEXTS).encode("utf-8", "surrogatepass") + data[at:]
    Path(name).write_bytes(data)


def _bases() -> list[dict[str, Any]]:
    return [SINUSOID, *(dict(case) for case in CASES.values())]


def recipes(chance: random.Random) -> None:
    """Read a recipe and take its first steps, up to an outer step that no data is needed for."""
    _written(chance, _tree(chance, chance.choice(_bases())), "recipe.yaml")
    config = schema.load(RunConfig, "recipe.yaml", _overrides(chance))
    schema.explain(config, {}, meanings=True)
    repr(config)
    schema.parse(RunConfig, schema.dump(config), "again")
    prepared = prepare(config.recipe())
    check_data(prepared)
    Learner(prepared.meta, config.outer)


def trainings(chance: random.Random) -> None:
    """Train and evaluate a mutated recipe in this process, if it is small."""
    config = schema.parse(RunConfig, _tree(chance, chance.choice(_bases())), "recipe")
    here = {"max": 0, "threads": 1}
    config = dataclasses.replace(
        config,
        workers=dataclasses.replace(config.workers, **here),
        tracking=Tracking(uri="none"),
        output="out",
    )
    settings = [setting.tasks for setting in config.recipe().settings().values()]
    sizes = [config.outer.steps, *settings, *_numbers(schema.dump(config.family))]
    sizes += [*_numbers(schema.dump(config.model)), *_numbers(schema.dump(config.algorithm))]
    if max(sizes) <= MOST_TRAINED:
        run.train(config)


def _numbers(tree: dict[str, Any]) -> Iterator[float]:
    for _, value in schema.flatten(tree):
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int | float):
                yield each


def _overrides(chance: random.Random) -> list[str]:
    if chance.random() < 0.7:
        return []
    keys = [key for key, _ in schema.flatten(copy.deepcopy(SINUSOID))]
    value = chance.choice([*TEXTS, *map(str, mutations.ODD)])
    return [f"{chance.choice(keys)}{chance.choice(['=', '=', '.x=', ''])}{value}"]


def sweeps(chance: random.Random) -> None:
    """Read a sweep and its recipe, and draw its first trials."""
    tree = SINUSOID if chance.random() < 0.7 else _tree(chance, SINUSOID)
    Path("recipe.yaml").write_text(yaml.safe_dump(tree))
    sweep: Any = _tree(chance, SWEEP)
    if isinstance(sweep, dict) and isinstance(sweep.get("set"), dict) and chance.random() < 0.1:
        sweep["set"]["tracking.uri"] = f"http://me:{SECRET}@127.0.0.1:9"
    _written(chance, sweep, "sweep.yaml")
    found = search.load(Path("sweep.yaml"))
    if found.trials <= 100:
        found.drawn()


def lines(chance: random.Random) -> None:
    """Run commands that need no cluster with odd arguments."""
    Path("recipe.yaml").write_text(yaml.safe_dump(SINUSOID))
    Path("folder").mkdir(exist_ok=True)
    command = chance.choice(
        [
            ["config", "recipe.yaml", "--set", "outer.lr=0.1", "--explain"],
            ["train", "recipe.yaml", "--set", "outer.steps=2", "--dry-run", "--init", "x"],
            ["train", "recipe.yaml", "--set", "output=o", "--resume", "auto", "--dry-run"],
            ["evaluate", "folder", "--set", "evaluation.tasks=4"],
            ["tune", "recipe.yaml", "--set", "seed=1", "--dry-run"],
            ["adapt", "folder", "--support", "folder", "--query", "folder"],
            ["runs", "folder"],
            ["data", "check", "glyphs"],
            ["data", "import", "folder", "--source", "folder"],
            ["data", "push", "glyphs", "folder/x"],
        ]
    )
    at = chance.randrange(1, len(command))
    odd = str(chance.choice([*TEXTS, *mutations.ODD]))
    key, equals, _ = command[at].partition("=")
    glue = chance.choice(["", key + equals]) if equals else ""
    command[at] = (glue + odd).replace("\0", "")
    said = io.StringIO()
    sys.argv = ["metatrain", *command]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            tuning.cli.main()
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
    shown = said.getvalue()
    if code not in (0, 1, 2, None) or "Traceback" in shown:
        raise AssertionError(f"{command} ended with {code}: {shown[-300:]}")
    if SECRET in shown:
        raise AssertionError(f"{command} shows a secret: {shown[-300:]}")


KINDS = {"recipes": recipes, "sweeps": sweeps, "trainings": trainings, "lines": lines}
