"""Adapt to a support set in files, and predict others: images, or rows of numbers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metatrain import storage
from metatrain.awaiting import awaiting
from metatrain.core import AnyTable, InputError, Norm
from metatrain.data import arrays
from metatrain.data.folders import labelled_files
from metatrain.data.texts import LABEL, TEXT
from metatrain.inference import row_columns, table_files
from metatrain.inference.learned import Learned
from metatrain.inference.predictions import Numbers, Predictions
from metatrain.inference.report import Predicted, classified, numbered
from metatrain.names import counted, decoded, first, undecoded
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.table import Table
from metatrain.tasks.text import Texts


def predict(
    learned: Learned,
    support: str,
    query: Sequence[str],
    norm: Norm | None,
    target: str | None = None,
) -> Predicted:
    """Adapt to the support set in a folder or file, and predict the examples in others.

    Files of rows may be at an address. Raises InputError if the files do not fit the network.

    target: the column to predict, if the recipe does not name it.
    """
    arrays_given = support.lower().endswith(".npz")
    if isinstance(learned.recipe.family, AnyTable) and not arrays_given:
        return table_files.predict(learned, support, query, norm, target)
    if target is not None:
        _check_target(learned, target, named=not arrays_given)
    if isinstance(learned.recipe.family, FewShot):
        return _images(learned, support, query, norm)
    return _rows(learned, support, query, norm, target)


def _check_target(learned: Learned, target: str, *, named: bool) -> None:
    """Refuse the name of a column if there is none to choose."""
    family, remedy = learned.recipe.family, "leave it out"
    if isinstance(family, Table) and target != family.target:
        raise InputError("--target", got=target, expected=repr(family.target), remedy=remedy)
    if isinstance(family, FewShot | Texts) or not named or learned.targets != 1:
        raise InputError(
            f"--target names a column, and {learned.source} takes its targets from elsewhere",
            remedy=remedy,
        )


def _images(learned: Learned, support: str, query: Sequence[str], norm: Norm | None) -> Predicted:
    """Adapt to images in a folder for each class; the queries may lie in such folders as well."""
    examples, refused = labelled_files(storage.local(support, "--support"))
    if any(label is None for _, label in examples):
        raise InputError(
            f"{support} has images outside of class folders",
            remedy="put each into a folder named after its class",
        )
    adapted = learned.adapt([path for path, _ in examples], [label for _, label in examples], norm)
    unread, files, labels, images = [], [], [], []
    queries = []
    for path in query:
        found, others = labelled_files(storage.local(path, "--query"))
        refused += others
        queries += found
    with awaiting(f"reading {counted(len(queries), 'image')}"):
        for file, label in queries:
            try:
                images.append(adapted.examples([file]))
            except InputError as error:
                unread.append(f"refused {error}")
            else:
                files.append(decoded(str(file)))
                labels.append(label)
    if not images:
        raise InputError("none of the query images can be read", remedy="give others")
    x = torch.cat(images)
    predictions = adapted.predictions(adapted.outputs(adapted.after, x))
    truth = [label if label in predictions.classes else None for label in labels]
    captions = [label or Path(file).name for file, label in zip(files, truth, strict=True)]
    title = f"Predictions of {learned.source} for {len(files)} images"
    shown, notes, result = classified(learned, adapted, predictions, "image", files, labels)
    odd = undecoded(file.parent.name for file, label in examples if label is not None)
    lines = [*(f"refused {file}: {why}" for file, why in refused), *unread]
    notes = [*first(lines), *odd, *notes]
    return Predicted(shown, notes, result, adapted.picture(x, truth, title, captions), [])


def _rows(
    learned: Learned, support: str, query: Sequence[str], norm: Norm | None, target: str | None
) -> Predicted:
    """Adapt to rows of a CSV, Parquet or NPZ file, and predict those of others."""
    named = None if target is None else [target]
    raw, targets, names = _read(learned, support, named, "--support")
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
        raise InputError.at(support, error) from error
    examples: list[Tensor] = []
    truth: list[Any] = []
    places: list[str] = []
    for path in query:
        raw, known, _ = _read(learned, path, names, "--query")
        try:
            examples.append(adapted.examples(raw))
        except InputError as error:
            raise InputError.at(path, error) from error
        truth += row_columns.targets(path, learned, known, len(examples[-1]))
        name = decoded(path.rpartition("/")[2])
        places += [f"{name} row {i + 1}" for i in range(len(examples[-1]))]
    x = torch.cat(examples)
    found = adapted.predictions(adapted.outputs(adapted.after, x))
    if isinstance(found, Predictions):
        table, notes, result = classified(learned, adapted, found, "row", places, truth)
        return Predicted(table, notes, result, None, result["predictions"])
    finite = int(found.values.reshape(len(x), -1).isfinite().all(-1).sum())
    if finite < len(x):
        raise InputError(
            f"the network gives no finite number for {len(x) - finite} of {counted(len(x), 'row')}",
            remedy=f"check whether the values of {support} and of the rows to predict are far from "
            "those of training",
        )
    mean = float(np.mean(np.asarray(targets, np.float64))) if found.values.dim() == 1 else math.nan

    def before() -> Numbers:
        return adapted.predictions(adapted.outputs(adapted.before, x))

    return numbered(learned, adapted, found, before, places, truth, names[0], mean)


def _read(
    learned: Learned, path: str, targets: Sequence[str] | None, key: str
) -> tuple[Any, Any, Sequence[str]]:
    """Return examples as `adapt` takes them, their targets or None, and the names of the targets.

    targets: names of the target columns; None: the column y, or the last ones. A table's recipe
        names its own.
    key: the option that named the file.
    """
    if path.lower().endswith(".npz"):
        return (*arrays.read(storage.local(path, key)), ["y"])
    table = row_columns.read(path, key)
    family = learned.recipe.family
    if isinstance(family, Table):
        return table, table.get(family.target), [family.target]
    if isinstance(family, Texts):
        if TEXT not in table:
            raise InputError(f"{path} has no column {TEXT!r}", remedy="name that of the texts so")
        return table[TEXT], table.get(LABEL), [LABEL]
    table = row_columns.without_index(table, targets or ())
    names = list(targets or (["y"] if "y" in table else list(table)[-learned.targets :]))
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
