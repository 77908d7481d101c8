"""A run's folder: choose it, find the checkpoint to continue from, and never overwrite results.

A new run takes a folder that is empty, or that holds only what a start leaves which ended before
its first checkpoint. Other files, and results that cannot be made again from checkpoints, are
refused before anything is written.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import NamedTuple

from pyarrow import fs

from cluster import checkpoint
from cluster.config import RunConfig
from cluster.lines import whole_lines
from metatrain import schema, storage
from metatrain.core import InputError
from metatrain.storage import Folder

log = logging.getLogger(__name__)

RESULTS = {"result.json", "bundle", "figures"}  # written at the end of a run
RECORDS = {"metrics.jsonl", "mlflow.json", "checkpoints"}  # written during a run
EARLY = {"mlflow.json", "error.txt"}  # may be there before config.yaml
# The keys by which a config.yaml is a run's.
KEYS = {
    "name",
    "family",
    "model",
    "algorithm",
    "outer",
    "validation",
    "evaluation",
    "workers",
    "checkpoint",
    "output",
}


def choose(
    config: RunConfig,
    resume: str | None,
    *,
    trial: bool = False,
    claim: Callable[[Folder], None] = lambda folder: None,
) -> tuple[Folder, checkpoint.Saved | None]:
    """Return a run's folder, and the checkpoint to continue from.

    trial: the folder is a sweep's trial's own, which may continue from another trial's checkpoint.
    claim: keeps others out of the folder, before its contents decide anything.

    Raises InputError if the run would overwrite something.
    """
    folder = _place(config, resume)
    claim(folder)
    saved = None
    if resume == "auto":
        root = _newest_root(folder, config)
        saved = checkpoint.load(root) if root is not None else None
    elif resume is not None:
        saved = checkpoint.load(resume)
    if saved is None:
        _check_free(folder, resume)
        _check_place(config.checkpoint.uri)
        if resume:
            log.info("there is nothing to resume for %s: starting a new run", config.name)
    elif not trial:
        _check_continued(folder, config, saved)
    return folder, saved


def _place(config: RunConfig, resume: str | None) -> Folder:
    """Return the folder of a run to start or to resume."""
    if config.output is not None:
        if storage.is_file(config.output):
            raise InputError(f"{config.output} is a file", remedy="give a folder as output")
        return Folder(config.output)
    runs = Path("runs") / config.name
    if resume == "auto":
        past = sorted((path for path in runs.glob("*") if path.is_dir()), reverse=True)
        found = (folder for folder in map(Folder, past) if _newest_root(folder, config))
        return next(found, None) or Folder(dated(runs))
    if resume is not None:
        before, _, name = checkpoint.root_of(resume).rpartition("/")
        if name == "checkpoints":
            return Folder(before)
    return Folder(dated(runs))


def record(folder: Folder, config: RunConfig, code: Mapping[str, bytes]) -> list[Path]:
    """Write config.yaml and the source of the user's own modules; return their paths."""
    written = [folder / "config.yaml"]
    storage.write(str(written[0]), schema.as_yaml(config).encode())
    for name, data in code.items():
        storage.write(str(folder / "code" / name), data)
    return [*written, folder / "code"] if code else written


def remove_partials(folder: Folder) -> None:
    """Remove what killed writes left of a run's files; a storage has files as a whole or not."""
    system, path = storage.filesystem(str(folder))
    if not isinstance(system, fs.LocalFileSystem):
        return
    for name in ("config.yaml", *RESULTS, *RECORDS, *EARLY, "code"):
        storage.remove(f"{path}/{name}.partial")
        for partial in Path(path, name).rglob("*.partial"):
            storage.remove(str(partial))


class _Held(NamedTuple):
    """The contents of a folder."""

    names: set[str]
    config: schema.Tree | None  # of the run whose folder it is
    step: int  # the last one in metrics.jsonl; -1 if there is none
    roots: list[str]  # where that run's checkpoints may be

    def root(self) -> str | None:
        """Return the folder that has checkpoints."""
        return next((root for root in self.roots if checkpoint.latest(root) is not None), None)

    def is_ahead(self) -> bool:
        """Whether the run has made more steps than come before its first checkpoint."""
        try:
            config = self.config or {}
            first = min(int(config["checkpoint"]["every_steps"]), int(config["outer"]["steps"]))
        except (KeyError, TypeError, ValueError):
            first = 0
        return bool(self.names & RESULTS) or self.step > first


def _look(folder: Folder) -> _Held:
    uri = str(folder)
    if storage.is_file(uri):
        raise InputError(f"{uri} is a file", remedy="give a folder as output")
    held = storage.listing(uri)
    files = {info.base_name for info in held if info.type == fs.FileType.File}
    names = {info.base_name for info in held} - {name for name in files if name.startswith(".")}
    config = _recorded(uri) if "config.yaml" in files else None
    lines = whole_lines(storage.read(f"{uri}/metrics.jsonl")) if "metrics.jsonl" in files else []
    last = max((step for step, _ in lines), default=-1)
    elsewhere = config["checkpoint"].get("uri") if config is not None else None
    roots = [*([elsewhere] if elsewhere else []), f"{uri}/checkpoints"]
    return _Held(names, config, last, roots)


def _recorded(uri: str) -> schema.Tree | None:
    """Read the config.yaml of a run; None if it is something else's."""
    try:
        tree = schema.read(f"{uri}/config.yaml")
    except InputError:
        return None
    if not tree.keys() >= KEYS:
        return None
    return tree if isinstance(tree["checkpoint"], dict) else None


def _newest_root(folder: Folder, config: RunConfig) -> str | None:
    """Return the checkpoints of the run in a folder, or of a run whose folder is lost."""
    root, uri = _look(folder).root(), config.checkpoint.uri
    if root is not None or uri is None or config.output is None or not checkpoint.latest(uri):
        return root
    return uri if _same(checkpoint.load(uri).config.output, config.output) else None


def _check_free(folder: Folder, resume: str | None) -> None:
    """Refuse a folder that holds a run, or anything else."""
    held = _look(folder)
    if held.config is None or not held.names & RECORDS:
        early = EARLY if held.config is None else EARLY | {"config.yaml", "code"}
        other = sorted(name for name in held.names - early if not name.endswith(".partial"))
        if other:
            raise InputError(
                f"{folder} holds {other[0]} and no run",
                remedy="give another output",
            )
        return
    root = held.root()
    if root is None and held.is_ahead():
        raise InputError(
            f"{folder} holds a run whose checkpoints are gone from {held.roots[0]}",
            remedy="give another output, or put its checkpoints back",
        )
    if resume is None and (
        root is not None or held.step >= 0 or storage.listing(f"{folder}/checkpoints")
    ):
        raise InputError(
            f"{folder} already holds a run",
            remedy="pass --resume auto to continue it, or give another output",
        )


def _check_continued(folder: Folder, config: RunConfig, saved: checkpoint.Saved) -> None:
    """Refuse to continue a checkpoint in another run's folder or with its checkpoint.uri."""
    held, root, place = _look(folder), checkpoint.root_of(saved.uri), config.checkpoint.uri
    own = any(_same(root, other) for other in held.roots)
    output = held.config["output"] if held.config is not None else None
    if not own and not _same(output, saved.config.output):
        _check_free(folder, None)
    if place is not None and not any(_same(place, other) for other in (root, *held.roots)):
        _check_place(place)


def _check_place(uri: str | None) -> None:
    """Refuse a checkpoint.uri that holds another run's checkpoints, which would be replaced."""
    if uri is not None and storage.is_file(uri):
        raise InputError(f"checkpoint.uri is {uri}, which is a file", remedy="give a folder")
    if uri is not None and checkpoint.latest(uri) is not None:
        raise InputError(
            f"checkpoint.uri is {uri}, which holds the checkpoints of another run",
            remedy=f"give another one, or continue that run with --resume {uri}",
        )


def _same(one: str | None, other: str | None) -> bool:
    """Whether two paths or addresses name one place."""
    return one is not None and other is not None and absolute(one) == absolute(other)


def absolute(uri: str) -> str:
    """Return the one name of a place."""
    local = uri.removeprefix("file://")
    return uri.rstrip("/") if storage.is_remote(local) else str(Path(local).resolve())


def dated(runs: Path) -> Path:
    """Return a new folder with date and time; runs of the same second are numbered."""
    name = time.strftime("%Y%m%d-%H%M%S")
    paths = (runs / (f"{name}-{i}" if i else name) for i in count())
    return next(path for path in paths if not path.exists())
