"""A sweep's journal: the trials that follow from its lines, and which of them is the best."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_space import load

from tuning import schedulers
from tuning.journal import Journal, Report, Trial, ranked

NAN = math.nan


def trial(number: int, value: float, state: Any = "completed", lost: int = 0) -> Trial:
    return Trial(number, {}, [Report(4, value, 0.0, {}, diverged_tasks=lost)], state)


@pytest.mark.parametrize(
    ("mode", "order"),
    [("min", [2, 3, 0, 5, 4, 6, 8, 1, 7]), ("max", [0, 2, 3, 5, 4, 6, 1, 8, 7])],
)
def test_the_winner_made_all_its_steps_and_lost_the_fewest_tasks(
    mode: Any, order: list[int]
) -> None:
    trials = [
        trial(0, 0.5),
        trial(1, 0.1, "stopped"),
        trial(3, 0.3),  # as good as the second, and later
        trial(2, 0.3),
        trial(4, 0.9 if mode == "max" else 0.01, lost=2),
        trial(5, 0.2, lost=1),
        trial(6, NAN),
        Trial(7, {}),
        trial(8, 0.05, "timed out"),
    ]
    search: Any = SimpleNamespace(mode=mode)
    assert [each.number for each in ranked(search, trials)] == order


def report(step: int, value: float | None, **more: Any) -> dict[str, Any]:
    return {"step": step, "value": value, "ci95": 0.0, "values": {"lr": step}, **more}


def test_trials_are_the_fold_of_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    book = Journal(path)
    book.write(0, "values", {"lr": 1})
    for step, value in ((5, 3.0), (10, 2.0), (15, 1.0), (10, 2.5)):  # it went on from step 5
        book.write(0, "report", report(step, value))
    book.write(1, "values", {"lr": 7})
    book.write(1, "report", report(5, 4.0))
    book.write(1, "report", report(5, None, diverged="not finite"))  # beside what it reported
    book.write(1, "ended", {"state": "diverged", "cause": "not finite"})
    again = Journal(path)
    assert again.trials.keys() == book.trials.keys()
    first, second = again.trials.values()
    assert [(r.step, r.value) for r in first.reports] == [(5, 3.0), (10, 2.5)]
    assert (first.values, first.state, first.steps) == ({"lr": 10}, "running", 10)
    assert first.last is first.reports[-1]
    assert [r.step for r in second.reports] == [5, 5]
    assert (second.state, second.cause, second.over) == ("diverged", "not finite", True)
    assert second.last is None  # nothing is known of where it went
    assert second.finite() == second.reports[:1]
    assert again.steps() == book.steps() == 15
    again.write(1, "values", {"lr": 8})  # it is tried again
    assert (second.state, second.cause, second.values) == ("running", "", {"lr": 8})


def test_half_a_line_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal(path).write(0, "report", report(5, 3.0))
    whole = path.read_text()
    path.write_text(whole + '{"trial": 0, "rep')
    book = Journal(path)
    assert path.read_text() == whole
    book.write(0, "report", report(10, 2.0))
    assert [r.step for r in Journal(path).trials[0].reports] == [5, 10]


@pytest.mark.parametrize("state", ["failed", "timed out", "running"])
def test_what_has_not_ended_is_tried_again(state: Any) -> None:
    assert not trial(0, 1.0, state).over
    assert all(trial(0, 1.0, done).over for done in ("completed", "stopped", "diverged"))


def test_what_is_known_of_a_rung_is_not_judged_again(tmp_path: Path) -> None:
    search = load(tmp_path, {"scheduler": {"name": "asha", "first_rung": 10}})
    book = Journal(tmp_path / "journal.jsonl")
    for number, value in ((0, 5.0), (1, 1.0), (2, 2.0)):  # the first one passed, being the first
        book.write(number, "report", report(10, value))
    book.write(1, "ended", {"state": "completed", "cause": ""})
    scheduler = schedulers.scheduler(search, book)
    again = SimpleNamespace(trial_id="new", name="0")
    scheduler.on_trial_add(None, again)
    assert scheduler.on_trial_result(None, again, {"step": 10, "compared": 5.0}) == "CONTINUE"
    fresh = SimpleNamespace(trial_id="fresh", name="7")
    scheduler.on_trial_add(None, fresh)
    assert scheduler.on_trial_result(None, fresh, {"step": 10, "compared": 6.0}) == "STOP"
