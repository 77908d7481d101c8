"""A job's driver that dies is started again, with real processes in its place."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.jobs import retrying
from cluster.jobs.package import Job

# A driver: it notes its arguments, and ends as its start says, the last way for ever.
DRIVER = """
import os, signal, sys
ways, log, arguments = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]
with open(log, "a") as file:
    file.write(" ".join(arguments) + chr(10))
with open(log) as file:
    start = len(file.readlines())
way = ways[min(start, len(ways)) - 1]
if way == "stop":  # as Ray does: it sends SIGTERM to all processes of a job
    os.kill(os.getppid(), signal.SIGTERM)
    way = "SIGTERM"
if way.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, way))
sys.exit(int(way))
"""
FIRST, AGAIN = "train recipe.yaml", "train recipe.yaml --resume auto"


@pytest.mark.parametrize(
    ("ways", "retries", "code", "starts"),
    [
        ("0", 3, 0, 1),
        ("SIGKILL,SIGSEGV,0", 3, 0, 3),
        ("1,0", 3, 0, 2),  # as Ray ends a driver that has lost its head
        ("2", 3, 2, 1),  # refused in a sentence: it would be again
        ("130", 3, 130, 1),
        ("SIGKILL,2", 3, 2, 2),
        ("SIGKILL", 2, 137, 3),
        ("SIGKILL", 0, 137, 1),
        ("SIGTERM,0", 3, 0, 2),  # somebody ended the driver, and not the job
        ("stop", 3, 143, 1),
        ("SIGKILL,stop", 3, 143, 2),
    ],
)
def test_a_driver_that_dies_is_started_again_and_one_that_ends_is_not(
    tmp_path: Path, ways: str, retries: int, code: int, starts: int
) -> None:
    log = tmp_path / "log"
    driver = [sys.executable, "-I", "-S", "-c", DRIVER, ways, str(log), *FIRST.split()]
    assert retrying.supervise(driver, retries) == code
    assert log.read_text().splitlines() == [FIRST, *[AGAIN] * (starts - 1)]


def test_the_log_says_how_a_driver_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = [sys.executable, "-I", "-S", "-c", DRIVER, "SIGKILL,1", str(tmp_path / "log")]
    assert retrying.supervise(driver, 2) == 1
    assert capsys.readouterr().out.splitlines() == [
        "the driver was ended by SIGKILL: start 2 of 3",
        "the driver ended with exit code 1: start 3 of 3",
        "error: the driver ended with exit code 1 at start 3 of 3",
    ]


def test_a_job_goes_on_in_its_output_whatever_it_was_resumed_from() -> None:
    began = ["train", "recipe.yaml", "--resume", "/a"]
    assert retrying.resuming(began) == AGAIN.split()
    assert retrying.resuming(AGAIN.split()) == AGAIN.split()


def test_a_job_without_retries_is_the_driver_itself_and_one_with_them_starts_it() -> None:
    job = Job("a", FIRST.split(), {}, [], {})
    assert job.command() == f"python -m tuning.cli {FIRST}"
    assert job._replace(retries=2).command() == f"python -m cluster.jobs.retrying 2 {FIRST}"
