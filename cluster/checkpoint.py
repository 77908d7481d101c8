"""Checkpoints: all that an interrupted run needs to continue exactly, on any pyarrow filesystem.

A checkpoint is a directory step-00000123/ of tensors (safetensors), scalars (JSON) and the run's
configuration (YAML), complete once its manifest is there.
"""

from __future__ import annotations

import errno
import json
import logging
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from pyarrow import fs
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from cluster.config import RunConfig
from cluster.workers.plan import Plan
from metatrain import bundle, schema, storage, yaml_reader
from metatrain.core import InputError, Meta
from metatrain.learner import AVERAGE, Learner

log = logging.getLogger(__name__)

STEP, BEST = "step-", "best-"  # how the folders of checkpoints are called, before the step
NAME = re.compile(r"(step|best)-\d{8,}")
FORMAT = 2  # of the names in learner.safetensors: those of Meta.flat()
FILES = {"learner.safetensors", "learner.json", "run.json", "config.yaml"}


class Saved(NamedTuple):
    """A checkpoint that was read and verified."""

    uri: str
    config: RunConfig
    plan: Plan
    tensors: dict[str, Any]
    scalars: dict[str, Any]
    notes: dict[str, str]  # such as the id of the MLflow run to continue

    @property
    def version(self) -> int:
        """The outer steps that were made."""
        return int(self.scalars["version"])

    def meta(self) -> Meta:
        """The meta-parameters that scores are of."""
        besides = ("optimizer.", AVERAGE)
        own = {name: p for name, p in self.tensors.items() if not name.startswith(besides)}
        averaged = {name: p for name, p in self.tensors.items() if name.startswith(AVERAGE)}
        return Meta.unflat(own | {n.removeprefix(AVERAGE): p for n, p in averaged.items()})


def save(
    root: str,
    config: RunConfig,
    plan: Plan,
    learner: Learner,
    notes: dict[str, str],
    keep: int,
    *,
    best: bool = False,
) -> str:
    """Write a checkpoint under `root` and remove all but the newest `keep`; returns its URI.

    best: keep it besides, as that of the best validation so far.
    """
    tensors, scalars = learner.state_dict()
    uri = f"{root}/{BEST if best else STEP}{learner.version:08d}"
    files = {
        "learner.safetensors": save_tensors(
            {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        ),
        "learner.json": json.dumps(scalars).encode(),
        "run.json": json.dumps({"format": FORMAT, "plan": plan._asdict(), "notes": notes}).encode(),
        "config.yaml": schema.as_yaml(config).encode(),
    }
    _write(root, uri, files)
    steps = _complete(root)
    _remove(root, steps[:-keep])
    # A run may resume from its newest checkpoint, and needs the best before it.
    newest = _version(steps[-1]) if steps else -1
    settled = [name for name in _complete(root, BEST) if _version(name) <= newest]
    _remove(root, settled[:-1])
    return uri


def best(root: str, version: int) -> str | None:
    """The checkpoint of the best validation, which was after so many steps; None if it is gone."""
    uri = f"{root}/{BEST}{version:08d}"
    return uri if bundle.is_complete(uri) else None


def before(root: str, version: int, most: int) -> list[Saved]:
    """The last checkpoints of fewer outer steps, the newest first; at most so many."""
    names = [name for name in _complete(root) if _version(name) < version]
    return [_read(f"{root}/{name}") for name in reversed(names[-most:])]


def is_best(uri: str) -> bool:
    """Whether a checkpoint is that of a run's best validation."""
    return uri.rstrip("/").rpartition("/")[2].startswith(BEST)


def chosen(uri: str, *, best: bool) -> str:
    """Return the newest checkpoint of a run's folder: of its best validation, or of its last step.

    Raises InputError if there is none.
    """
    root, kind = root_of(uri), BEST if best else STEP
    found = _complete(root, kind)
    if not found:
        raise InputError(
            f"{root} holds no checkpoint {kind}*",
            remedy="leave evaluation.of out, or give a run's folder that has one",
        )
    return f"{root}/{found[-1]}"


def forget_after(root: str, version: int) -> None:
    """Remove the checkpoints of later steps, and halves: the run resumes from this step.

    A process that is killed while it writes a checkpoint leaves a half, which has no manifest.
    """
    names = [info.base_name for info in storage.listing(root) if _is_folder(info)]
    _remove(
        root,
        (n for n in names if _version(n) > version or not bundle.is_complete(f"{root}/{n}")),
    )


def load(uri: str) -> Saved:
    """Read a checkpoint, or the newest one under a run's folder that is not damaged.

    Raises Damaged if the only ones are, and InputError if there is none.
    """
    return _read(uri) if bundle.is_complete(uri) else _newest_sound(root_of(uri))


def root_of(uri: str) -> str:
    """Return the folder of the checkpoints that a run's folder has, or that a checkpoint is in.

    Raises InputError if there is none.
    """
    if bundle.is_complete(uri):
        return uri.rstrip("/").rpartition("/")[0]
    root = next((root for root in (uri, f"{uri}/checkpoints") if latest(root) is not None), None)
    if root is None:
        raise InputError(
            f"{uri} holds no checkpoint",
            remedy="give a run's folder or one of its checkpoints/step-*",
        )
    return root


def _newest_sound(root: str) -> Saved:
    """Read the newest checkpoint that is not damaged, and warn of newer ones that are."""
    damaged: list[bundle.Damaged] = []
    # That of the best validation is a whole checkpoint, too.
    for name in [*reversed(_complete(root)), *reversed(_complete(root, BEST))]:
        uri = f"{root}/{name}"
        try:
            saved = _read(uri)
        except InputError as error:
            if not bundle.is_complete(uri):  # a run has just removed it, which has newer ones
                return load(root)
            if not isinstance(error, bundle.Damaged):
                raise
            damaged.append(error)
            continue
        if damaged:
            what = "; ".join(error.what for error in damaged)
            log.warning("%s; the one after %d steps is used", what, saved.version)
        return saved
    raise damaged[0]


def _read(uri: str) -> Saved:
    files = bundle.read_directory(uri)
    if set(files) != FILES:
        raise bundle.Damaged(
            f"{uri} is no checkpoint, it holds {', '.join(sorted(files))}",
            remedy="give one of checkpoints/step-*",
        )
    try:
        return _parsed(uri, files)
    except InputError as error:
        raise bundle.Damaged(
            error.what, got=error.got, expected=error.expected, remedy=error.remedy
        ) from error
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RecursionError,
        SafetensorError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise bundle.Damaged(
            f"{uri} is damaged ({reason})", remedy="use another checkpoint"
        ) from error


def _parsed(uri: str, files: Mapping[str, bytes]) -> Saved:
    """Raise whatever the contents lead to that are not a checkpoint's."""
    run = json.loads(files["run.json"])
    if run.get("format") != FORMAT:
        raise InputError(
            f"{uri} was saved by another version of ray-metatrain",
            remedy="resume it with that version, or start a new run",
        )
    place = f"{uri}/config.yaml"
    saved = Saved(
        uri,
        schema.parse(RunConfig, yaml_reader.keys(files["config.yaml"], place), place),
        TypeAdapter(Plan).validate_python(run["plan"]),
        load_tensors(files["learner.safetensors"]),
        json.loads(files["learner.json"]),
        TypeAdapter(dict[str, str]).validate_python(run["notes"]),
    )
    if type(saved.scalars["version"]) is not int or saved.version < 0:
        raise ValueError(f"it was saved after {saved.scalars['version']!r} steps")
    name = uri.rstrip("/").rpartition("/")[2]
    if NAME.fullmatch(name) and _version(name) != saved.version:  # a copy may have another name
        raise ValueError(f"its name says otherwise than {saved.version} steps")
    saved.meta()
    return saved


def latest(root: str) -> str | None:
    """The newest complete checkpoint under a folder."""
    found = _complete(root)
    return f"{root}/{found[-1]}" if found else None


def steps_made(root: str) -> int:
    """After how many outer steps the newest complete checkpoint is; 0 if none can be found."""
    try:
        newest = latest(root)
    except InputError:  # its storage does not answer
        return 0
    return _version(newest) if newest is not None else 0


def _write(root: str, uri: str, files: Mapping[str, bytes]) -> None:
    """Write a checkpoint; if the disk is full, remove the oldest of several and try once more."""
    with suppress(InputError):  # after what followed it failed, a checkpoint is saved again
        if bundle.is_complete(uri) and bundle.read_directory(uri) == files:
            return
    for first in (True, False):
        try:
            bundle.write_directory(uri, files)
        except InputError as error:
            storage.remove(uri)  # a half
            oldest = _complete(root)[:-1][:1]
            if not (first and oldest and _is_full(error)):
                raise
            log.warning("%s; %s/%s is removed to make room", error.what, root, oldest[0])
            _remove(root, oldest)
        else:
            return


def _is_full(error: InputError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def _remove(root: str, names: Iterable[str]) -> None:
    for name in names:
        # first, so that no half of it ever looks whole
        storage.remove(f"{root}/{name}/{bundle.MANIFEST}")
        storage.remove(f"{root}/{name}")


def _version(name: str) -> int:
    return int(name.rpartition("-")[2])


def _is_folder(info: fs.FileInfo) -> bool:
    """Whether something is called as a checkpoint, and may be a half."""
    return info.type == fs.FileType.Directory and bool(NAME.fullmatch(info.base_name))


def _complete(root: str, kind: str = STEP) -> list[str]:
    """Names of complete checkpoints, oldest first."""
    names = [info.base_name for info in storage.listing(root) if _is_folder(info)]
    own = (name for name in names if name.startswith(kind))
    return sorted((n for n in own if bundle.is_complete(f"{root}/{n}")), key=_version)
