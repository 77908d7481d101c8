"""Checkpoints resume exactly, are complete or not there, and are refused when they are not what was
saved.
"""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, REPTILE, SINUSOID, config
from pyarrow import fs

from cluster import checkpoint, run
from cluster.config import RunConfig
from cluster.resumable import check_resumable
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import bundle, disk, schema, storage
from metatrain.core import InputError, Ticket, Update
from metatrain.learner import Learner
from metatrain.ops.build import KernelsUnavailable
from metatrain.start import prepare


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return bundle.load(str(folder / "bundle"))[1].model


def save_steps(
    root: str, versions: list[int], keep: int = 2, base: dict[str, Any] = SINUSOID
) -> None:
    settings = config(base)
    learner = Learner(prepare(settings.recipe()).meta, settings.outer)
    plan, _ = choose_plan(prepare(settings.recipe()), 0, 1)
    for version in versions:
        learner.version = version
        checkpoint.save(root, settings, plan, learner, {"mlflow_run_id": "abc"}, keep)


@pytest.mark.ray
@pytest.mark.parametrize("base", [SINUSOID, REPTILE], ids=["maml-adam", "reptile-sgd"])
def test_train_ten_equals_train_five_kill_resume(base: dict[str, Any], tmp_path: Path) -> None:
    """A process killed without warning after its fifth step, and another one that resumes."""
    schedule = {"outer__steps": 10, "outer__schedule": "linear", "checkpoint__every_steps": 5}
    killed = tmp_path / "killed"
    settings = json.dumps(checkpoint.schema.dump(config(base, output=str(killed), **schedule)))
    code = (
        "import json, os, signal, sys\n"
        "from cluster import checkpoint, run\n"
        "from cluster.config import RunConfig\n"
        "from metatrain import schema\n"
        "save = checkpoint.save\n"
        "def save_and_die(*args, **named):\n"
        "    save(*args, **named)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint.save = save_and_die\n"
        "run.train(schema.parse(RunConfig, json.loads(sys.argv[1]), 'test'))\n"
    )
    dying = subprocess.Popen([sys.executable, "-c", code, settings], stderr=subprocess.PIPE)
    straight, _ = run.train(
        config(base, output=str(tmp_path / "straight"), **schedule)
    )  # while that one starts
    _, errors = dying.communicate()
    assert dying.returncode == -signal.SIGKILL, errors
    assert not (killed / "bundle").exists()
    resumed, _ = run.train(config(base, output=str(killed), **schedule), resume="auto")
    assert str(resumed) == str(killed)
    for name, p in parameters(straight).items():
        assert torch.equal(p, parameters(killed)[name]), name
    rows = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (straight, killed)
    ]
    assert [row["step"] for row in rows[1]] == list(range(1, 11))
    assert [row["train/loss_after"] for row in rows[0]] == [
        row["train/loss_after"] for row in rows[1]
    ]


@pytest.mark.parametrize("probe", CASES)
def test_what_every_kind_learns_and_tracks_goes_on_exactly(probe: str, tmp_path: Path) -> None:
    settings = config(CASES[probe])
    recipe, (plan, _) = settings.recipe(), choose_plan(prepare(settings.recipe()), 0, 1)
    worker = Worker(prepare(recipe), plan)

    def learn(learner: Learner, until: int) -> torch.Tensor:
        while learner.version < until:
            worker.load(
                -learner.version - 2, worker.layout.flatten(learner.meta())
            )  # a version that it has not
            update, _ = worker.compute(Ticket("update", "train", learner.version, 0))
            assert isinstance(update, Update)
            learner.apply([update])
        return worker.layout.flatten(learner.meta())

    straight, stopped, resumed = (Learner(prepare(recipe).meta, recipe.outer) for _ in range(3))
    expected = learn(straight, 4)
    learn(stopped, 2)
    saved = checkpoint.load(checkpoint.save(str(tmp_path), settings, plan, stopped, {}, 1))
    resumed.load_state_dict(saved.tensors, saved.scalars)
    assert torch.equal(learn(resumed, 4), expected)


def test_a_run_goes_on_by_the_path_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a compiler has come since, the kernels do not take over: the parameters would be
    others.
    """

    def unavailable(name: str) -> None:
        raise KernelsUnavailable("there is no compiler")

    base = CASES["maml-conv4-fused"] | {"output": str(tmp_path / "run")}
    with monkeypatch.context() as patch:
        patch.setattr("metatrain.models.blocks.library", unavailable)
        run.train(config(base, outer__steps=2))
    assert run.prepare(config(base), resume="auto").plan.path == "reference"
    assert run.prepare(config(base, output=str(tmp_path / "new"))).plan.path == "fused"


def test_only_the_newest_are_kept_and_an_unfinished_one_does_not_count(tmp_path: Path) -> None:
    save_steps(str(tmp_path), [1, 2, 3])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    (tmp_path / "step-00000003" / bundle.MANIFEST).unlink()  # as if killed before the last write
    newest = checkpoint.latest(str(tmp_path))
    assert newest is not None
    assert newest.endswith("step-00000002")
    assert checkpoint.load(str(tmp_path)).scalars["version"] == 2
    assert checkpoint.load(newest).notes == {"mlflow_run_id": "abc"}


def test_a_removal_that_breaks_off_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(str(tmp_path), [1, 2])
    remove = storage.remove

    def break_off(uri: str) -> None:
        if Path(uri).is_dir():
            raise KeyboardInterrupt
        remove(uri)

    monkeypatch.setattr(storage, "remove", break_off)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.forget_after(str(tmp_path), 1)
    assert checkpoint.latest(str(tmp_path)) == f"{tmp_path}/step-00000001"


def test_only_what_is_newer_is_forgotten(tmp_path: Path) -> None:
    save_steps(str(tmp_path), [1, 2, 3], keep=3)
    checkpoint.forget_after(str(tmp_path), 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def damage(step: Path, what: str, name: str) -> None:
    path = step / name
    content = bytearray(path.read_bytes())
    if what == "flipped":
        content[len(content) // 2] ^= 1
    elif what == "truncated":
        content = content[:-3]
    elif what == "emptied":
        content.clear()
    elif what == "zeros":
        content = bytearray(len(content))
    elif what == "no JSON":
        content = bytearray(b"[]x")
    elif what == "deep":
        content = bytearray(b"[" * 100_000)
    path.unlink()
    if what != "removed":
        path.write_bytes(content)


DAMAGES = [
    *((what, name) for name in sorted(checkpoint.FILES) for what in ("flipped", "truncated")),
    ("removed", "learner.json"),
    *((what, bundle.MANIFEST) for what in ("emptied", "zeros", "truncated", "no JSON", "deep")),
]
# Contents that no checkpoint has, with the checksums that they have.
JUNK = {
    "learner.safetensors": [b"", b"\0" * 8, b"\xff" * 100],
    "learner.json": [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"version": "4"}',
        b'{"version": -1}',
        b'{"version": 999999998}',
        b"[" * 100_000,
    ],
    "run.json": [b"5", b"{}", b'{"format": 2}', b'{"format": 2, "plan": {"path": 5}, "notes": {}}'],
    "config.yaml": [b"", b"\xff", b"a: [", b"name: x", b"5", b"&a [*a]"],
}


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(("what", "name"), DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(
    what: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(str(tmp_path), [3, 4])
    damage(tmp_path / "step-00000004", what, name)
    with pytest.raises(bundle.Damaged, match=r"step-00000004 is damaged.*use another checkpoint"):
        checkpoint.load(f"{tmp_path}/step-00000004")
    assert checkpoint.load(str(tmp_path)).version == 3
    (said,) = warnings_of(caplog)
    assert said.startswith(f"{tmp_path}/step-00000004 is damaged")
    assert said.endswith("; the one after 3 steps is used")
    damage(tmp_path / "step-00000003", what, name)
    with pytest.raises(bundle.Damaged, match="step-00000004 is damaged"):
        checkpoint.load(str(tmp_path))


def test_a_checkpoint_that_its_run_removes_while_it_is_read_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, read = str(tmp_path), storage.read
    save_steps(root, [1, 2])

    def read_later(uri: str, *most: int) -> bytes:
        if "step-00000002" in uri and not uri.endswith("manifest.json"):
            save_steps(root, [3, 4])
        return read(uri, *most)

    monkeypatch.setattr(storage, "read", read_later)
    assert checkpoint.load(root).version == 4


@pytest.mark.parametrize("name", JUNK)
def test_contents_that_are_not_a_checkpoints_are_damage_whatever_their_checksum(
    name: str, tmp_path: Path
) -> None:
    save_steps(str(tmp_path), [3, 4])
    step = f"{tmp_path}/step-00000004"
    files = bundle.read_directory(step)
    for content in JUNK[name]:
        bundle.write_directory(step, files | {name: content})
        with pytest.raises(bundle.Damaged):
            checkpoint.load(step)
        assert checkpoint.load(str(tmp_path)).version == 3


def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one_to_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = {"outer__steps": 6, "checkpoint__every_steps": 2, "evaluation__tasks": 7}
    expected, _ = run.train(config(SINUSOID, output=str(tmp_path / "whole"), **schedule))
    settings = config(SINUSOID, output=str(tmp_path / "run"), **schedule)
    run.train(config(SINUSOID, output=str(tmp_path / "run"), **schedule | {"outer__steps": 4}))
    root = tmp_path / "run" / "checkpoints"
    damage(root / "step-00000004", "flipped", "learner.safetensors")
    half = root / "step-00000003"
    half.mkdir()
    (half / "learner.json.partial").write_text("{")
    (tmp_path / "run" / "metrics.jsonl.partial").write_text("{")
    (tmp_path / "run" / "notes.partial").write_text("mine")
    folder, _ = run.train(settings, resume="auto")
    assert len(warnings_of(caplog)) == 1
    for name, p in parameters(Path(str(expected))).items():
        assert torch.equal(p, parameters(Path(str(folder)))[name]), name
    assert sorted(path.name for path in root.iterdir()) == ["step-00000004", "step-00000006"]
    left = [path.name for path in (tmp_path / "run").rglob("*.partial")]
    assert left == ["notes.partial"]  # which is no file of a run's


class Full:
    """A disk with room for so many bytes in a folder."""

    def __init__(self, root: Path, size: float) -> None:
        self.root, self.size = root, size

    def put(self, path: Path, data: bytes) -> None:
        held = sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file())
        room = max(0, int(self.size - held))
        path.write_bytes(data[:room])
        if len(data) > room:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("room", "left"), [(2.5, [2, 3]), (1.5, [2]), (0.5, [2])])
def test_a_full_disk_costs_the_oldest_of_several_checkpoints_once(
    room: float,
    left: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_steps(str(tmp_path), [1, 2])
    size = sum(p.stat().st_size for p in (tmp_path / "step-00000001").iterdir())
    monkeypatch.setattr(disk, "put", Full(tmp_path, room * size).put)
    if left == [2, 3]:
        save_steps(str(tmp_path), [3])
    for _ in range(0 if left == [2, 3] else 2):  # the last one stays, whatever happens
        with pytest.raises(InputError, match="No space left on device"):
            save_steps(str(tmp_path), [3], keep=1)
    (said,) = warnings_of(caplog)
    assert said.endswith(f"{tmp_path}/step-00000001 is removed to make room")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{v:08d}" for v in left]
    assert checkpoint.load(str(tmp_path)).version == left[-1]


def test_a_folder_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint: give a run's folder"):
        checkpoint.load(str(tmp_path))


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    save_steps(str(tmp_path), [4])
    names = {p.name for p in (tmp_path / "step-00000004").iterdir()}
    assert names == checkpoint.FILES | {bundle.MANIFEST}
    assert {Path(name).suffix for name in names} == {".safetensors", ".json", ".yaml"}


def test_any_pyarrow_filesystem_will_do(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/elsewhere"
    save_steps(uri, [1, 2, 3])
    assert checkpoint.load(uri).scalars["version"] == 3
    assert isinstance(storage.filesystem(uri)[0], fs.LocalFileSystem)
    with pytest.raises(InputError, match="cannot use nonsense://x as storage"):
        storage.filesystem("nonsense://x")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("outer.lr", 0.5, True),
        ("algorithm.inner_lr", 0.5, True),
        ("outer.steps", 40, True),
        ("outer.clip_norm", 1.0, True),  # as is advised to a run that diverged
        ("workers.threads", 2, True),
        ("output", "elsewhere", True),
        ("name", "another", True),
        ("evaluation.tasks", 9, True),
        ("evaluations", {"more": {"tasks": 4}}, True),
        ("tracking.every_steps", 7, True),
        ("checkpoint.keep", 5, True),
        ("outer.optimizer", "SGD", False),
        ("outer.schedule", "linear", False),
        ("outer.options", {"weight_decay": 0.1}, False),
        ("family.shots", 9, False),
        ("model.hidden", [3], False),
        ("seed", 1, False),
    ],
)
def test_only_numbers_of_outer_and_algorithm_may_change(
    key: str, value: Any, allowed: bool, tmp_path: Path
) -> None:
    save_steps(str(tmp_path), [4])
    saved = checkpoint.load(str(tmp_path))
    changed = config(SINUSOID, **{key.replace(".", "__"): value})
    plan, _ = choose_plan(prepare(changed.recipe()), 0, 1)
    if allowed:
        check_resumable(saved, changed, plan)
        return
    with pytest.raises(InputError, match=rf"was trained with {key} = .* and cannot resume with"):
        check_resumable(saved, changed, plan)


def test_numbers_that_privacy_is_counted_by_may_not_change(tmp_path: Path) -> None:
    """Else earlier steps would count as if they had had the noise of later ones."""
    save_steps(str(tmp_path), [4])
    how = {"name": "private", "clip": 1.0, "noise_multiplier": 1.0, "delta": None}
    private = config(SINUSOID, outer__tasks_per_ticket=1, outer__aggregate=how)
    saved = checkpoint.load(str(tmp_path))._replace(config=private)
    for key, value, allowed in (
        ("outer.aggregate.noise_multiplier", 8.0, False),
        ("outer.aggregate.population", 10**6, False),
        ("outer.tasks_per_step", 20, False),
        ("outer.aggregate.clip", 0.5, True),
        ("outer.aggregate.delta", 1e-6, True),
        ("outer.steps", 40, True),
    ):
        tree = schema.dump(private)
        schema.put(tree, key, value)
        changed = schema.parse(RunConfig, tree, "test")
        if allowed:
            check_resumable(saved, changed, saved.plan)
            continue
        with pytest.raises(InputError, match=rf"trained with {key} = .* start a new run") as error:
            check_resumable(saved, changed, saved.plan)
        assert "privacy" in error.value.remedy


def test_a_resumed_run_goes_on_in_its_row_of_mlflow(tmp_path: Path) -> None:
    save_steps(str(tmp_path / "run" / "checkpoints"), [4])
    ready = run.prepare(config(SINUSOID, output=str(tmp_path / "run")), "auto")
    assert (ready.learner.version, ready.notes) == (4, {"mlflow_run_id": "abc"})


def test_a_change_that_nothing_would_follow_is_refused(tmp_path: Path) -> None:
    save_steps(str(tmp_path), [20])  # of 20
    saved = checkpoint.load(str(tmp_path))
    with pytest.raises(InputError, match="20 outer steps"):
        check_resumable(saved, config(SINUSOID, outer__lr=0.5), saved.plan)
    check_resumable(saved, config(SINUSOID), saved.plan)
    more = config(SINUSOID, outer__lr=0.5, outer__steps=21)
    check_resumable(saved, more, saved.plan)
    with pytest.raises(InputError, match="on the batched path"):
        check_resumable(saved, more, saved.plan._replace(path="fused"))


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    settings = config(SINUSOID, outer__steps=2, output=str(tmp_path / "mine"))
    run.train(settings)
    with pytest.raises(InputError, match="already holds a run: pass --resume auto"):
        run.train(settings)


def test_a_bundle_is_read_back_and_evaluates_like_its_run(tmp_path: Path) -> None:
    folder, (trained,) = run.train(
        config(GLYPHS, outer__steps=3, output=str(tmp_path / "g"), evaluation__tasks=10)
    )
    local = ["workers.max=0"]
    for uri in (str(folder), str(folder / "bundle"), str(folder / "checkpoints" / "step-00000003")):
        (again,) = run.evaluate(uri, local)
        assert again == trained


def test_a_checkpoint_of_another_format_is_refused_in_one_sentence(tmp_path: Path) -> None:
    save_steps(str(tmp_path), [1])
    files = bundle.read_directory(f"{tmp_path}/step-00000001")
    run_json = json.loads(files["run.json"])
    del run_json["format"]  # as it was before names were those of Meta.flat()
    bundle.write_directory(
        f"{tmp_path}/step-00000001", files | {"run.json": json.dumps(run_json).encode()}
    )
    with pytest.raises(InputError) as error:
        checkpoint.load(str(tmp_path))
    assert error.value.what.endswith("was saved by another version of ray-metatrain")


def test_a_bundle_of_another_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    recipe = config(SINUSOID).recipe()
    bundle.save(str(tmp_path), recipe, prepare(recipe).meta)
    files = bundle.read_directory(str(tmp_path))
    former = files["recipe.yaml"].replace(b"init_std:", b"classifier: linear\n  init_std:")
    bundle.write_directory(str(tmp_path), files | {"recipe.yaml": former})
    with pytest.raises(InputError) as error:
        bundle.load(str(tmp_path))
    assert "model.classifier is no longer a key" in error.value.what
    assert error.value.remedy.startswith("use the version of ray-metatrain that saved it")
