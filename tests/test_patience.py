"""Training ends early after validations without a better one; the best is the result, also after a
resume.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SINUSOID, config

from cluster import checkpoint, run
from cluster.patience import Patience
from metatrain import bundle
from metatrain.core import InputError
from metatrain.metrics import ACCURACY, MSE

IMPATIENT = SINUSOID | {
    "outer": {"steps": 40, "tasks_per_step": 4, "tasks_per_ticket": 2, "lr": 0.05},
    "validation": {"every_steps": 1, "tasks": 10, "patience": 3},
    "evaluation": {"tasks": 10},
    "checkpoint": {"every_steps": 1, "keep": 1},
}


def ends(patience: Patience, name: str, values: list[float | None], **metrics: float) -> list[bool]:
    found = []
    for step, value in enumerate(values):
        patience.note(step, {name: value, **metrics})
        found.append(patience.is_over())
    return found


def test_patience_counts_validations_without_a_better_one() -> None:
    name = "val/mse_after"
    patience = Patience(2, MSE)
    falls = [0.1, 5.0, 4.0, 4.0, 3.0, 3.5, 3.0]  # the first one is of untrained parameters
    assert ends(patience, name, falls) == [False] * 6 + [True]
    assert patience.best == 4
    accuracy = Patience(2, ACCURACY)
    rises = [0.9, 0.5, 0.6, 0.6, 0.5]
    assert ends(accuracy, "val/accuracy_after", rises) == [False] * 4 + [True]
    assert accuracy.best == 2
    assert not any(ends(Patience(0, MSE), name, falls + falls))  # 0: it does not end early
    assert ends(Patience(2, MSE), name, [9.0, 3.0, None, math.nan])[-1]
    assert not Patience(2, MSE).note(3, {"train/loss_after": 1.0})


def test_a_validation_with_diverged_tasks_is_no_better_for_what_it_leaves_out() -> None:
    patience = Patience(2, MSE)
    assert patience.note(1, {"val/mse_after": 5.0})
    assert not patience.note(2, {"val/mse_after": 1.0, "val/diverged_tasks": 2.0})
    assert patience.note(3, {"val/mse_after": 4.0})


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result_of(folder: Path) -> tuple[dict[str, torch.Tensor], int, str]:
    recipe, meta = bundle.load(str(folder / "bundle"))
    return meta.flat(), recipe.outer.steps, (folder / "result.json").read_text()


def test_the_best_validated_parameters_are_the_result_also_of_a_resumed_run(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    _, (score,) = run.train(config(IMPATIENT, output=str(whole)))
    values = {row["step"]: row["val/mse_after"] for row in rows_of(whole)}
    best = min((step for step in values if step), key=values.__getitem__)
    last = max(values)
    assert last == best + 3 < 40
    assert f"trained {best} steps of 4 tasks, best by validation (" in score.protocol
    assert run.evaluate(str(whole), ["workers.max=0"]) == [score]
    params, steps, result = result_of(whole)
    assert steps == best
    # What ended early is what a run of so many steps gives.
    run.train(config(IMPATIENT, outer__steps=best, output=str(tmp_path / "short")))
    for name, p in result_of(tmp_path / "short")[0].items():
        assert torch.equal(p, params[name]), name
    # One that is cut short after the best step ends where it would have.
    run.train(config(IMPATIENT, outer__steps=last - 1, output=str(cut)))
    for _ in range(2):  # and again, once it has ended
        run.train(config(IMPATIENT, output=str(cut)), resume="auto")
        assert [row["step"] for row in rows_of(cut)] == list(range(last + 1))
        assert result_of(cut)[1:] == (steps, result)
        assert all(torch.equal(p, params[name]) for name, p in result_of(cut)[0].items())


def test_the_best_validation_gives_the_result_if_it_is_asked_for(tmp_path: Path) -> None:
    """Its checkpoint stays in any case; asked later, it gives the same score."""
    settings = IMPATIENT | {"validation": {"every_steps": 1, "tasks": 10}}
    settings |= {"outer": IMPATIENT["outer"] | {"steps": 6}, "checkpoint": {}}
    folder = tmp_path / "run"
    _, (last,) = run.train(config(settings, output=str(folder)))
    assert "trained 6 steps of 4 tasks (" in last.protocol
    values = {row["step"]: row["val/mse_after"] for row in rows_of(folder)}
    best = min((step for step in values if step), key=values.__getitem__)
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == [f"best-{best:08d}", "step-00000006"]
    assert best < 6
    asked = run.evaluate(str(folder), ["workers.max=0", "evaluation.of=best"])
    assert f"trained {best} steps of 4 tasks, best by validation (" in asked[0].protocol
    assert run.evaluate(str(folder / "checkpoints" / kept[0]), ["workers.max=0"]) == asked
    as_trained = run.evaluate(str(folder), ["workers.max=0"])
    assert run.evaluate(str(folder), ["workers.max=0", "evaluation.of=last"]) == as_trained
    with pytest.raises(InputError) as error:
        run.evaluate(str(folder / "bundle"), ["workers.max=0", "evaluation.of=best"])
    assert error.value.what == f"{folder} holds no checkpoint best-*"
    settings |= {"evaluation": {"tasks": 10, "of": "best"}}
    _, first = run.train(config(settings, output=str(tmp_path / "asked")))
    assert first == asked
    assert bundle.load(str(tmp_path / "asked" / "bundle"))[0].outer.steps == best
    assert config(IMPATIENT).takes_best
    assert not config(IMPATIENT, evaluation__of="last").takes_best


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("evaluation.of", {"evaluation": {"of": "best"}}),
        ("evaluations.five.of", {"evaluations": {"five": {"of": "best"}}}),
    ],
)
def test_a_best_validation_that_there_is_not_is_refused(key: str, overrides: Any) -> None:
    with pytest.raises(InputError) as error:
        config(SINUSOID, **overrides)
    assert (error.value.what.split()[-1], error.value.got) == (key, "best")


def test_the_best_checkpoint_stays_for_as_long_as_a_resumed_run_may_need_it(tmp_path: Path) -> None:
    ready = run.prepare(config(IMPATIENT, output=str(tmp_path / "run")))
    root = str(tmp_path / "checkpoints")

    def save(version: int, *, best: bool = False) -> list[str]:
        ready.learner.version = version
        checkpoint.save(root, ready.config, ready.plan, ready.learner, {}, 1, best=best)
        return sorted(path.name[:5] + path.name[-1] for path in Path(root).iterdir())

    save(1, best=True)
    save(2)
    assert save(3, best=True) == ["best-1", "best-3", "step-2"]  # a resumed run forgets the third
    assert save(4) == ["best-3", "step-4"]
    checkpoint.forget_after(root, 2)
    assert not list(Path(root).iterdir())
    assert checkpoint.best(root, 3) is None


def test_patience_without_validations_is_refused() -> None:
    with pytest.raises(InputError) as error:
        config(SINUSOID, validation={"patience": 2})
    assert "validation.every_steps" in str(error.value)
