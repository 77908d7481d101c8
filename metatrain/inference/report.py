"""Predictions as `metatrain adapt` prints and writes them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from metatrain import storage
from metatrain.awaiting import awaiting
from metatrain.inference.adapted import Adapted
from metatrain.inference.learned import Learned
from metatrain.inference.predictions import Numbers, Predictions
from metatrain.inference.tables import AdaptedTable
from metatrain.names import counted, few, printable, shortened
from metatrain.plain import to_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Columns = Mapping[str, Sequence[str]]  # by their heads
# A table of the first so many rows, or of all, in which names take at most so many columns, or all
# that they need.
Shown = Callable[[int | None, int | None], Columns]


class Predicted(NamedTuple):
    """Predictions of N examples, and how they are shown."""

    shown: Shown  # a table to print
    notes: list[str]  # lines to print
    result: dict[str, Any]  # predictions.json
    picture: Figure | None
    rows: list[dict[str, Any]]  # predictions.csv; none for images


def write(found: Predicted, folder: Path) -> list[Path]:
    """Write predictions.json, .csv and .png into a folder in place of earlier predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("predictions.*"):
        if path.suffix in (".json", ".csv", ".png"):
            path.unlink()
    written = [folder / "predictions.json"]
    storage.write(str(written[0]), to_json(found.result, indent=1).encode())
    if found.rows:
        written.append(folder / "predictions.csv")
        names = [name for name in found.rows[0] if name != "probabilities"]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found.rows)
        storage.write(str(written[-1]), text.getvalue().encode())
    if found.picture is not None:
        from metatrain import figures

        with awaiting("drawing predictions.png"):
            written.append(figures.save(found.picture, folder / "predictions.png"))
    return written


def classified(
    learned: Learned,
    adapted: Adapted | AdaptedTable,
    found: Predictions,
    kind: str,
    places: list[str],
    labels: Sequence[Any],
) -> tuple[Shown, list[str], dict[str, Any]]:
    """Return the table, the notes and the result of predicted classes.

    labels: what is known of the examples; None, or no class of the support set, counts as unknown.
    """
    truth = [label if label in found.classes else None for label in labels]
    marks = [
        "" if t is None else "✓ " if t == predicted else "✗ "
        for t, predicted in zip(truth, found.labels, strict=True)
    ]
    chances = found.probabilities.tolist()

    def shown(count: int | None, most: int | None) -> Columns:
        names = list(dict.fromkeys(text(label) for label in (*found.classes, *labels[:count])))
        name = dict(zip(names, cut(names, most), strict=True))
        columns = {kind: cut(places[:count], most)}
        if any(label is not None for label in labels):
            columns["class"] = [name[text(label)] for label in labels[:count]]
        cells = []
        for mark, label, row in list(zip(marks, found.labels, chances, strict=True))[:count]:
            others = [
                (chance, other)
                for chance, other in zip(row, found.classes, strict=True)
                if other != label
            ]
            chance, other = max(others, key=lambda pair: pair[0])
            runner_up = f"{name[text(other)]} {_percent(chance)}"
            known = (
                (name[text(label)], _percent(max(row)), runner_up)
                if label is not None
                else ("none", "", "")
            )
            cells.append((mark + known[0], *known[1:]))
        return columns | dict(
            zip(("prediction", "probability", "runner-up"), zip(*cells, strict=True), strict=True)
        )

    rows = [
        {
            kind: place,
            "class": label,
            "prediction": predicted,
            "probabilities": dict(zip(found.classes, row, strict=True)),
        }
        for place, label, predicted, row in zip(places, labels, found.labels, chances, strict=True)
    ]
    notes = notes_of(learned, adapted, kind, len(places))
    known = [mark == "✓ " for mark in marks if mark]
    if known:
        notes.append(
            f"accuracy: {100 * sum(known) / len(known):.1f}% of {counted(len(known), kind)}"
        )
    others = sorted(
        {str(label) for label in labels if label is not None and label not in found.classes}
    )
    if others:
        notes.append(
            f"not counted: {kind}s of classes that the support set does not have ({few(others)})"
        )
    return (
        shown,
        notes,
        result_of(learned, adapted, rows)
        | {"accuracy": sum(known) / len(known) if known else None},
    )


def numbered(
    learned: Learned,
    adapted: Adapted | AdaptedTable,
    found: Numbers,
    before: Callable[[], Numbers],
    places: list[str],
    truth: list[Any],
    unit: str,
    mean: float,
) -> Predicted:
    """Report predicted numbers of rows.

    before: what is predicted before adaptation. truth: the rows' targets, or None. unit: the
        target's name. mean: of the support set's targets, to compare with.
    """
    rows = [
        {"row": place, "target": target, "prediction": value}
        for place, target, value in zip(places, truth, found.values.tolist(), strict=True)
    ]
    known = [i for i, target in enumerate(truth) if target is not None]
    heads = ["row", "target", "prediction"] if known else ["row", "prediction"]

    def shown(count: int | None, most: int | None) -> Columns:
        columns = {head: [text(row[head]) for row in rows[:count]] for head in heads}
        return columns | {"row": cut(places[:count], most)}

    notes, result = (
        notes_of(learned, adapted, "row", len(places)),
        result_of(learned, adapted, rows),
    )
    if not known or found.values.dim() > 1:
        return Predicted(shown, notes, result, None, rows)
    targets = torch.tensor([float(truth[i]) for i in known], dtype=torch.float64)
    error, constant = (
        float((guess - targets).square().mean()) for guess in (found.values[known].double(), mean)
    )
    notes.append(
        f"root mean squared error over {counted(len(known), 'row')}, in units of {unit}: "
        f"{error**0.5:.6g}; {constant**0.5:.6g} if the mean of the support set's targets is "
        "predicted"
    )
    both = [(0, before().values[known]), (adapted.steps, found.values[known])]
    picture = agreement(both, targets, f"Predictions, adapted to {adapted.shots} rows", unit)
    return Predicted(shown, notes, result | {"mean_squared_error": error}, picture, rows)


def notes_of(
    learned: Learned, adapted: Adapted | AdaptedTable, kind: str, queries: int
) -> list[str]:
    """Return what was done, in lines."""
    to = counted(adapted.shots, kind)
    of = "" if adapted.classes is None else f" of {len(adapted.classes)} classes"
    notes = [
        f"learned from {learned.protocol}",
        f"adapted to {to}{of} in {1000 * adapted.seconds:.1f} ms",
    ]
    if adapted.norm == "transductive":
        notes.append(
            f"the {queries} query {kind}s are normalised by their common statistics "
            "(transductive): "
            "pass --norm support+1 for predictions that do not depend on each other"
        )
    return notes


def result_of(
    learned: Learned, adapted: Adapted | AdaptedTable, rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return what predictions.json holds."""
    return {
        "bundle": learned.source,
        "trained": learned.protocol,
        "norm": adapted.norm,
        "adaptation_ms": 1000 * adapted.seconds,
        "predictions": rows,
    }


def agreement(
    found: Sequence[tuple[int, Tensor]], truth: Tensor, title: str, quantity: str
) -> Figure:
    """Draw predicted against true numbers [N] of a quantity, after each adaptation step."""
    from metatrain import figures

    each = [(step, values.double()[None]) for step, values in found]
    return figures.agreement(truth[None], each, [f"{len(truth)} rows"], quantity, title)


def cut(names: Iterable[str], most: int | None) -> list[str]:
    """Return names in at most so many columns each; None: as long as they are."""
    names = list(names)
    short = {name: printable(name) for name in names} if most is None else shortened(names, most)
    return [short[name] for name in names]


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f}%"


def text(value: Any) -> str:
    """Return a cell of a table."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
