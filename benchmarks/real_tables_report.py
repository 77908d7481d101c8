"""The summaries, tables and picture of what benchmarks/real_tables.py measured."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metatrain.errors import InputError

HERE = Path(__file__).parent
RECORDS = HERE / "results" / "real_tables"
PAGES = {"en": HERE.parent / "docs/results.md", "zh": HERE.parent / "docs/results.zh.md"}
START, END = "<!-- written by benchmarks/real_tables.py --collect -->", "<!-- until here -->"
METRICS = {"auc": "max", "accuracy": "max", "log_loss": "min", "ece": "min"}
NETWORK = "network"
TIE = 0.002  # a smaller difference is neither a win nor a loss
PICTURED = "64"  # rows, of the picture's calibration
WORDS = {
    "en": {
        "head": "metric | rows | tables | network | {} | rank",
        "auc": "ROC-AUC",
        "accuracy": "accuracy (%)",
        "log_loss": "log loss",
        "ece": "ECE (%)",
        "half": "half",
        "logistic_regression": "- logistic regression",
        "k_nearest_neighbours": "- k-NN",
        "random_forest": "- random forest",
        "gradient_boosting": "- gradient boosting",
    },
    "zh": {
        "head": "指标 | 行数 | 表数 | 网络 | {} | 名次",
        "auc": "ROC-AUC",
        "accuracy": "准确率 (%)",
        "log_loss": "对数损失",
        "ece": "ECE (%)",
        "half": "一半",
        "logistic_regression": "- 逻辑回归",
        "k_nearest_neighbours": "- k-NN",
        "random_forest": "- 随机森林",
        "gradient_boosting": "- 梯度提升",
    },
}
Tree = dict[str, Any]
Numbers = npt.NDArray[np.float64]


def summary(found: Mapping[str, Mapping[str, Tree]]) -> Tree:
    """Compare the methods at one number of rows, of their scores by table and method.

    The scores of networks are averaged first. A difference is the network's score less a
    baseline's, with the half width of its 95 % interval over tables; wins, ties and losses are the
    network's.
    """
    known = [*next(iter(found.values()))]
    seeds = [name for name in known if name.startswith(NETWORK)]
    baselines = [name for name in known if name not in seeds]
    result: Tree = {"tables": len(found), "by_table": {}}
    for metric, better in METRICS.items():
        each = {
            name: np.array([scores[name][metric] for scores in found.values()]) for name in known
        }
        scored = {NETWORK: np.mean([each[name] for name in seeds], 0)}
        scored |= {name: each[name] for name in baselines}
        ranks = _ranks(np.stack([*scored.values()]), better)
        result[metric] = {
            "mean": {name: float(values.mean()) for name, values in scored.items()},
            "seeds": [float(each[name].mean()) for name in seeds],
            "rank": dict(zip(scored, ranks.mean(1).tolist(), strict=True)),
            "differences": {
                name: _difference(scored[NETWORK] - scored[name], better) for name in baselines
            },
        }
        for at, table in enumerate(found):
            own = {name: round(float(values[at]), 5) for name, values in scored.items()}
            result["by_table"].setdefault(table, {})[metric] = own
    result["calibration"] = {
        name: _bins([scores[one]["bins"] for scores in found.values() for one in which])
        for name, which in {NETWORK: seeds, **{name: [name] for name in baselines}}.items()
    }
    return result


def _ranks(scored: Numbers, better: str) -> Numbers:
    """[methods, tables] ranks from 1, the mean of those that equal ones share."""
    signed = -scored if better == "max" else scored
    above = (signed[:, None] > signed[None]).sum(1)
    equal = (signed[:, None] == signed[None]).sum(1)
    return above + (equal + 1) / 2


def _difference(values: Numbers, better: str) -> Tree:
    signed = values if better == "max" else -values
    wins, losses = int((signed > TIE).sum()), int((signed < -TIE).sum())
    width = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    ties = len(values) - wins - losses
    return {"mean": float(values.mean()), "ci95": width, "wins_ties_losses": [wins, ties, losses]}


def _bins(parts: Sequence[Any]) -> list[list[float]]:
    """Confidence, accuracy and share of all predictions, of each bin that has some."""
    rows = np.sum(parts, 0)
    return [
        [round(value, 5) for value in (sure / count, right / count, count / rows[:, 0].sum())]
        for count, right, sure in rows
        if count
    ]


def shown(record: Tree, language: str) -> str:
    """The record as a table of the pages: each metric at each number of rows."""
    words = WORDS[language]
    first = next(iter(record["sizes"].values()))
    names = [*first["auc"]["differences"]]
    head = words["head"].format(" | ".join(words[name] for name in names))
    lines = [f"| {head} |", "|" + "---|" * (head.count("|") + 1)]
    for metric in METRICS:
        factor, digits = (100, 1) if metric in ("accuracy", "ece") else (1, 3)
        for size, found in record["sizes"].items():
            own = found[metric]
            cells = [words[metric], words.get(size, size), str(found["tables"])]
            cells.append(f"{factor * own['mean'][NETWORK]:.{digits}f}")
            for name in names:
                difference = own["differences"][name]
                mean, width = factor * difference["mean"], factor * difference["ci95"]
                wins, _, losses = difference["wins_ties_losses"]
                cells.append(f"{mean:+.{digits}f} ± {width:.{digits}f} ({wins}-{losses})")
            cells.append(f"{own['rank'][NETWORK]:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def collect(pages: Mapping[str, Path] = PAGES, records: Path = RECORDS) -> None:
    """Write the tables into the pages, by language, from the records."""
    found = [json.loads(path.read_text()) for path in sorted(records.glob("*.json"))]
    for language, page in pages.items():
        text = page.read_text()
        if START not in text or END not in text:
            raise InputError(f"{page} lacks the lines between which the tables stand")
        before, _, rest = text.partition(START)
        parts = [
            f"`{record['name']}`, {record['steps']:,} steps, seeds "
            f"{', '.join(map(str, record['seeds']))}; {record['protocol']}:\n\n"
            f"{shown(record, language)}\n\n"
            for record in found
        ]
        page.write_text(f"{before}{START}\n\n{''.join(parts)}{END}{rest.partition(END)[2]}")


def picture(record: Tree, path: Path) -> None:
    """Draw calibration, and the mean rank by AUC against the rows that are read."""
    from matplotlib.figure import Figure

    from metatrain import figures

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = record["sizes"]
    rows = PICTURED if PICTURED in sizes else next(iter(sizes))
    left.plot([0, 1], [0, 1], color="tab:gray", linestyle="--", label="as right as confident")
    for at, (name, bins) in enumerate(sizes[rows]["calibration"].items()):
        ece, style = sizes[rows]["ece"]["mean"][name], _style(name, at)
        x, y, shares = zip(*bins, strict=True)
        left.plot(x, y, label=f"{name.replace('_', ' ')}, ECE {100 * ece:.1f} %", **style)
        left.scatter(x, y, [150 * share for share in shares], color=style["color"])
        ranks = [found["auc"]["rank"][name] for found in sizes.values()]
        right.plot([*sizes], ranks, marker="o", label=name.replace("_", " "), **style)
    left.set(
        xlabel="confidence in the predicted class",
        ylabel="accuracy",
        title=f"{rows} rows to read, {sizes[rows]['tables']} real tables",
    )
    right.set(xlabel="rows to read", ylabel="mean rank by ROC-AUC (1 is best)")
    right.set_title(f"{record['name']}: {len(record['seeds'])} training seeds")
    right.invert_yaxis()
    left.legend(fontsize="small")  # of both
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figures.save(figure, path)


def _style(name: str, at: int) -> Tree:
    return {"color": f"C{at}", "linewidth": 2.5 if name == NETWORK else 1.2}
