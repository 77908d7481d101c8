"""Ray starts on this machine, or one sentence says why it cannot; the caller's random numbers do
not depend on it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.pools import ray_connection
from metatrain.core import InputError

pytestmark = pytest.mark.ray

STARTS = """
import json, os, random, sys
import numpy as np
from cluster.pools.ray_connection import connected
from metatrain.core import InputError

for variables in json.loads(sys.argv[1]):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        os.environ.pop(name, None)
    os.environ |= variables
    random.seed(1)
    np.random.seed(1)
    try:
        with connected(None) as local:
            said = f"started {local}"
    except InputError as error:
        said = str(error)
    numbers = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    print(json.dumps([said, numbers == (random.random(), np.random.random())]))
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is no longer than Ray's sockets allow."""
    with tempfile.TemporaryDirectory(prefix="mt", dir="/tmp") as folder:
        yield Path(folder)


def test_a_temporary_folder_that_ray_cannot_use_is_one_sentence(short: Path) -> None:
    long, file = short / ("x" * 60), short / "file"
    file.touch()
    cases = {
        rf"TMPDIR={long} \(AF_UNIX path length cannot exceed 107 bytes: {long}/ray/session_": {
            "TMPDIR": str(long)
        },
        rf"RAY_TMPDIR={long} \(AF_UNIX path length": {
            "RAY_TMPDIR": str(long),
            "TMPDIR": str(short),
        },
        rf"TMPDIR={file} \(\[Errno 20\] Not a directory: '{file}/ray'\)": {"TMPDIR": str(file)},
        r"RAY_TMPDIR=/proc/no/where \(\[Errno 2\] No such file": {"RAY_TMPDIR": "/proc/no/where"},
        r"TMPDIR=tmp \(it is no absolute path\)": {"TMPDIR": "tmp"},
        r"TMPDIR= \(it is no absolute path\)": {"TMPDIR": ""},
        rf"TMPDIR={short}/é \(Ray takes ASCII letters only\)": {"TMPDIR": f"{short}/é"},
        "started True": {"RAY_TMPDIR": f"{short}/a b/new"},
    }
    command = [sys.executable, "-c", STARTS, json.dumps(list(cases.values()))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases)
    advice = r".*: set RAY_TMPDIR to a short folder that can be written, such as /tmp"
    for pattern, (said, same) in zip(cases, answers, strict=True):
        whole = (
            pattern
            if pattern.startswith("started")
            else f"Ray cannot have its files in {pattern}{advice}"
        )
        assert re.fullmatch(whole, said), said
        assert same, said


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("ray://me:hunter2@head:10001", "ray://***@head:10001 is an address of Ray Client, which"),
        ("http://head:8265", "http://head:8265 is a dashboard's address, which takes jobs"),
    ],
)
def test_an_address_that_takes_no_runs_is_one_sentence(address: str, sentence: str) -> None:
    with pytest.raises(InputError) as refused, ray_connection.connected(address):
        pass
    assert refused.value.what.startswith(sentence)
    assert "`metatrain submit" in refused.value.remedy
    assert "hunter2" not in str(refused.value)


def test_a_node_that_a_busy_machine_starts_too_late_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [
        Exception("The current node timed out during startup. This could happen"),
        ValueError("no such option"),
    ]

    def init(**_: object) -> None:
        if errors:
            raise errors.pop(0)

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ValueError, match="no such option"):
        ray_connection._init_local({})
    assert "Ray was not there after 30 s: starting it again" in caplog.text
    errors.append(Exception("The current node timed out during startup."))
    ray_connection._init_local({})
