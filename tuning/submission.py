"""What `metatrain submit` sends of a recipe or a sweep: files that need no others."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cluster.config import RunConfig
from metatrain import recipe, schema, storage
from metatrain.core import InputError
from tuning import config


class Submission(NamedTuple):
    """What a job runs."""

    name: str
    base: RunConfig  # the recipe, or what all trials share
    arguments: list[str]  # of `metatrain`
    files: dict[str, str]  # texts by name
    output: str | None
    ranges: Mapping[str, Any]  # of a sweep: searched key -> range


def read(
    file: str, overrides: Sequence[str], resume: str | None, *, pretrain: bool = False
) -> Submission:
    """Read a recipe or a sweep.

    resume: a folder to resume, or "auto".
    pretrain: pre-train the recipe's network. Raises InputError for a sweep.
    """
    remote = storage.is_remote(file) and not storage.is_file(file)
    if storage.listing(file) if remote else Path(file).is_dir():
        config.refuse_folder(file, submit=True)
    if recipe.is_sweep(schema.read(file)):
        if pretrain:
            raise InputError(f"{file} is a sweep", remedy="give a recipe, or leave out --pretrain")
        sweep, base = config.read(file, overrides)
        sweep = config.in_folder(sweep, resume, overrides)
        ranges = dict(config.searched(sweep.space))
        files = config.as_files(sweep, base)
        return Submission(sweep.name, base, ["tune", "sweep.yaml"], files, sweep.output, ranges)
    base = schema.load(RunConfig, file, overrides)
    if resume is not None and resume != "auto" and base.output is None:
        base = dataclasses.replace(base, output=_run_of(resume))
    files = {"recipe.yaml": schema.as_yaml(base)}
    name = f"{base.name}-pretraining" if pretrain else base.name
    command = "pretrain" if pretrain else "train"
    return Submission(name, base, [command, "recipe.yaml"], files, base.output, {})


def _run_of(place: str) -> str:
    """Return the folder of the run to which a folder or a checkpoint belongs."""
    return re.sub(r"/checkpoints(/[^/]+)?/?$", "", place)


def check_retries(what: Submission, resume: str | None) -> None:
    """Refuse retries if the folder to continue is not the output, where they would continue."""
    if resume is None or resume == "auto" or what.output is None:
        return
    if config.place_of(_run_of(resume)) != config.place_of(what.output):
        raise InputError(
            f"--retries continues in the output, which is {what.output}, and --resume {resume} "
            "starts from another run",
            remedy="leave out --retries, or the output",
        )


def places_read(base: RunConfig, ranges: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (key, path or address) of each place that a recipe, or a trial of a sweep, reads."""
    families = [schema.dump(setting.family) for setting in base.settings().values()]
    data = [family.get("data") for family in families]
    weights = [schema.dump(base.model).get("weights")]
    for key, places in (("family.data", data), ("model.weights", weights)):
        places += [value for values in ranges.get(key, {}).values() for value in values]
    found = [("model.weights", place) for place in weights if isinstance(place, str)]
    for place in data:
        if isinstance(place, str) and ("/" in place or base.family.name == "table"):
            found.append(("family.data", place))
    for family in families:
        if ":" in family["name"]:  # a family of one's own may read any file of this folder
            for key, value in schema.flatten(family):
                if isinstance(value, str) and Path(value).is_file():
                    found.append((f"family.{key}", value))
    return list(dict.fromkeys(found))
