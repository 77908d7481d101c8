"""The papers' table: written from recorded runs alone, with open and shortened rows as such."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pages import ROOT

from cluster import dry_run
from metatrain.core import InputError

sys.path.append(str(ROOT / "benchmarks"))
import papers
import papers_table

TINY = {
    "evaluation.tasks": 4,
    "validation.every_steps": 0,
    "tracking": {"uri": "none"},
    "workers": {"max": 0},
}
ROWS: dict[str, Any] = papers_table.read_rows()


def score(mean: float, norm: str = "transductive", diverged: int = 0) -> dict[str, Any]:
    return {
        "shown": "percent",
        "norm": norm,
        "diverged": diverged,
        "steps": [0, 1],
        "curve": [0.2, mean],
        "curve_ci95": [0.01, 0.004],
    }


def record(*seeds: list[dict[str, Any]], steps: int = 60000, **changed: Any) -> dict[str, Any]:
    found = [
        {"seed": seed, "steps": steps, "minutes": 10.0, "tasks_per_s": 2000.0, "scores": scores}
        for seed, scores in enumerate(seeds)
    ]
    return {
        "command": "python benchmarks/papers.py --run made_up",
        "hardware": "a machine of 2 cores",
        "versions": "Python 3.11.7, torch 2.15.0",
        "commit": "1234567",
        "date": "2026-11-26",
        "full_steps": 60000,
        "changed": changed,
        "seeds": found,
    }


def collected(tmp_path: Path, results: Path) -> dict[str, str]:
    """Both pages after --collect."""
    pages = {language: tmp_path / f"{language}.md" for language in papers_table.PAGES}
    for language, page in pages.items():
        page.write_text(papers_table.PAGES[language].read_text())
    papers_table.collect(pages, results)
    return {language: page.read_text() for language, page in pages.items()}


def line(page: str, *parts: str) -> str:
    """The only line of a page that has these parts."""
    (found,) = [line for line in page.splitlines() if all(part in line for part in parts)]
    return found


def test_the_pages_have_the_tables_of_the_recorded_runs_written_without_torch_and_ray(
    tmp_path: Path,
) -> None:
    pages = {language: tmp_path / f"{language}.md" for language in papers_table.PAGES}
    for language, page in pages.items():
        page.write_text(papers_table.PAGES[language].read_text())
    program = (
        "import sys, pathlib; sys.modules.update(torch=None, ray=None, numpy=None); import papers\n"
        "papers.collect({path[-5:-3]: pathlib.Path(path) for path in sys.argv[1:]})"
    )
    here = {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    subprocess.run([sys.executable, "-c", program, *map(str, pages.values())], check=True, env=here)
    for language, page in pages.items():
        own = papers_table.PAGES[language].read_text()
        assert page.read_text() == own, "run `python benchmarks/papers.py --collect`"


def test_a_recorded_run_shows_up_with_its_seeds_its_machine_and_what_was_changed(
    tmp_path: Path,
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    several = record([score(0.98)], [score(0.99)], [score(0.97, diverged=2)])
    (results / "omniglot_maml_5w1s.json").write_text(json.dumps(several))
    both = [score(0.95), score(0.9, "support+1")]
    short = record(both, steps=4000, **{"outer.lr": 0.003})
    (results / "omniglot_reptile_20w1s.json").write_text(json.dumps(short))
    found = collected(tmp_path, results)
    row = line(found["en"], "Omniglot 5-way 1-shot | MAML |")
    assert "| 98.7 ± 0.4 | 98.00 ± 0.40 transductive; 3 seeds, standard deviation 1.00; " in row
    assert "; 2 tasks diverged | full | another shuffle" in row
    row = line(found["en"], "Omniglot 20-way 1-shot | Reptile |")
    assert "| 95.00 ± 0.40 transductive, 90.00 ± 0.40 support+1 |" in row
    assert "| shortened: 4,000 of 60,000 steps, `outer.lr=0.003` |" in row
    assert "60,000 步, `outer.lr=0.003` |" in line(
        found["zh"], "Omniglot 20-way 1-shot | Reptile |"
    )
    assert "| open: not run |" in line(found["en"], "Omniglot 5-way 5-shot | MAML |")
    machine = "| 30.0 | 2,000 | a machine of 2 cores | Python 3.11.7, torch 2.15.0, 1234567 |"
    for page in found.values():
        assert line(page, "| 0, 1, 2 |", machine)
    (results / "made_up.json").write_text("{}")
    with pytest.raises(InputError, match="is of no row"):
        collected(tmp_path, results)


@pytest.mark.parametrize("name", ROWS["rows"])
def test_each_row_is_a_recipe_with_keys_that_it_takes(name: str) -> None:
    row = ROWS["rows"][name]
    recipe = ROOT / "recipes" / f"{row['recipe']}.yaml"
    for keys in (row.get("set", {}), row.get("set", {}) | row.get("short", {})):
        config = papers.configured(recipe, keys)
        score = config.setting("score")
        shots, ways = (getattr(score.family, key, None) for key in ("shots", "ways"))
        said = ROWS["tasks"][row["task"]]
        said = said if isinstance(said, str) else said["en"]
        assert f"{shots}-shot" in said
        assert ways is None or f" {ways}-way " in said
    assert set(row.get("differs", [])) <= ROWS["differences"].keys()


@pytest.mark.ray
def test_a_row_is_run_once_for_its_settings_and_recorded(tmp_path: Path) -> None:
    places = {"output": tmp_path / "runs", "results": tmp_path / "results"}
    tiny = TINY | {"outer.steps": 3, "validation.every_steps": 2, "validation.tasks": 2}
    papers.run("sinusoid_maml", [0, 1], None, tiny, **places)
    (began,) = (tmp_path / "runs").rglob("machine.txt")
    began.write_text("a machine; Python 3; 1234567")
    path = papers.run("sinusoid_maml", [0, 1], None, tiny, **places)
    found = json.loads(path.read_text())
    assert (found["hardware"], found["commit"]) == ("a machine", "1234567")  # that trained it
    assert [seed["steps"] for seed in found["seeds"]] == [3, 3]
    assert found["seeds"][0]["scores"][0]["mean"] != found["seeds"][1]["scores"][0]["mean"]
    assert (found["full_steps"], found["changed"]) == (70000, {"evaluation.tasks": 4})
    assert "tracking" not in found["command"]
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 2
    papers.run("sinusoid_maml", [0], None, tiny | {"outer.lr": 0.01}, **places)
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 3
    page = collected(tmp_path, places["results"])["en"]
    row = line(page, "| sinusoid 5-shot")
    assert "| shortened: 3 of 70,000 steps, `evaluation.tasks=4`, `outer.lr=0.01` |" in row
    assert row.count(" ± ") == 3  # after 1, 5 and 10 steps
    with pytest.raises(InputError) as error:
        papers.run("sinusoid", [0], **places)
    assert error.value.got == "sinusoid"
    assert "sinusoid_maml" in error.value.expected


def test_a_limit_shortens_training_and_an_interrupted_run_keeps_its_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, absent = ROOT / "recipes" / "sinusoid_maml.yaml", tmp_path / "config.yaml"
    short = {"outer.lr": 0.003}
    with monkeypatch.context() as patch:  # a machine of 64 steps a second
        estimate = SimpleNamespace(step_s=1 / 64, total_s=70000 / 64 + 2)
        patch.setattr(dry_run, "estimate", lambda config, prepared: estimate)
        found = papers.shortened(recipe, TINY, short, 0.2, absent)
    assert found == short | {"outer.steps": 640}  # of 12 seconds, 2 are for the evaluation
    assert papers.shortened(recipe, TINY, short, 1e6, absent) == {}
    with pytest.raises(InputError) as error:
        papers.shortened(recipe, TINY, short, 1e-9, absent)
    assert (error.value.what, error.value.got) == ("limit", 1e-9)
    absent.write_text("outer: {steps: 123}")
    assert papers.shortened(recipe, TINY, short, 1e6, absent) == short | {"outer.steps": 123}
