"""Train a recipe from Python."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from cluster.api.arguments import as_tree, change, plain
from cluster.api.front_door import check_argument, front_door
from cluster.api.run import Run
from cluster.api.seeds import Seeds
from metatrain.core import InputError

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from metatrain.recipe import Recipe

log = logging.getLogger(__name__)


@overload
def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    seeds: None = None,
    resume: str | Path | None = None,
    address: str | None = None,
    **overrides: Any,
) -> Run: ...
@overload
def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    seeds: Sequence[int],
    resume: str | Path | None = None,
    address: str | None = None,
    **overrides: Any,
) -> Seeds: ...
def train(
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    seeds: Sequence[int] | None = None,
    resume: str | Path | None = None,
    address: str | None = None,
    **overrides: Any,
) -> Run | Seeds:
    """Meta-train a recipe, evaluate it, and return its run: `metatrain train`, from Python.

        train("recipes/demo.yaml", outer={"steps": 50}, **{"algorithm.inner_lr": 0.1})

    recipe: a YAML file, a dict of the same keys, or the dataclass.
    overrides: keys of the recipe to change. A dotted key is set, as by --set; a dict is merged into
        the group that it is given for.
    seeds: train from each of these in turn, such as [0, 1, 2], and return all of them as `Seeds`.
    resume: "auto", or a folder to continue.
    address: a Ray cluster to join. If Ray is not installed, this process computes.

    Raises InputError for what you can correct. After Ctrl-C, and if training cannot continue, the
    last whole step is saved, and Interrupted, Diverged or WorkersLost says how to resume.
    """
    with front_door("metatrain.train(..., resume='auto')"):
        from cluster import run
        from cluster import seeds as several

        check_argument("seeds", seeds, list | tuple | range | None, "whole numbers such as [0, 1]")
        check_argument("resume", resume, str | Path | None, "'auto' or a run's folder")
        check_argument("address", address, str | None, "a Ray cluster's address")
        config = _configured(recipe, overrides, address)
        source = str(recipe) if isinstance(recipe, str | Path) else None
        continued = None if resume is None else str(resume)
        if seeds is not None:
            numbers = several.parse(",".join(map(str, seeds)))
            place, _ = several.train(config, numbers, address, continued, source=source)
            return Seeds(str(place))
        folder, _ = run.train(config, address, continued, source=source)
    return Run(str(folder))


def _configured(recipe: Any, overrides: Mapping[str, Any], address: str | None) -> RunConfig:
    """Return the recipe with its overrides; without Ray, unless Ray is asked for, in process."""
    from cluster.config import RunConfig
    from metatrain import schema
    from metatrain.recipe import is_sweep

    try:
        tree, source = as_tree(recipe, "recipe")
        change(tree, overrides)
    except RecursionError:
        raise InputError(
            "the recipe holds itself", remedy="give a dict of keys and values"
        ) from None
    if is_sweep(tree):
        raise InputError(f"{source} is a sweep", remedy="metatrain.tune takes it")
    found = schema.parse(RunConfig, tree, source)
    workers = plain(overrides.get("workers"))
    asked = (
        address is not None
        or "workers.max" in overrides
        or (isinstance(workers, dict) and "max" in workers)
    )
    if found.workers.max and not asked and importlib.util.find_spec("ray") is None:
        log.info("ray is not installed: this process computes")
        found = dataclasses.replace(found, workers=dataclasses.replace(found.workers, max=0))
    return found
