"""A sweep without a cluster: the trials that follow from its journal, the best of them, and what
schedulers and trials make of it.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cases import SINUSOID, config
from test_checkpoint import save_steps
from test_space import load

from metatrain import schema
from metatrain.core import InputError
from tuning import result, schedulers
from tuning import trial as trials
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
    made = [
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
    assert [each.number for each in ranked(search, made)] == order


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


NO_EVENTS = [
    b"5",
    b"null",
    b"{}",
    b"[]",
    b"\xff\xfe",
    b"",
    b"[" * 100_000,
    b'{"trial": -1, "at": 1, "values": {}}',
    b'{"trial": "x", "at": 1, "values": {}}',
    b'{"trial": 0, "at": 1}',
    b'{"trial": 0, "at": 1, "values": 5}',
    *(
        b'{"trial": 0, "at": %s, "ended": {"state": "completed", "cause": ""}}' % at
        for at in (b"NaN", b"Infinity", b"-1", b"1e308")
    ),
    b'{"trial": 0, "at": 1, "values": {"lr": 1e999}}',
    b'{"trial": 0, "at": 1, "values": {"lr": 1%s}}' % (b"0" * 400),
    b'{"trial": 1%s, "at": 1, "values": {}}' % (b"0" * 30),
    b'{"trial": 0, "at": 1, "report": [1]}',
    b'{"trial": 0, "at": 1, "report": {"step": 5}}',
    b'{"trial": 0, "at": 1, "ended": {"state": "lost", "cause": ""}}',
]


def test_lines_that_are_no_events_are_dropped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal.jsonl"
    book = Journal(path)
    book.write(0, "values", {"lr": 1})
    book.write(0, "report", report(5, 3.0))
    first, second = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*NO_EVENTS, first, *NO_EVENTS, second, b""]))
    for _ in range(2):
        assert Journal(path).trials == book.trials
    lost = 2 * len(NO_EVENTS)
    assert caplog.messages == [f"{path}: {lost} lines that are no events are dropped"]
    assert path.read_bytes().splitlines() == [first, second]


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


def test_asha_stops_at_its_rungs_and_at_the_end(tmp_path: Path) -> None:
    """Half of those that reached a rung go on, and 20 steps are all."""
    search = load(tmp_path, {"scheduler": {"name": "asha", "first_rung": 5, "reduction": 2}})
    asha = schedulers.scheduler(search, Journal(tmp_path / "journal.jsonl"))

    def reported(name: str, step: int, value: float) -> Any:
        of = SimpleNamespace(trial_id=name, name=name)
        if step == 4:
            asha.on_trial_add(None, of)
        return asha.on_trial_result(None, of, {"step": step, "compared": value})

    assert [reported(name, 4, 9.0) for name in "abcd"] == ["CONTINUE"] * 4  # before the first rung
    assert [reported("a", 5, 1.0), reported("b", 5, 2.0)] == ["CONTINUE", "STOP"]
    assert reported("c", 5, 1.4) == "CONTINUE"  # the median is 1.5
    assert reported("d", 5, 1.6) == "STOP"
    assert reported("a", 20, 0.1) == "STOP"


def test_pbt_is_what_the_sweep_says_and_stays_in_its_ranges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"name": "pbt", "every_steps": 10, "quantile": 0.3, "resample": 0.4}
    search = load(tmp_path, {"scheduler": asked})
    monkeypatch.setattr(schedulers, "PopulationBasedTraining", lambda **options: options)
    given: Any = schedulers.scheduler(search, Journal(tmp_path / "journal.jsonl"))
    mutated = given.pop("hyperparam_mutations")["values"]
    assert mutated.keys() == {"algorithm.inner_lr", "outer.lr"}
    explored = given.pop("custom_explore_fn")
    wild = {"values": {"algorithm.inner_lr": 9.0, "outer.lr": 1e-9}}
    assert explored(wild) == {"values": {"algorithm.inner_lr": 0.1, "outer.lr": 0.001}}
    assert explored({"values": {"outer.lr": 0.002}}) == {"values": {"outer.lr": 0.002}}
    assert given == {
        "time_attr": "step",
        "metric": "compared",
        "mode": "min",
        "perturbation_interval": 10,
        "quantile_fraction": 0.3,
        "resample_probability": 0.4,
    }


def test_optuna_knows_what_ended_and_first_tries_again_what_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[Any] = []
    monkeypatch.setattr(
        schedulers.OptunaSearch, "add_evaluated_point", lambda self, *point: known.append(point)
    )
    book = Journal(tmp_path / "journal.jsonl")
    for number, state in enumerate(("completed", "failed", "stopped")):
        values = {"outer.lr": 0.002 + number / 1000}
        book.write(number, "values", values)
        book.write(number, "report", report(5, 3.0 - number) | {"values": values})
        book.write(number, "ended", {"state": state, "cause": ""})
    again = {"algorithm.inner_lr": 0.05, "outer.lr": 0.003}
    optuna = schedulers.optuna_search(load(tmp_path, {"search": "optuna"}), book, [again])
    assert known == [({"values/outer.lr": 0.002}, 3.0), ({"values/outer.lr": 0.004}, 1.0)]
    assert optuna.suggest("trial")["values"] == pytest.approx(again)


def test_a_trial_is_a_run_with_values_of_its_own() -> None:
    base = schema.dump(config(SINUSOID))
    shared = trials.Shared("s", "runs/s", base, "val/mse_after", "min", False, None, "", "r.yaml")
    found = shared.config({"outer.lr": 0.5, "algorithm.inner_lr": 0.25}, 7)
    assert (found.name, found.output) == ("s-07", "runs/s/trials/07")
    assert (found.outer.lr, found.algorithm.inner_lr) == (0.5, 0.25)
    assert base == schema.dump(config(SINUSOID))  # the next trial's


def test_a_trial_that_resumes_reports_what_it_had_up_to_its_checkpoint(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"step": step, "train/loss": 1.0} for step in (1, 5, 10, 15)]
    for row in rows[1:]:
        row |= {"val/mse_after": float(row["step"]), "val/mse_after_ci95": 0.5}
    rows[2] |= {"val/mse_after": None, "val/diverged_tasks": 3.0}
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 20, "val')
    first, second = trials._past(path, 10, "val/mse_after", {"lr": 1})
    assert first == Report(5, 5.0, 0.5, {"lr": 1})
    assert (second.step, math.isnan(second.value), second.diverged_tasks) == (10, True, 3)


def test_a_schedule_says_since_when_who_trained_with_what() -> None:
    notes: dict[str, str] = {}
    went_on = [(0, 1, 0.1), (5, 1, 0.1), (10, 1, 0.2), (15, 2, 0.2), (15, 2, 0.3)]
    for step, number, lr in went_on:
        trials._continue_schedule(notes, step, number, {"lr": lr})
    assert [tuple(part.values()) for part in json.loads(notes["schedule"])] == [
        (step, number, {"lr": lr}) for step, number, lr in went_on if step != 5
    ]


def test_the_winners_checkpoint_is_that_of_its_last_validation(tmp_path: Path) -> None:
    search: Any = SimpleNamespace(folder=tmp_path)
    winner = trial(3, 0.1)
    root = f"{tmp_path}/trials/03/checkpoints"
    with pytest.raises(InputError, match="trial 3 has no checkpoint yet"):
        result._checkpoint_of(search, winner, 5)
    save_steps(root, [5, 10])
    found = [result._checkpoint_of(search, winner, step) for step in (5, 7)]
    assert found == [f"{root}/step-00000005", f"{root}/step-00000010"]  # else the newest


def test_a_result_has_a_row_for_each_trial() -> None:
    """A trial made all steps that it reported, also if the last validation is no number."""
    lost = Trial(4, {"lr": 2}, [Report(5, 1.0, 0.1, {}), Report(10, NAN, NAN, {})], "diverged")
    best = Trial(1, {"lr": 1}, [Report(20, 0.5, 0.1, {}, diverged_tasks=2)], "completed")
    found = result._as_json(result.Outcome([best, lost], best, [], "by mse", None))
    assert found["trials"] == [
        {"trial": 1, "state": "completed", "step": 20, "value": 0.5, "diverged_tasks": 2, "lr": 1},
        {
            "trial": 4,
            "state": "diverged",
            "step": 10,
            "value": None,
            "diverged_tasks": None,
            "lr": 2,
        },
    ]
    assert (found["winner"], found["values"], found["chosen_by"]) == (1, {"lr": 1}, "by mse")


@pytest.mark.parametrize(
    "text", ["", "{", "5", '"x"', "[5]", "[[]]", '[{"step": 1}]', "[" * 100_000, '{"a": 1}']
)
def test_a_schedule_that_is_none_is_refused_in_a_sentence(text: str) -> None:
    turn = {"step": 0, "trial": 1, "values": {"outer.lr": 0.1}}
    assert trials.schedule_of({"schedule": json.dumps([turn])}) == [turn]
    assert trials.schedule_of({}) == []
    with pytest.raises(InputError, match="holds no schedule of values"):
        trials.schedule_of({"schedule": text})
