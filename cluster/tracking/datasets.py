"""A run's data as data sets of MLflow: name, checksum, place, splits and counts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from metatrain import schema
from metatrain.addresses import tree_without_secrets, without_secrets
from metatrain.core import Setting, Split, TaskFamily, Work
from metatrain.data import remote
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.language import Language
from metatrain.tasks.table import Table
from metatrain.tasks.text import Texts

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

DIGEST = 36  # characters, MLflow's limit; the profile has the whole checksum
NAME = 500  # characters, MLflow's limit
CONTEXTS: dict[Work, str] = {"update": "training", "validate": "validation", "score": "evaluation"}


class Described(NamedTuple):
    """A split of a family's data, as plain values."""

    name: str
    checksum: str
    kind: str  # of its source, as MLflow shows it
    source: dict[str, Any]
    schema: dict[str, Any] | None
    profile: dict[str, Any]


def inputs(settings: Iterable[Setting]) -> list[DatasetInput]:
    """Return the data sets of a run, one for each use; InputError if the data cannot be found."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = []
    for setting in settings:
        work, variant = setting.purpose
        context = f"{CONTEXTS[work]} {variant}".rstrip()
        described = describe(setting.family, setting.split)
        schema = None if described.schema is None else json.dumps(described.schema)
        dataset = Dataset(
            described.name[-NAME:],
            described.checksum[:DIGEST],
            described.kind,
            json.dumps(described.source),
            schema,
            json.dumps(described.profile),
        )
        found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return found


def describe(family: TaskFamily, split: Split) -> Described:
    """Describe a split of a family's data, or the settings from which it generates tasks."""
    if isinstance(family, FewShot | Texts | Language):
        return _examples(family, split)
    if isinstance(family, Table):
        return _rows(family, split)
    tree = tree_without_secrets(schema.dump(family))
    text = json.dumps(tree, sort_keys=True)
    checksum = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    own = ":" in tree["name"]  # nobody knows what it draws from
    source = {"class" if own else "family": tree["name"], "settings": tree}
    return Described(
        f"{tree['name']} {split}",
        checksum,
        "code" if own else "generated",
        source,
        None,
        {"split": split, **tree},
    )


def place(data: str) -> tuple[str, dict[str, Any]]:
    """Return the kind of a data set's source, and its name or its address without secrets."""
    scheme, mark, _ = data.partition("://")
    if mark:
        return scheme, {"uri": without_secrets(data)}
    return ("local", {"uri": data}) if remote.is_elsewhere(data) else ("imported", {"name": data})


def _examples(family: FewShot | Texts | Language, split: Split) -> Described:
    store = family.store
    scheme = store.scheme(family.splits)
    kind, source = place(family.data)
    members = scheme.classes.get(split, [])
    tensor = {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": [-1, *store.shape]}}
    profile = {
        "split": split,
        "classes": len(members),
        "texts" if store.text else "images": int(store.sizes[members].sum()),
        "shape": list(store.shape),
        "rotations": family.rotations(split) if isinstance(family, FewShot) else "none",
        "splits": {name: len(classes) for name, classes in scheme.classes.items()},
        "synthetic": store.synthetic,
        "checksum": store.checksum,
    }
    name = f"{_base(source)}/{scheme.name} {split}"
    schema = {"mlflow_tensorspec": {"features": json.dumps([tensor]), "targets": None}}
    return Described(name, store.checksum, kind, source, schema, profile)


def _rows(family: Table, split: Split) -> Described:
    known = family.resolved()
    kind, source = place(family.data) if "/" in family.data else ("local", {"uri": family.data})
    counts = {
        name: {"groups": groups, "rows": rows} for name, (groups, rows) in known.counts().items()
    }
    profile = {
        "split": split,
        **counts[split],
        "group": family.group,
        "target": family.target,
        "splits": counts,
        "checksum": known.checksum,
    }
    columns = [
        {"type": "double", "name": name, "required": True}
        for name in (*(known.features or ()), known.target)
    ]
    schema = {"mlflow_colspec": columns}
    return Described(
        f"{_base(source)} {split}", known.checksum or "", kind, source, schema, profile
    )


def _base(source: dict[str, Any]) -> str:
    return str(source["name"]) if "name" in source else Path(str(source["uri"]).rstrip("/")).name
