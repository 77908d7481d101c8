"""A sweep file says what is searched, and nothing starts that could not be searched or compared."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from cases import GLYPHS, SINUSOID
from services import command

from cluster.tracking.tracker import NoTracker
from metatrain.core import InputError
from metatrain.isolation import same_random_numbers
from tuning import config, schedulers, space, sweep
from tuning import search as searches
from tuning.journal import Journal
from tuning.result import conclude

ROOT = Path(__file__).parent.parent
RECIPE = SINUSOID | {"validation": {"every_steps": 5, "tasks": 4}}
SWEEP: dict[str, Any] = {
    "name": "s",
    "recipe": "recipe.yaml",
    "space": {
        "algorithm.inner_lr": {"loguniform": [1e-3, 1e-1]},
        "outer.lr": {"uniform": [0.001, 0.01]},
    },
    "budget": {"trials": 3},
}
ASHA = {"name": "asha", "first_rung": 5}
PBT = {"name": "pbt", "every_steps": 10}


def load(
    folder: Path, changes: dict[str, Any] | None = None, recipe: dict[str, Any] = RECIPE
) -> searches.Search:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP | (changes or {})))
    return searches.load(folder / "sweep.yaml")


def test_what_is_left_open_is_resolved(tmp_path: Path) -> None:
    search = load(
        tmp_path,
        {
            "set": {"outer": {"clip_norm": 0.5}, "model.hidden": [4]},
            "budget": {"trials": 3, "steps": 10},
        },
    )
    assert (search.metric, search.mode, search.trials, search.steps) == (
        "val/mse_after",
        "min",
        3,
        10,
    )
    assert (search.base.outer.clip_norm, search.base.outer.steps, search.base.model.hidden) == (
        0.5,
        10,
        (4,),
    )
    assert search.base.checkpoint.every_steps == 5  # what is reported can be gone on from
    assert str(search.folder) == str(tmp_path / "runs" / "s")


def test_draws_are_a_function_of_the_seed_and_stay_in_their_ranges(tmp_path: Path) -> None:
    of_all = {
        "algorithm.inner_lr": {"loguniform": ["1e-3", "1e-1"]},  # as YAML reads them
        "outer.lr": {"uniform": [0.001, 0.01]},
        "outer.clip_norm": {"quantised": [0.5, 2.0, 0.5]},
        "algorithm.inner_steps": {"integers": [1, 3]},
        "model.hidden": {"choice": [[4], [8, 8]]},
    }
    drawn = load(tmp_path, {"space": of_all, "budget": {"trials": 60}}).drawn()
    assert drawn == load(tmp_path, {"space": of_all, "budget": {"trials": 60}}).drawn()
    assert drawn != load(tmp_path, {"space": of_all, "budget": {"trials": 60}, "seed": 1}).drawn()
    columns = {key: [values[key] for values in drawn] for key in of_all}
    assert all(0.001 <= value <= 0.1 for value in columns["algorithm.inner_lr"])
    assert (
        15 < sum(value < 0.01 for value in columns["algorithm.inner_lr"]) < 45
    )  # half of a logarithmic range
    assert set(columns["algorithm.inner_steps"]) == {1, 2, 3}
    assert set(columns["outer.clip_norm"]) == {0.5, 1.0, 1.5, 2.0}
    assert {tuple(value) for value in columns["model.hidden"]} == {(4,), (8, 8)}
    assert all(type(value) in (int, float, list) for values in columns.values() for value in values)


def test_a_seed_of_any_size_is_taken_and_one_that_fits_draws_as_ever(tmp_path: Path) -> None:
    def first(seed: int) -> space.Values:
        drawn = load(tmp_path, {"seed": seed}).drawn()[0]
        optuna = schedulers.optuna_search(
            load(tmp_path, {"seed": seed, "search": "optuna"}), Journal(tmp_path / "none.jsonl"), []
        )
        assert optuna.suggest("trial")["values"] == pytest.approx(drawn)
        return drawn

    # But for the last digit, which is the processor's.
    assert first(0) == pytest.approx(
        {"algorithm.inner_lr": 0.012520653814999463, "outer.lr": 0.007436704297351776}, rel=1e-12
    )
    assert first(2**32 - 1) == pytest.approx(
        {"algorithm.inner_lr": 0.001567703969465962, "outer.lr": 0.009211445607723596}, rel=1e-12
    )
    later = Journal(tmp_path / "journal.jsonl")
    later.write(0, "values", {"outer.lr": 0.002})  # a trial more is a seed more
    search = load(tmp_path, {"seed": 2**32 - 1, "search": "optuna"})
    assert schedulers.optuna_search(search, later, []).suggest("trial")["values"] == pytest.approx(
        first(2**32)
    )
    drawn = [
        first(seed)["outer.lr"]
        for seed in (0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**64, 2**70, 10**300)
    ]
    assert len(set(drawn)) == len(drawn)
    assert first(2**70) == first(2**70)


@pytest.mark.ray
def test_a_sweep_with_a_seed_of_any_size_leaves_the_callers_random_numbers(
    ray_cluster: None, tmp_path: Path
) -> None:
    seed = 2**70
    same = {
        "space": {"outer.lr": {"uniform": [0.001, 0.01]}},
        "scheduler": PBT,
        "set": {"workers.max": 0},
    }
    search = load(
        tmp_path, {**same, "seed": seed, "budget": {"trials": 2}, "output": str(tmp_path / "s")}
    )
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    assert len(sweep.start(search).trials) == 2
    with pytest.raises(ZeroDivisionError), same_random_numbers():
        random.seed(np.random.randint(9) / 0)
    assert (random.random(), np.random.random()) == expected


def test_a_grid_is_all_its_points(tmp_path: Path) -> None:
    grid = {
        "algorithm.inner_lr": {"grid": [0.1, 0.2]},
        "algorithm.inner_steps": {"grid": [1, 2, 3]},
    }
    search = load(tmp_path, {"space": grid, "search": "grid", "budget": {}})
    assert search.trials == 6
    assert [tuple(values.values()) for values in search.drawn()] == [
        (a, b) for a in (0.1, 0.2) for b in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"spce": {}}, "spce is not a key of a sweep: did you mean 'space'"),
        ({"space": {}}, "searches nothing: name keys in space"),
        (
            {"space": {"algorithm.inner_rl": {"uniform": [0, 1]}}},
            "algorithm.inner_rl is not a key of .*'inner_lr'",
        ),
        (
            {"space": {"outer.lr": {"unifrom": [0, 1]}}},
            r"space.outer.lr is .*, expected one of uniform, .* such as {uniform: \[0, 1\]}$",
        ),
        ({"space": {"outer.lr": 0.1}}, "space.outer.lr is 0.1, expected one of uniform"),
        (
            {"space": {"outer.lr": {"uniform": [0.1]}}},
            r"space.outer.lr.uniform is \[0.1\], expected \[low, high\]$",
        ),
        ({"space": {"outer.lr": {"uniform": [1, 0.1]}}}, r"with low < high$"),
        (
            {"space": {"outer.lr": {"uniform": [0.1, math.inf]}}},
            r"uniform is \[0.1, inf\], expected \[low, high\]$",
        ),
        ({"space": {"outer.lr": {"loguniform": [0, 1]}}}, "with low above 0"),
        (
            {"space": {"outer.lr": {"quantised": [0, 1, 0]}}},
            r"quantised is \[0, 1, 0\], expected \[low, high, step\] with step above 0",
        ),
        ({"space": {"outer.lr": {"uniform": [-1, 1]}}}, "space.outer.lr at -1"),
        (
            {"space": {"outer.steps": {"integers": [5, 9]}}},
            "is the same for all trials: give it in budget.steps",
        ),
        (
            {"space": {"evaluation.tasks": {"integers": [5, 9]}}},
            "is the same for all trials: give it in set",
        ),
        (
            {"space": {"evaluations.x.tasks": {"integers": [5, 9]}}},
            "is the same for all trials: give it in set",
        ),
        (
            {"space": {"family.shots": {"integers": [1, 5]}}},
            r"changes the validation .*: fix them with set: {evaluation.family.shots: \.\.\.}$",
        ),
        ({"budget": {}}, "budget.trials is missing"),
        ({"budget": {"trials": 0}}, "budget.trials is 0, expected at least 1"),
        (
            {"metric": "val/accuracy_after"},
            "metric is 'val/accuracy_after', expected val/mse_after",
        ),
        (
            {"space": {"outer.lr": {"quantised": [0.5, 2.0, 0.4]}}},
            "with low and high that are multiples of step",
        ),
        (
            {"space": {"outer.clip_norm": {"integers": [1.5, 3.9]}}},
            r"integers is \[1.5, 3.9\], expected \[low, high\] of whole numbers",
        ),
        (
            {"space": {"outer.clip_norm": {"integers": [1, math.inf]}}},
            r"integers is \[1, inf\], expected \[low, high\]$",
        ),
        (
            {"space": {"seed": {"integers": [0, 2**63]}}},
            r"integers is \[0, \d+\], expected \[low, high\] of numbers up to 2\^53",
        ),
        (
            {"space": {"outer.lr": {"uniform": [-1e308, 1e308]}}},
            "of numbers up to 1e\\+30",
        ),
        ({"space": {"outer.lr": {"choice": [0.1] * 201}}}, "of at most 200 values"),
        (
            {
                "search": "grid",
                "budget": {},
                "space": {
                    key: {"grid": list(range(1, 102))} for key in ("outer.lr", "outer.clip_norm")
                },
            },
            "the grid has 10201 points, expected at most 10,000",
        ),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"set": {"outer.lr": 0.1}}, "outer.lr is in set and in space of"),
        ({"space": {"algorithm.inner_steps": {"uniform": [1, 3]}}}, "expected a valid integer"),
        ({"set": {"workers.cpus": 0}}, "all trials would start at once"),
        ({"set": {"checkpoint.uri": "runs/x"}}, "checkpoint.uri would be the same for all trials"),
        (
            {"scheduler": ASHA | {"first_rung": 7}},
            "first_rung is 7, expected a multiple of validation.every_steps = 5",
        ),
        (
            {"scheduler": PBT, "at_once": 2},
            "at_once is 2 of 3 trials, and trials of pbt learn from each other",
        ),
        (
            {"scheduler": {"name": "hyperband"}},
            "scheduler.name is 'hyperband', expected one of none, asha, pbt",
        ),
        (
            {"scheduler": ASHA | {"first_rung": 20}},
            "first_rung is 20, expected below the 20 outer steps",
        ),
        ({"scheduler": ASHA | {"reduction": 1}}, "scheduler.reduction is 1.0, expected above 1"),
        (
            {"scheduler": PBT | {"every_steps": 7}},
            "every_steps is 7, expected a multiple of validation.every_steps = 5",
        ),
        ({"scheduler": PBT, "search": "optuna"}, "scheduler pbt draws its own values"),
        (
            {"scheduler": PBT, "space": {"seed": {"integers": [0, 9]}}},
            "space.seed cannot change in a running training",
        ),
        (
            {"search": "grid", "budget": {}},
            "search is grid, and space.algorithm.inner_lr is loguniform: list its values",
        ),
        (
            {"space": {"outer.lr": {"grid": [0.1, 0.2]}}},
            "is a grid, and search is random: set search to grid",
        ),
        (
            {"search": "grid", "space": {"outer.lr": {"grid": [1, 2]}}},
            "budget.trials is 3, and the grid has 2 points",
        ),
        ({"set": {"validation.patience": 2}}, "validation.patience is 2, expected 0 in a sweep"),
        ({"set": {"evaluation.of": "best"}}, "evaluation.of is 'best', expected last in a sweep"),
        (
            {"set": {"validation.every_steps": 0}},
            "validation.every_steps is 0, expected 1 to 20, .*: pass --set set.validation",
        ),
        ({"recipe": "nowhere.yaml"}, "cannot read .*nowhere.yaml"),
        ({"at_once": 0}, "at_once is 0, expected at least 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        load(tmp_path, changes)
    assert "\n" not in str(refused.value)


def test_shots_can_be_searched_where_validation_fixes_its_own(tmp_path: Path) -> None:
    changes = {
        "space": {"family.shots": {"integers": [1, 5]}},
        "set": {"evaluation.family.shots": 3},
    }
    assert load(tmp_path, changes).trials == 3


def test_a_sweep_whose_time_is_up_before_a_trial_starts_is_refused(tmp_path: Path) -> None:
    search, journal = load(tmp_path), Journal(tmp_path / "journal.jsonl")
    with pytest.raises(InputError, match="no trial came to a validation") as error:
        conclude(search, journal, NoTracker(), None)
    assert "budget.minutes" in error.value.remedy
    journal.write(0, "values", {"outer.lr": 0.002})
    journal.write(0, "ended", {"state": "failed", "cause": "its node is gone"})
    with pytest.raises(InputError, match=r"no trial came to a validation: its node is gone$"):
        conclude(search, journal, NoTracker(), None)


def test_ways_that_the_data_has_not_are_refused(tmp_path: Path) -> None:
    recipe = GLYPHS | {
        "validation": {"every_steps": 5, "tasks": 4},
        "evaluation": {"tasks": 4, "family": {"ways": 5}},
    }
    with pytest.raises(InputError, match=r"space.family.ways at 9999: .*9999"):
        load(tmp_path, {"space": {"family.ways": {"choice": [5, 9999]}}}, recipe)


def test_pbt_cannot_change_what_a_training_starts_from(tmp_path: Path) -> None:
    recipe = RECIPE | {"algorithm": {"name": "meta_sgd", "initial_lr": 0.01}}
    with pytest.raises(
        InputError, match=r"space.algorithm.initial_lr decides what a training starts from"
    ):
        load(
            tmp_path,
            {"scheduler": PBT, "space": {"algorithm.initial_lr": {"uniform": [0.01, 0.1]}}},
            recipe,
        )


def test_another_sweep_is_told_from_the_same_with_more_trials(tmp_path: Path) -> None:
    one = load(tmp_path)
    assert searches.changed(one, load(tmp_path, {"budget": {"trials": 9}, "at_once": 2})) is None
    computed = {"workers.max": 1, "workers.threads": 2, "workers.cpus": 0.5, "workers.wait_s": 9.0}
    assert searches.changed(one, load(tmp_path, {"set": computed})) is None
    assert (
        searches.changed(one, load(tmp_path, {"set": {"tracking.experiment": "x"}}))
        == "its recipe's tracking.experiment"
    )
    assert (
        searches.changed(one, load(tmp_path, {"set": {"outer.clip_norm": 0.5}}))
        == "its recipe's outer.clip_norm"
    )
    assert searches.changed(one, load(tmp_path, {"seed": 4})) == "its seed"
    assert searches.changed(one, load(tmp_path, {"search": "optuna"})) == "its search"


SWEEPS = sorted((ROOT / "recipes" / "sweeps").glob("*.yaml"))
OMNIGLOT = [path for path in SWEEPS if "omniglot" in path.stem]


def searched(path: Path) -> None:
    search = searches.load(path)
    assert search.sweep.name == path.stem
    assert search.trials >= 4


@pytest.mark.parametrize("path", sorted({*SWEEPS} - {*OMNIGLOT}), ids=lambda path: path.stem)
def test_every_sweep_of_the_project_can_be_searched(path: Path) -> None:
    searched(path)


@pytest.mark.usefixtures("omniglot")
@pytest.mark.parametrize("path", OMNIGLOT, ids=lambda path: path.stem)
def test_every_sweep_on_omniglot_can_be_searched(path: Path) -> None:
    searched(path)


def test_the_command_refuses_before_anything_starts(tmp_path: Path) -> None:
    load(tmp_path)
    done = command("tune", "sweep.yaml", "--set", 'space={"outer.rl": {uniform: [0, 1]}}')
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: space.outer.rl at 0.0: ")
    assert not (tmp_path / "runs").exists()


def test_a_space_may_be_nested_as_a_recipe_is() -> None:
    """`--set space.outer.lr=...` nests it."""
    nested = {
        "outer": {"lr": {"uniform": [0, 1]}},
        "algorithm.inner_lr": {"choice": [1, 2]},
        "seed": {"grid": [1]},
    }
    assert dict(config.searched(nested)) == {
        "outer.lr": {"uniform": [0, 1]},
        "algorithm.inner_lr": {"choice": [1, 2]},
        "seed": {"grid": [1]},
    }
