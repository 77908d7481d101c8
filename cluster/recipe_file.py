"""The recipe that a command was given, or the command for what it was given instead."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cluster.config import RunConfig
from metatrain import console, schema, storage
from metatrain.core import InputError
from metatrain.recipe import is_pretraining, is_sweep

PRETRAINING = "pre-training's folder"


def read(path: str, overrides: Sequence[str], command: str = "train") -> RunConfig:
    """Read the recipe of a command. If it is something else, say which command takes it."""
    known, program, quoted = held(path), console.program(), shlex.quote(path)
    if known is not None:
        what, file = known
        given = shlex.quote(f"{path}/{file}")
        started = "pretrain" if what == PRETRAINING else "train"
        ways = [f"run its recipe again with {program} {command} {given} --set output=NEW"]
        if what == PRETRAINING and command == "train":
            ways.insert(0, f"start from it with {program} train RECIPE --init {quoted}")
        if file == "config.yaml":
            ways.insert(0, f"continue it with {program} {started} {given} --resume {quoted}")
        raise InputError(f"{path} is a {what}", remedy=", or ".join(ways))
    tree = schema.read(path)
    if is_sweep(tree):
        remedy = f"{program} tune {quoted}" if command == "train" else "give its recipe"
        raise InputError(f"{path} is a sweep", remedy=remedy)
    return schema.parse(RunConfig, schema.apply_overrides(tree, overrides), path)


def held(path: str) -> tuple[str, str] | None:
    """Return what a run's or a bundle's folder is called, and its recipe's file; None for others.

    Raises InputError for the folder of a sweep or of several seeds.
    """
    if not storage.is_remote(storage.checked(path)) and not Path(path).is_dir():
        return None
    if storage.is_file(f"{path}/sweep.yaml"):
        raise InputError(
            f"{path} is a sweep's folder",
            remedy=f"give that of one of its trials, such as {path}/trials/00",
        )
    if storage.is_file(f"{path}/seeds.json"):
        raise InputError(f"{path} is the folder of several seeds", remedy="give that of one seed")
    if storage.is_file(f"{path}/config.yaml"):
        kind = PRETRAINING if is_pretraining(schema.read(f"{path}/config.yaml")) else "run's folder"
        return kind, "config.yaml"
    return ("bundle", "recipe.yaml") if storage.is_file(f"{path}/recipe.yaml") else None
