"""Seeded mutations of trees and bytes, and of the files made of them with checksums that fit."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import yaml
from safetensors.torch import load, save

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**40,
    0.5,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "train",
    "../../x",
    "\0",
    "\x1b[2J",
    "é" * 5000,
    [],
    [1],
    [[[]]],
    {},
    {"name": "x"},
    {"": None},
]


def tree(value: Any, chance: random.Random) -> Any:
    """Return a tree of lists and dicts with one of its parts changed, removed or doubled."""
    value = copy.deepcopy(value)
    places = [*_places(value)]
    if not places or chance.random() < 0.02:
        return chance.choice(ODD)
    parent, key = chance.choice(places)
    kind = chance.random()
    if kind < 0.15:
        del parent[key]
    elif kind < 0.25 and isinstance(parent, list):
        parent.append(parent[key])
    elif kind < 0.35 and isinstance(parent, dict):
        parent[chance.choice(["x", "name", "format", key + "s"])] = parent.pop(key)
    elif kind < 0.5 and isinstance(parent[key], int | float):
        parent[key] = (
            -parent[key] if chance.random() < 0.3 else parent[key] + chance.choice([-1, 1])
        )
    else:
        parent[key] = copy.deepcopy(chance.choice(ODD))
    return value


def _places(value: Any) -> Any:
    for key in (
        range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    ):
        yield value, key
        yield from _places(value[key])


def raw(data: bytes, chance: random.Random) -> bytes:
    """Return bytes of which some are changed, removed or doubled."""
    found = bytearray(data)
    kind = chance.random()
    if kind < 0.15:
        return bytes(found[: chance.randrange(len(found) + 1)])
    if kind < 0.3:
        start = chance.randrange(len(found) + 1)
        return bytes(found[:start] + found[start : start + chance.randrange(64)] + found[start:])
    for _ in range(chance.choice([1, 3, 20])):
        if found:
            found[chance.randrange(len(found))] = chance.choice(
                [0, 1, 127, 128, 255, chance.randrange(256)]
            )
    return bytes(found)


def data_set(whole: Path, folder: Path, chance: random.Random) -> None:
    """Write a changed copy of a data set, most often with a manifest that fits."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    manifest = json.loads((whole / "manifest.json").read_text())
    data = (whole / "images.arrow").read_bytes()
    kind = chance.choice(
        ["manifest", "manifest bytes", "header", "header", "arrow", "arrow head", "arrow head"]
    )
    if kind == "header":
        data = _with_header(data, chance)
    elif kind == "arrow":
        data = raw(data, chance)
    elif kind == "arrow head":
        data = raw(data[:2000], chance) + data[2000:]
    manifest |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if kind == "manifest":
        manifest = tree(manifest, chance)
    text = json.dumps(manifest).encode()
    (folder / "images.arrow").write_bytes(data)
    (folder / "manifest.json").write_bytes(raw(text, chance) if kind == "manifest bytes" else text)


def _with_header(data: bytes, chance: random.Random) -> bytes:
    batch = pa.ipc.open_file(pa.BufferReader(data)).get_batch(0)
    header = tree(json.loads(batch.schema.metadata[b"metatrain"]), chance)
    schema = batch.schema.with_metadata({"metatrain": json.dumps(header)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(batch.columns, schema=schema))
    return sink.getvalue().to_pybytes()


def directory(whole: Path, folder: Path, chance: random.Random) -> None:
    """Write a changed copy of a bundle or checkpoint, most often with a manifest that fits."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    del files["manifest.json"]
    name, as_bytes = chance.choice([*files, "manifest.json"]), chance.random() < 0.3
    if name != "manifest.json":
        files[name] = raw(files[name], chance) if as_bytes else _changed(name, files[name], chance)
    manifest: Any = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    if name == "manifest.json" and not as_bytes:
        manifest = tree(manifest, chance)
    text = json.dumps(manifest).encode()
    files["manifest.json"] = raw(text, chance) if name == "manifest.json" and as_bytes else text
    for name, data in files.items():
        (folder / name).write_bytes(data)


def _changed(name: str, data: bytes, chance: random.Random) -> bytes:
    """Return a file of tensors, JSON or YAML with one value changed."""
    if name.endswith(".json"):
        return json.dumps(tree(json.loads(data), chance)).encode()
    if name.endswith(".yaml"):
        return yaml.safe_dump(tree(yaml.safe_load(data), chance)).encode()
    tensors = load(data)
    name = chance.choice(sorted(tensors))
    tensor = tensors.pop(name)
    odd: list[torch.Tensor | None] = [
        None,
        tensor * float("nan"),
        tensor.double(),
        tensor.to(torch.int8),
        tensor.bfloat16(),
        tensor[None].clone(),
        tensor.flatten()[:1].clone(),
        torch.zeros(0),
        torch.zeros(3, 5),
        torch.tensor(2.0),
    ]
    other = chance.choice(odd)
    if other is not None:
        parts = [
            name,
            name,
            name + "x",
            "x",
            "optimizer.x",
            "state.x",
            "model.",
            "optimizer.step.x",
        ]
        tensors[chance.choice(parts)] = other
    return save(tensors)
