"""What `metatrain adapt` does with files: a support set and examples to predict, as images or as
rows of numbers.
"""

from __future__ import annotations

import csv
import difflib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metatrain.awaiting import awaiting
from metatrain.core import InputError, Norm
from metatrain.data import columns
from metatrain.data.folders import labelled_files
from metatrain.inference import Adapted, Learned, Predictions
from metatrain.names import counted, few, printable, shortened
from metatrain.plain import to_json
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Columns = Mapping[str, Sequence[str]]  # by their heads
# A table of the first so many rows, or of all, in which names take at most so many columns, or all
# that they need.
Shown = Callable[[int | None, int | None], Columns]


class Predicted(NamedTuple):
    """What was predicted of N examples, and how it is shown."""

    shown: Shown  # a table to print
    notes: list[str]  # lines to print
    result: dict[str, Any]  # predictions.json
    picture: Figure | None
    rows: list[dict[str, Any]]  # predictions.csv; none for images


def predict(learned: Learned, support: Path, query: Sequence[Path], norm: Norm | None) -> Predicted:
    """Adapt to the support set in a folder or file, and predict what is in others. InputError if
    they do not fit.
    """
    if isinstance(learned.recipe.family, FewShot):
        return _images(learned, support, query, norm)
    return _rows(learned, support, query, norm)


def write(found: Predicted, folder: Path) -> list[Path]:
    """Write predictions.json, .csv and .png into a folder in place of earlier predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("predictions.*"):
        if path.suffix in (".json", ".csv", ".png"):
            path.unlink()
    written = [folder / "predictions.json"]
    written[0].write_text(to_json(found.result, indent=1))
    if found.rows:
        written.append(folder / "predictions.csv")
        names = [name for name in found.rows[0] if name != "probabilities"]
        with written[-1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(found.rows)
    if found.picture is not None:
        from metatrain import figures

        with awaiting("drawing predictions.png"):
            written.append(figures.save(found.picture, folder / "predictions.png"))
    return written


def _images(learned: Learned, support: Path, query: Sequence[Path], norm: Norm | None) -> Predicted:
    """The support set lies in a folder for each class, and so may the queries."""
    examples, refused = labelled_files(support)
    if any(label is None for _, label in examples):
        raise InputError(
            f"{support} has images outside of class folders",
            remedy=("put each into a folder named after its class"),
        )
    adapted = learned.adapt([path for path, _ in examples], [label for _, label in examples], norm)
    unread, files, labels, images = [], [], [], []
    queries = []
    for path in query:
        found, others = labelled_files(path)
        refused += others
        queries += found
    with awaiting(f"reading {counted(len(queries), 'image')}"):
        for file, label in queries:
            try:
                images.append(adapted.examples([file]))
            except InputError as error:
                unread.append(f"refused {error}")
            else:
                files.append(str(file))
                labels.append(label)
    if not images:
        raise InputError("none of the query images can be read", remedy="give others")
    x = torch.cat(images)
    predictions = adapted.predictions(adapted.outputs(adapted.after, x))
    truth = [label if label in predictions.classes else None for label in labels]
    captions = [label or Path(file).name for file, label in zip(files, truth, strict=True)]
    title = f"Predictions of {learned.source} for {len(files)} images"
    shown, notes, result = _classified(learned, adapted, predictions, "image", files, labels)
    notes = [*(f"refused {file}: {why}" for file, why in refused), *unread, *notes]
    return Predicted(shown, notes, result, adapted.picture(x, truth, title, captions), [])


def _rows(learned: Learned, support: Path, query: Sequence[Path], norm: Norm | None) -> Predicted:
    """The support set and the queries are CSV, Parquet or NPZ files."""
    raw, targets, names = _read(learned, support, None, "--support")
    if targets is None:
        known = list(raw) if isinstance(raw, dict) else []
        near = [other for name in names for other in difflib.get_close_matches(name, known, 1)]
        hint = f"; its column {near[0]!r} has almost that name" if near else ""
        raise InputError(
            f"{support} has no targets ({', '.join(names)}), and adapting needs some",
            remedy=f"add them{hint}",
        )
    try:
        adapted = learned.adapt(raw, targets, norm)
    except InputError as error:
        raise InputError.at(str(support), error) from error
    examples: list[Tensor] = []
    truth: list[Any] = []
    places: list[str] = []
    for path in query:
        raw, known, _ = _read(learned, path, names, "--query")
        try:
            examples.append(adapted.examples(raw))
        except InputError as error:
            raise InputError.at(str(path), error) from error
        truth += _targets(path, learned, known, len(examples[-1]))
        places += [f"{path.name} row {i + 1}" for i in range(len(examples[-1]))]
    x = torch.cat(examples)
    found = adapted.predictions(adapted.outputs(adapted.after, x))
    if isinstance(found, Predictions):
        table, notes, result = _classified(learned, adapted, found, "row", places, truth)
        return Predicted(table, notes, result, None, result["predictions"])
    rows = [
        {"row": place, "target": target, "prediction": value}
        for place, target, value in zip(places, truth, found.values.tolist(), strict=True)
    ]

    def shown(count: int | None, most: int | None) -> Columns:
        heads = [
            "row",
            *(["target"] if any(target is not None for target in truth) else []),
            "prediction",
        ]
        columns = {head: [_text(row[head]) for row in rows[:count]] for head in heads}
        return columns | {"row": _cut(places[:count], most)}

    notes, result = _told(learned, adapted, "row", len(places)), _result(learned, adapted, rows)
    known = [i for i, target in enumerate(truth) if target is not None]
    if not known or found.values.dim() > 1:
        return Predicted(shown, notes, result, None, rows)
    told = torch.tensor([float(truth[i]) for i in known], dtype=torch.float64)
    constant = float(np.mean(np.asarray(targets, np.float64)))
    errors = [
        float((guess - told).square().mean()) for guess in (found.values[known].double(), constant)
    ]
    roots = [f"{error**0.5:.6g}" for error in errors]
    notes.append(
        f"root mean squared error over {counted(len(known), 'row')}, in units of {names[0]}: "
        f"{roots[0]}; "
        f"{roots[1]} if the mean of the support set's targets is predicted"
    )
    return Predicted(
        shown,
        notes,
        result | {"mean_squared_error": errors[0]},
        _agreement(adapted, x[known], told),
        rows,
    )


def _read(
    learned: Learned, path: Path, targets: Sequence[str] | None, key: str
) -> tuple[Any, Any, Sequence[str]]:
    """Examples as `adapt` takes them, their targets if the file has them, and how these are called
    there.

    Of a table they are columns by their names. Else the targets are those columns, the column y, or
    the last ones.
    """
    if path.suffix.lower() == ".npz":
        arrays = _arrays(path, key)
        if "x" not in arrays:
            raise InputError(
                f"{path} has no array x, the examples",
                remedy="save it with numpy.savez(path, x=..., y=...)",
            )
        return arrays["x"], _single(arrays.get("y")), ["y"]
    file = columns.opened(str(path), columns.stamp(str(path), key), "")
    if all(columns.is_number(name) for name in file.types):
        raise InputError(
            f"{path} has numbers where the names of its columns should be",
            remedy=("add a first line of names"),
        )
    table = {name: file.column(name).to_pylist() for name in file.types}
    family = learned.recipe.family
    if isinstance(family, Table):
        return table, table.get(family.target), [family.target]
    names = targets or (["y"] if "y" in table else list(table)[-learned.targets :])
    inputs = [name for name in table if name not in names]
    if not inputs:
        names, inputs = ["y"], list(table)  # there is no column besides for targets
    x = np.array([table[name] for name in inputs]).T
    if not set(names) <= table.keys():
        return x, None, names
    return (
        x,
        table[names[0]] if len(names) == 1 else np.array([table[name] for name in names]).T,
        names,
    )


def _targets(path: Path, learned: Learned, known: Any, examples: int) -> list[Any]:
    """What is known of the targets of so many examples, None if it is missing."""
    if known is None:
        return [None] * examples
    values = [None if value is None or value != value else value for value in known]
    if len(values) != examples:
        raise InputError(
            f"{path} has {examples} examples and {len(values)} targets",
            remedy=("give each its target, or none at all"),
        )
    if not learned.has_classes and any(
        value is not None and (isinstance(value, bool) or not isinstance(value, int | float))
        for value in values
    ):
        raise InputError(
            f"{path} has targets that are no numbers", remedy="correct them, or leave them out"
        )
    return values


def _single(y: Any) -> list[Any] | None:
    """Targets as N values, also if they are [N, 1]; rows if there are several of each."""
    if y is None:
        return None
    return list((y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y).tolist())


def _arrays(path: Path, key: str) -> dict[str, Any]:
    columns.stamp(str(path), key)  # which refuses what is no regular file, or too large
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} cannot be read as NPZ ({error})",
            remedy="save it with numpy.savez(path, x=..., y=...)",
        ) from error


def _classified(
    learned: Learned,
    adapted: Adapted,
    found: Predictions,
    kind: str,
    places: list[str],
    labels: Sequence[Any],
) -> tuple[Shown, list[str], dict[str, Any]]:
    """The table, the notes and the result of predicted classes; a label may be None, or no class of
    the support set.
    """
    truth = [label if label in found.classes else None for label in labels]
    marks = [
        "" if t is None else "✓ " if t == predicted else "✗ "
        for t, predicted in zip(truth, found.labels, strict=True)
    ]
    chances = found.probabilities.tolist()

    def shown(count: int | None, most: int | None) -> Columns:
        names = list(dict.fromkeys(_text(label) for label in (*found.classes, *labels[:count])))
        name = dict(zip(names, _cut(names, most), strict=True))
        columns = {kind: _cut(places[:count], most)}
        if any(label is not None for label in labels):
            columns["class"] = [name[_text(label)] for label in labels[:count]]
        cells = []
        for mark, label, row in list(zip(marks, found.labels, chances, strict=True))[:count]:
            others = [
                (chance, other)
                for chance, other in zip(row, found.classes, strict=True)
                if other != label
            ]
            chance, other = max(others, key=lambda pair: pair[0])
            runner_up = f"{name[_text(other)]} {_percent(chance)}"
            known = (
                (name[_text(label)], _percent(max(row)), runner_up)
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
    notes = _told(learned, adapted, kind, len(places))
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
        _result(learned, adapted, rows) | {"accuracy": sum(known) / len(known) if known else None},
    )


def _told(learned: Learned, adapted: Adapted, kind: str, queries: int) -> list[str]:
    """What was done, in lines."""
    to = counted(adapted.support.support_x.shape[1], kind)
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


def _result(learned: Learned, adapted: Adapted, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "bundle": learned.source,
        "trained": learned.protocol,
        "norm": adapted.norm,
        "adaptation_ms": 1000 * adapted.seconds,
        "predictions": rows,
    }


def _agreement(adapted: Adapted, x: Tensor, truth: Tensor) -> Figure:
    """Predicted against true numbers, before and after adaptation."""
    from metatrain import figures

    before, after = (
        adapted.predictions(adapted.outputs(params, x)).values.double()
        for params in (adapted.before, adapted.after)
    )
    return figures.agreement(
        truth[None],
        [(0, before[None]), (adapted.steps, after[None])],
        [f"{len(x)} rows"],
        "target",
        f"Predictions, adapted to {adapted.support.support_x.shape[1]} rows",
    )


def _cut(names: Iterable[str], most: int | None) -> list[str]:
    names = list(names)
    short = {name: printable(name) for name in names} if most is None else shortened(names, most)
    return [short[name] for name in names]


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f}%"


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
