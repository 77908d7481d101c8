"""What was saved survives a power cut: a model of a disk that loses whatever was not synced."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cases import SINUSOID, config
from test_checkpoint import save_steps

from cluster import checkpoint, run
from metatrain import bundle, disk, storage

STEPS = ("put", "sync", "rename", "make_folder", "unlink", "remove_tree")
Log = list[tuple[str, tuple[Any, ...]]]
Names = dict[str, "File | Folder"]


class File:
    """A file's contents as programs see them, and as they are on the disk."""

    def __init__(self) -> None:
        self.now, self.safe = b"", b""


class Folder:
    """The same of the names in a folder."""

    def __init__(self) -> None:
        self.now: Names = {}
        self.safe: Names = {}


class Loss(NamedTuple):
    """What a power cut does to one thing that may or may not have reached the disk."""

    name: Callable[[], bool]  # whether a change of a name arrived
    contents: Callable[[File], bytes]


def replayed(log: Log, root: Path) -> Folder:
    """The disk after some steps."""
    top = Folder()

    def at(path: Path) -> File | Folder:
        found: File | Folder = top
        for part in path.relative_to(root).parts:
            assert isinstance(found, Folder)
            found = found.now[part]
        return found

    def names(path: Path) -> Names:
        folder = at(path.parent)
        assert isinstance(folder, Folder)
        return folder.now

    for step, (path, *rest) in log:
        if step == "put":
            file = names(path).setdefault(path.name, File())
            assert isinstance(file, File)
            file.now = rest[0]
        elif step == "make_folder":
            names(path).setdefault(path.name, Folder())
        elif step == "rename":
            names(rest[0])[rest[0].name] = names(path).pop(path.name)
        elif step == "sync":
            held = at(path)
            held.safe = held.now if isinstance(held, File) else dict(held.now)  # type: ignore
        elif step == "remove_tree":
            tree = names(path).pop(path.name)
            assert isinstance(tree, Folder)
            tree.now.clear()
        else:
            names(path).pop(path.name)
    return top


def after_the_cut(folder: Folder, loss: Loss, path: str = "") -> dict[str, bytes]:
    """The files that a machine finds when it starts again."""
    found: dict[str, bytes] = {}
    for name in sorted(folder.now.keys() | folder.safe.keys()):
        before, now = folder.safe.get(name), folder.now.get(name)
        held = now if before is now or loss.name() else before
        if isinstance(held, File):
            found[f"{path}{name}"] = loss.contents(held)
        elif held is not None:
            found |= after_the_cut(held, loss, f"{path}{name}/")
    return found


def losses(seed: int) -> list[Loss]:
    draw = random.Random(seed)
    return [
        Loss(lambda: False, lambda file: file.safe),
        Loss(lambda: True, lambda file: file.now),
        Loss(lambda: True, lambda file: file.safe),
        Loss(
            lambda: draw.random() < 0.5,
            lambda file: draw.choice([file.safe, file.now]),
        ),
    ]


def test_a_power_cut_at_any_time_leaves_the_checkpoints_that_were_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: Log = []

    def recorded(name: str, do: Callable[..., None]) -> Callable[..., None]:
        def step(*args: Any) -> None:
            log.append((name, args))
            do(*args)

        return step

    for name in STEPS:
        monkeypatch.setattr(disk, name, recorded(name, getattr(disk, name)))
    root = tmp_path / "disk" / "run" / "checkpoints"
    (tmp_path / "disk").mkdir()
    must = [(0, -1)]  # from this step on, there is a checkpoint of so many outer steps or more
    for version in (1, 2, 3):
        save_steps(str(root), [version], keep=1)
        must.append((len(log), version))
    save_steps(str(root), [4], keep=2)
    must[-1] = (must[-1][0], 3)
    checkpoint.forget_after(str(root), 3)  # as a run that resumes from the third
    for version in (4, 5):
        save_steps(str(root), [version], keep=1)
        must.append((len(log), version))
    seen: set[tuple[tuple[str, bytes], ...]] = set()
    for end in range(len(log) + 1):
        least = max(version for at, version in must if at <= end)
        now = replayed(log[:end], tmp_path / "disk")
        for number, loss in enumerate(losses(end)):
            files = after_the_cut(now, loss)
            state = tuple(files.items())
            if (least, *state) in seen:
                continue
            seen.add((least, *state))  # type: ignore[arg-type]
            again = tmp_path / "again" / f"{end}-{number}"
            for name, data in files.items():
                path = again / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            kept = again / "run" / "checkpoints"
            whole = sorted(path.parent for path in kept.glob(f"*/{bundle.MANIFEST}"))
            for step in whole:
                bundle.read_directory(str(step))  # a manifest never names what is not there
            versions = [int(step.name.rpartition("-")[2]) for step in whole]
            assert max(versions, default=-1) >= least, log[end - 1]
    assert len(seen) > 50
    assert checkpoint.load(str(kept)).version == 5


def opened(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def test_a_file_and_its_folder_are_synced_by_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int, real: Any = os.fsync) -> None:
        synced.append(str(opened(descriptor)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write(str(tmp_path / "new" / "x"), b"1")
    new = tmp_path / "new"
    assert synced == [str(tmp_path), str(new / "x.partial"), str(new)]
    storage.remove(str(new / "x"))
    assert synced[3:] == [str(new)]
    synced.clear()
    run.train(config(SINUSOID, output=str(tmp_path / "run"), outer__steps=1, evaluation__tasks=7))
    manifest = f"{tmp_path}/run/checkpoints/step-00000001/{bundle.MANIFEST}.partial"
    metrics = f"{tmp_path}/run/metrics.jsonl"
    assert synced.index(metrics) < synced.index(manifest)  # its lines are not written again


def test_a_file_system_that_cannot_sync_folders_is_used_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(descriptor: int, real: Any = os.fsync) -> None:
        if opened(descriptor).is_dir():
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write(str(tmp_path / "x"), b"1")
    assert storage.read(str(tmp_path / "x")) == b"1"
