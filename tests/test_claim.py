"""A folder has one process at a time that works in it, and a run notices if it loses its folder."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from cases import SINUSOID, config
from services import S3

from cluster import checkpoint, claim, loop, run
from cluster.claim import claimed
from cluster.collector import Requests
from cluster.pools.local_pool import LocalPool
from cluster.tracking import mlflow_store
from cluster.tracking.tracker import NoTracker
from metatrain import schema, storage
from metatrain.core import InputError


def test_a_folder_has_one_process_at_a_time_and_nothing_of_it_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with claimed(str(folder), "run") as check:
        with (
            pytest.raises(
                InputError, match=r"another process works on the run in \S+ \(process \d+ on "
            ),
            claimed(f"file://{folder}", "run"),
        ):
            pass
        check()
    assert not (tmp_path / "new").exists()
    folder.mkdir(parents=True)
    (folder / "x").write_text("mine")
    for _ in range(2):
        with claimed(str(folder), "run"):
            pass
    assert [path.name for path in folder.iterdir()] == ["x"]


@pytest.mark.parametrize("how", [os.symlink, os.link])
def test_a_lock_that_is_another_name_of_a_file_is_refused_and_the_file_kept(
    how: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    victim.write_text("mine")
    folder.mkdir()
    how(victim, folder / claim.LOCK)
    with (
        pytest.raises(InputError, match=r"cannot write to \S+ \(\S+/\.lock is "),
        claimed(str(folder), "run"),
    ):
        pass
    how(victim, folder / ".x.db.lock")
    with (
        pytest.raises(OSError, match=r"x\.db\.lock is "),
        mlflow_store.opening(f"sqlite:///{folder}/x.db"),
    ):
        pass
    assert victim.read_text() == "mine"
    assert (folder / claim.LOCK).exists()


def test_a_lock_for_which_the_disk_has_no_room_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            pytest.raises(InputError, match=r"cannot write to \S+ \(File too large\)"),
            claimed(str(tmp_path / "new" / "run"), "run"),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.ray  # it starts another Python
def test_a_run_has_one_driver_and_its_death_frees_the_run(tmp_path: Path) -> None:
    endless = config(
        SINUSOID, output=str(tmp_path / "run"), outer__steps=10**6, checkpoint__every_steps=3
    )
    code = (
        "import json, sys\n"
        "from cluster import run\n"
        "from cluster.config import RunConfig\n"
        "from metatrain import schema\n"
        "run.train(schema.parse(RunConfig, json.loads(sys.argv[1]), 'test'), resume='auto')\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(schema.dump(endless))], stderr=subprocess.DEVNULL
    )
    try:
        while checkpoint.latest(f"{tmp_path}/run/checkpoints") is None:
            assert first.poll() is None
            time.sleep(0.05)
        with pytest.raises(InputError, match="another process works on the run in"):
            run.train(endless, resume="auto")
        elsewhere = config(
            SINUSOID, output=str(tmp_path / "other"), checkpoint__uri=f"{tmp_path}/run"
        )
        with pytest.raises(InputError, match="another process works on the run in"):
            run.train(elsewhere)
        assert not (tmp_path / "other").exists()
    finally:
        first.kill()
        first.wait()
    with ExitStack() as claims:
        assert run.prepare(endless, "auto", claims=claims).learner.version % 3 == 0


@pytest.mark.parametrize("replaced", [False, True])
def test_a_run_whose_folder_is_removed_ends_at_its_next_checkpoint(
    replaced: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = config(SINUSOID, output=str(folder), outer__steps=9, checkpoint__every_steps=2)
    made: list[int] = []

    def on_step(step: int, metrics: loop.Metrics) -> None:
        made.append(step)
        if step == 3:
            shutil.rmtree(folder)
            if replaced:
                folder.mkdir()

    with ExitStack() as claims:
        ready = run.prepare(settings, claims=claims)
        pool = LocalPool(ready.prepared, ready.plan)
        hooks = loop.Hooks(on_step, lambda: None)
        with pytest.raises(InputError, match="run was removed or replaced while its run was under"):
            run.learn(ready, pool, Requests(pool, lambda: False), NoTracker(), [hooks])
    assert made == [1, 2, 3, 4]
    assert folder.exists() == replaced
    assert not list(folder.glob("*"))  # they are the next run's


@pytest.mark.usefixtures("unrenewed")
def test_a_run_that_lost_its_storage_writes_nothing_more_there(s3: S3) -> None:
    where = "s3://bucket/claims/lost"
    settings = config(SINUSOID, output=where, outer__steps=9, checkpoint__every_steps=2)
    other = json.dumps({"id": "y", "holder": "process 7 on moon"}).encode()

    def on_step(step: int, metrics: loop.Metrics) -> None:
        storage.write(f"{where}/{claim.LEASE}", other)

    with ExitStack() as claims:
        ready = run.prepare(settings, claims=claims)
        pool = LocalPool(ready.prepared, ready.plan)
        hooks = loop.Hooks(on_step, lambda: None)
        with pytest.raises(InputError, match=r"another process works .* \(process 7 on moon\)"):
            run.learn(ready, pool, Requests(pool, lambda: False), NoTracker(), [hooks])
    assert [info.base_name for info in storage.listing(where)] == [claim.LEASE]
    assert storage.read(f"{where}/{claim.LEASE}") == other
    storage.remove(where)


@pytest.fixture
def unrenewed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No renewal falls between a test's write of another's lease and the next check, nor behind
    the removal of a lease.
    """
    monkeypatch.setattr(claim, "RENEWED_S", 3600)
    monkeypatch.setattr(claim, "EXPIRES_S", 1)


@pytest.mark.ray
def test_a_storage_has_one_process_at_a_time_by_its_lease(
    s3: S3,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    caplog.set_level(logging.INFO)
    where = "s3://bucket/claims/run"
    lease = f"{where}/{claim.LEASE}"
    monkeypatch.setattr(claim, "RENEWED_S", 0.05)
    monkeypatch.setattr(claim, "EXPIRES_S", 600)  # the holder has renewed it before
    with claimed(where, "sweep") as check:
        check()
        with (
            pytest.raises(
                InputError, match=r"another process works on the sweep in \S+ \(process \d+ on "
            ),
            claimed(where, "sweep"),
        ):
            pass
        request.getfixturevalue("unrenewed")
    assert storage.listing(where) == []
    for dead in (b'{"id": "x", "holder": "process 7 on moon"}', b"[]"):
        storage.write(lease, dead)
        with claimed(where, "run"):  # after a wait: nobody renews it
            pass
        assert storage.listing(where) == []
    waits = r"waiting 1 s, until \d\d:\d\d:\d\d, for a sign of process 7 on moon, which may work in"
    assert re.search(waits, caplog.text)
    with claimed(where, "run") as check:
        other = json.dumps({"id": "y", "holder": "process 7 on moon"}).encode()
        storage.write(lease, other)  # by one that was away for longer than a lease lasts
        with pytest.raises(
            InputError, match=r"another process works on the run in \S+ \(process 7 on moon\)"
        ):
            check()
    assert storage.read(lease) == other
    storage.remove(lease)
    with claimed(where, "run") as check:
        storage.remove(lease)
        with pytest.raises(InputError, match="claims/run was removed while its run was under way"):
            check()
