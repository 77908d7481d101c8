"""Adapt a network that learned from made tables to rows of a file, and predict those of others."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metatrain import measures
from metatrain.core import InputError, Norm, Task
from metatrain.data.columns import Numbers as Rows
from metatrain.data.rows import is_index
from metatrain.inference import row_columns, tables
from metatrain.inference.given import is_missing
from metatrain.inference.learned import Learned
from metatrain.inference.predictions import Predictions
from metatrain.inference.report import Predicted, classified, numbered
from metatrain.inference.tables import AdaptedTable
from metatrain.names import counted, decoded, instead, listed, quoted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_KNOWN = 30  # rows whose class is known, for a curve of calibration
SIDE = 80  # places along a side of the picture of two columns

Columns = dict[str, list[Any]]


def predict(
    learned: Learned, support: str, query: Sequence[str], norm: Norm | None, target: str | None
) -> Predicted:
    """Adapt to the rows of a CSV or Parquet file, and predict those of others.

    Columns are matched by name. Those that a file lacks are not used.

    target: the column to predict; None: the column y, or the last one.
    """
    given = row_columns.read(support, "--support")
    target = target or ("y" if "y" in given else list(row_columns.without_index(given))[-1])
    if target not in given:
        remedy = instead(target, list(given))
        raise InputError(f"{support} has no column {quoted(target)}", remedy=remedy)
    targets = _labels(support, target, given.pop(target))
    missing = [row for row, value in enumerate(targets, 1) if is_missing(value)]
    if missing:
        raise InputError(
            f"{support} has no {quoted(target)} in {counted(len(missing), 'row')}, first in row "
            f"{missing[0]}",
            remedy="fill it in, or remove the row",
        )
    asked = [row_columns.read(path, "--query") for path in query]
    truth: list[Any] = []
    places: list[str] = []
    for path, columns in zip(query, asked, strict=True):
        rows = len(next(iter(columns.values())))
        known = columns.pop(target, None)
        known = known and _labels(path, target, known)
        if known and any(isinstance(label, str) for label in targets):
            # 1 and 2 are texts where there is an x, and numbers in a file that has none.
            known = [label if is_missing(label) else str(label) for label in known]
        truth += row_columns.targets(path, learned, known, rows)
        name = decoded(path.rpartition("/")[2])
        places += [f"{name} row {row}" for row in range(1, rows + 1)]
    given = {name: column for name, column in given.items() if not is_index(name)}
    names = [name for name in given if all(name in columns for columns in asked)]
    if not names:
        raise InputError(
            f"{support} and {' '.join(query)} have no column in common besides {quoted(target)}",
            remedy=f"name them alike: {support} has {listed(list(given)) or 'no other'}",
        )
    try:
        adapted = tables.adapt(learned, names, [given[name] for name in names], targets, norm)
    except (InputError, TypeError) as error:
        raise InputError.at(support, error) from error
    rest = _together(adapted, names, query, asked)
    found = adapted.predict(rest)
    if isinstance(found, Predictions):
        shown, notes, result = classified(learned, adapted, found, "row", places, truth)
        picture = _picture(adapted, rest, found, truth, target)
        predicted = Predicted(shown, notes, result, picture, result["predictions"])
    else:
        mean = float(np.mean(np.asarray(targets, np.float64)))
        predicted = numbered(
            learned,
            adapted,
            found,
            lambda: adapted.predict(rest, before=True),
            places,
            truth,
            target,
            mean,
        )
    notes = _notes(adapted, target, rest, [name for name in given if name not in names])
    return predicted._replace(notes=[*predicted.notes, *notes])


def _labels(path: str, target: str, values: list[Any]) -> list[Any]:
    """Return targets, None for blank texts; InputError if one is no text, number or truth value."""
    found = [None if isinstance(v, str) and not v.strip() else v for v in values]
    found = [float(v) if isinstance(v, Decimal) else v for v in found]
    for row, value in enumerate(found, 1):
        if value is not None and not isinstance(value, str | bool | int | float):
            raise InputError(
                f"{path} has a {type(value).__name__} as {quoted(target)} in row {row}",
                expected="a number or a text",
                remedy="write it so",
            )
    return found


def _together(
    adapted: AdaptedTable, names: Sequence[str], query: Sequence[str], asked: Sequence[Columns]
) -> list[list[Any]]:
    """Return the columns of all files, one after the other, each checked by itself."""
    for path, columns in zip(query, asked, strict=True):
        try:
            adapted.coding.coded([columns[name] for name in names])
        except (InputError, TypeError) as error:
            raise InputError.at(path, error) from error
    return [[value for columns in asked for value in columns[name]] for name in names]


def _notes(
    adapted: AdaptedTable, target: str, rest: Sequence[Any], unused: Sequence[str]
) -> list[str]:
    """Say how the columns were used."""
    coding = adapted.coding
    coded = [
        name
        for name, known in zip(coding.names, coding.categories, strict=True)
        if known is not None
    ]
    notes = [f"predicted {quoted(target)} from {counted(len(coding.names), 'column')}"]
    if coded:
        notes[0] += f", of which {listed(coded)} have categories"
    if unused:
        notes.append(f"not used: {listed(unused)}, which a file to predict lacks")
    notes += [
        f"missing values: {counted(number, 'text')} of {quoted(name)} not in the rows adapted to"
        for name, number in coding.unknown(rest).items()
    ]
    return notes


def _picture(
    adapted: AdaptedTable,
    rest: Sequence[Any],
    found: Predictions,
    truth: Sequence[Any],
    target: str,
) -> Figure | None:
    """Draw the plane of two columns of numbers, or else how right confidence is in many rows."""
    from metatrain import figures

    classes = [*found.classes]
    known = [classes.index(label) if label in classes else None for label in truth]
    title = f"{target}, predicted from {counted(adapted.shots, 'row')}"
    if adapted.coding.categories == [None, None]:
        return _plane(adapted, rest, known, title)
    rows = [row for row, label in enumerate(known) if label is not None]
    if len(rows) < LEAST_KNOWN:
        return None
    y = torch.tensor([known[row] for row in rows])[None]
    bins = measures.calibration_bins(found.probabilities[rows].log()[None], Task(y, y, y, y))
    line = ("after adaptation", measures.expected_calibration_error(bins))
    return figures.calibration([(*line, measures.reliability(bins)["reliability"])], title)


def _plane(
    adapted: AdaptedTable, rest: Sequence[Any], known: Sequence[int | None], title: str
) -> Figure | None:
    from metatrain import figures

    coding, (_, _, columns, labels, _) = adapted.coding, adapted.given
    classes = adapted.classes or []
    support, query = coding.numbers(columns), coding.numbers(rest)
    x, y = (_places(column) for column in np.concatenate([support, query]).T)
    if not np.isfinite([x, y]).all():
        return None  # values are too far apart
    grid = [part.ravel() for part in np.meshgrid(x, y)]
    probabilities = adapted.predict(grid).probabilities.reshape(SIDE, SIDE, -1).numpy()
    return figures.boundary(
        [(name, places) for name, places in zip(coding.names, (x, y), strict=True)],
        probabilities,
        [
            ("rows adapted to", "^", support, [classes.index(label) for label in labels]),
            ("rows to predict", "o", query, known),
        ],
        [str(label) for label in classes],
        title,
    )


def _places(column: Rows) -> Rows:
    """Return places over a column's range and a little beyond; infinite if it is too large."""
    known = column[~np.isnan(column)]
    least, most = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    margin = 0.05 * (most - least) or max(0.5, 0.05 * abs(most))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.linspace(least - margin, most + margin, SIDE)
