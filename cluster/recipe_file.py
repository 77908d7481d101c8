"""The recipe that a command was given, or the command for what it was given instead."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cluster.config import RunConfig
from metatrain import console, schema, storage
from metatrain.core import InputError
from metatrain.recipe import is_sweep


def read(path: str, overrides: Sequence[str]) -> RunConfig:
    """Read a recipe. If it is something else, say which command takes it."""
    known, quoted = held(path), shlex.quote(path)
    if known is not None:
        what, file = known
        train = f"{console.program()} train {shlex.quote(f'{path}/{file}')}"
        new = f"train its recipe again with {train} --set output=NEW"
        resumed = f"continue it with {train} --resume {quoted}, or "
        remedy = f"{resumed}{new}" if file == "config.yaml" else new
        raise InputError(f"{path} is a {what}", remedy=remedy)
    tree = schema.read(path)
    if is_sweep(tree):
        raise InputError(f"{path} is a sweep", remedy=f"{console.program()} tune {quoted}")
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
    kinds = (("run's folder", "config.yaml"), ("bundle", "recipe.yaml"))
    return next(((what, name) for what, name in kinds if storage.is_file(f"{path}/{name}")), None)
