"""Files that users and other programs leave, mutated: the kinds of fuzz.py that need them."""

from __future__ import annotations

import io
import json
import os
import random
import tempfile
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import mutations
import numpy as np
import pyarrow as pa
import torch
from cases import SINUSOID, config
from PIL import Image
from pyarrow import csv, parquet

from cluster import checkpoint, run
from cluster.tracking.metrics_file import metrics_file, read_metrics
from cluster.workers.plan import choose_plan
from metatrain import bundle, inference
from metatrain.core import InputError, Split, Update
from metatrain.data import arrays, columns, omniglot, row_files
from metatrain.data.folders import read_folder
from metatrain.data.images import ImageStore, duplicates, twins
from metatrain.data.pixels import stack
from metatrain.data.rows import feature_names
from metatrain.data.rows import read as read_rows
from metatrain.learner import Learner
from metatrain.start import prepare
from metatrain.storage import Folder
from metatrain.tasks import FewShot
from tuning.journal import Journal, Report

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
HELD = tempfile.TemporaryDirectory(prefix="fuzz")  # the whole files


def picture(width: int = 20, height: int = 20, mode: str = "L", kind: str = "PNG") -> bytes:
    """The bytes of a picture of one colour."""
    file = io.BytesIO()
    Image.new(mode, (width, height), 1).save(file, kind)
    return file.getvalue()


def album(folder: Path) -> Path:
    """Four classes of two images."""
    for i in range(8):
        path = folder / f"kind {i // 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(20 + i))
    return folder


def saved(folder: Path) -> Path:
    """A folder with the bundle and a checkpoint of three steps."""
    settings = config(SINUSOID)
    prepared = prepare(settings.recipe())
    plan, _ = choose_plan(prepared, 0, 1)
    learner = Learner(prepared.meta, settings.outer)
    for _ in range(3):
        learner.apply([Update(prepared.meta, 1, {})])
    checkpoint.save(str(folder / "checkpoints"), settings, plan, learner, {}, 1)
    bundle.save(str(folder / "bundle"), settings.recipe(), learner.meta())
    return folder


@cache
def held() -> Path:
    """The whole files, made once: a run's, and a data set of eight images."""
    folder = saved(Path(HELD.name))
    os.environ["METATRAIN_CACHE"] = str(folder / "cache")
    read_folder("small", album(folder / "photos"))[0].save()
    return folder


def predicted(folder: Path) -> None:
    """Do with a bundle what `adapt` does."""
    learned = inference.load(folder)
    learned.adapt([[0.1], [0.2]], [[0.3], [0.1]]).predict([[0.5]])


def resumed(folder: Path) -> None:
    """Do with a checkpoint what resuming and `evaluate` do."""
    found = checkpoint.load(str(folder))
    learner = Learner(prepare(found.config.recipe()).meta, found.config.outer)
    learner.load_state_dict(found.tensors, found.scalars)
    learner._optimizer.step(1.0)
    run.load_trained(str(folder), [])


def used(name: str) -> None:
    """Do with a data set what a run and the commands do."""
    store = ImageStore.open(name)
    duplicates(store, store.scheme(None))
    twins(store)
    assert store._repr_html_()
    family = FewShot(data=name, ways=2)
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        with suppress(InputError):
            family.check(split)
            family.sample(torch.Generator().manual_seed(0), 2, split)
    family.resolved()


def bundles(chance: random.Random) -> None:
    """Load a bundle and predict."""
    mutations.directory(held() / "bundle", Path("bad"), chance)
    predicted(Path("bad"))


def checkpoints(chance: random.Random) -> None:
    """Resume from a checkpoint."""
    (whole,) = (held() / "checkpoints").iterdir()
    mutations.directory(whole, Path("bad"), chance)
    resumed(Path("bad"))


def data_sets(chance: random.Random) -> None:
    """Open a data set and sample tasks of it."""
    whole = held() / "cache" / "small"
    os.environ["METATRAIN_CACHE"] = str(Path.cwd())
    mutations.data_set(whole, Path("bad"), chance)
    used("bad")


def images(chance: random.Random) -> None:
    """Read a picture, alone and among others."""
    kind, mode = chance.choice(FORMATS), chance.choice(["L", "RGB"])
    data = mutations.raw(picture(chance.randrange(1, 40), 20, mode, kind), chance)
    album(Path("photos"))
    path = Path("photos/kind 0") / f"odd.{kind.lower()}"
    path.write_bytes(data)
    read_folder("mine", Path("photos"))
    stack([path], (1, 8, 8))


def archives(chance: random.Random) -> None:
    """Read a zip of drawings."""
    with zipfile.ZipFile("images_background.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(4):
            file.writestr(f"images_background/A/character{i:02d}/0001_{i:02d}.png", picture())
    path = Path("images_background.zip")
    path.write_bytes(mutations.raw(path.read_bytes(), chance))
    list(omniglot._drawings(Path(), "images_background"))


def journals(chance: random.Random) -> None:
    """Read a sweep's journal and a run's metrics."""
    whole, values = Journal(Path("journal.jsonl")), {"outer.lr": 0.1}
    for i in range(3):
        whole.write(i, "values", values)
        whole.write(i, "report", Report(10, 0.5, 0.1, values)._asdict())
    whole.write(0, "ended", {"state": "completed", "cause": ""})
    events = [json.loads(line) for line in Path("journal.jsonl").read_text().splitlines()]
    rows = [{"step": i, "train/loss_after": 0.5, "at_ms": i} for i in range(5)]
    for name, lines in (("journal.jsonl", events), ("metrics.jsonl", rows)):
        at = chance.randrange(len(lines))
        lines[at] = mutations.tree(lines[at], chance)
        text = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        Path(name).write_bytes(mutations.raw(text, chance) if chance.random() < 0.5 else text)
    Journal(Path("journal.jsonl")).steps()
    read_metrics(Path("metrics.jsonl"))
    with metrics_file(Folder("."), 4) as found:
        found.write(5, {"x": 1.0})


@cache
def tables() -> dict[str, bytes]:
    """Whole files of rows, by the ending of their names."""
    frame = pa.table({"group": ["a", "b"] * 6, "x": np.arange(12.0), "n": range(12)})
    found = {"parquet": io.BytesIO(), "npz": io.BytesIO(), "csv": io.BytesIO()}
    parquet.write_table(frame, found["parquet"])
    np.savez_compressed(found["npz"], x=np.ones((3, 2)), y=np.ones(3))
    csv.write_csv(frame, found["csv"])
    return {ending: file.getvalue() for ending, file in found.items()}


def rows(chance: random.Random) -> None:
    """Read a file of rows, as a table's family and as `adapt` do."""
    ending = chance.choice(sorted(tables()))
    path = Path(f"bad.{ending}")
    path.write_bytes(mutations.raw(tables()[ending], chance))
    if ending == "npz":
        arrays.read(path)
        return
    file = row_files.opened(str(path), row_files.stamp(str(path)), "group")
    used = feature_names(file, "group", "x", None)
    read_rows(str(path), file.stamp, "group", "x", used, (0.5, 0.0, 0.5))
    for name in file.types:
        columns.plain(file, name).to_pylist()


KINDS = {
    "rows": rows,
    "bundles": bundles,
    "checkpoints": checkpoints,
    "data sets": data_sets,
    "images": images,
    "archives": archives,
    "journals": journals,
}
