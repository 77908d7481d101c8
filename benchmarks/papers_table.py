"""The tables of docs/results.md, from papers.yaml and the records of benchmarks/papers.py."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

from metatrain.errors import InputError

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "papers"
PAGES = {"en": HERE.parent / "docs/results.md", "zh": HERE.parent / "docs/results.zh.md"}
START, END = "<!-- written by benchmarks/papers.py --collect -->", "<!-- until here -->"
Tree = dict[str, Any]


def read_rows() -> Tree:
    """The rows, the names of their tasks, what differs, and the tables' words."""
    found: Tree = yaml.safe_load((HERE / "papers.yaml").read_text())
    return found


def collect(pages: Mapping[str, Path] = PAGES, results: Path = RESULTS) -> None:
    """Write the tables into the pages, by language, from the JSON files of the runs."""
    known = read_rows()
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    for name in found:
        if name not in known["rows"]:
            raise InputError(f"{results / name}.json is of no row in papers.yaml")
    for language, page in pages.items():
        text = page.read_text()
        if START not in text or END not in text:
            raise InputError(f"{page} lacks the lines between which the tables stand")
        before, _, rest = text.partition(START)
        after = rest.partition(END)[2]
        page.write_text(f"{before}{START}\n\n{tables(known, found, language)}\n{END}{after}")


def tables(known: Tree, results: Mapping[str, Tree], language: str) -> str:
    """All rows with the paper's number and ours, and how each number was measured."""
    words = {key: text[language] for key, text in known["words"].items()}
    rows, runs = [words["rows"]], [words["runs"]]
    for table in (rows, runs):
        table.append("|" + "---|" * (table[0].count("|") - 1))
    for name, row in known["rows"].items():
        result = results.get(name)
        ours = _ours(result, row, words) if result else ""
        differs = [_said(known["differences"][key], language) for key in row.get("differs", [])]
        task = _said(known["tasks"][row["task"]], language)
        cells = [task, row["method"], row.get("paper", ""), ours, _how(result, words)]
        rows.append(_line([*cells, "; ".join(differs)]))
        if result:
            runs.append(_line(_run_cells(result)))
    return "\n".join([*rows, "", *runs, ""])


def _line(cells: Sequence[str]) -> str:
    return re.sub(" +", " ", f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")


def _said(text: str | Mapping[str, str], language: str) -> str:
    return text if isinstance(text, str) else text[language]


def _run_cells(result: Tree) -> list[str]:
    seeds = result["seeds"]
    minutes = sum(seed["minutes"] for seed in seeds)
    speed = mean(seed["tasks_per_s"] for seed in seeds)
    return [
        f"`{result['command']}`",
        ", ".join(str(seed["seed"]) for seed in seeds),
        f"{minutes:.1f}",
        f"{speed:,.0f}",
        result["hardware"],
        f"{result['versions']}, {result['commit']}",
        result["date"],
    ]


def _how(result: Tree | None, words: Mapping[str, str]) -> str:
    """Whether a row was run, in full, or with which changes."""
    if result is None:
        return words["open"]
    steps, full = min(seed["steps"] for seed in result["seeds"]), result["full_steps"]
    said = words["full"] if steps >= full else words["shortened"].format(f"{steps:,}", f"{full:,}")
    changed = [f"`{key}={value}`" for key, value in result["changed"].items()]
    return ", ".join([said, *changed])


def _ours(result: Tree, row: Tree, words: Mapping[str, str]) -> str:
    """The scores by norm: the mean over seeds, the interval over tasks, the seeds' spread."""
    found = []
    for scores in zip(*(seed["scores"] for seed in result["seeds"]), strict=True):
        several = len(scores) > 1
        norm = f" {scores[0]['norm']}" if scores[0]["norm"] != "none" else ""
        places = [scores[0]["steps"].index(step) for step in row.get("after", [])] or [-1]
        texts, spreads = [], []
        for place in places:
            values = [score["curve"][place] for score in scores]
            width = mean(score["curve_ci95"][place] for score in scores)
            texts.append(_text(mean(values), width, scores[0]["shown"]))
            spreads.append(_text(stdev(values), None, scores[0]["shown"]) if several else "")
        spread = words["seeds"].format(len(scores), " / ".join(spreads)) if several else ""
        lost = sum(score["diverged"] for score in scores)
        spread += words["diverged"].format(lost) if lost else ""
        found.append(f"{' / '.join(texts)}{norm}{spread}")
    return ", ".join(found)


def _text(value: float, width: float | None, shown: str) -> str:
    """A number as the papers print it: accuracies in percent."""
    scale, digits = (100, 2) if shown == "percent" else (1, 3)
    text = f"{scale * value:.{digits}f}"
    return text if width is None else f"{text} ± {scale * width:.{digits}f}"
