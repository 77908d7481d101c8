"""Directories of files that are complete or refused, and the bundle.

A bundle holds meta-parameters and the recipe that they came from.

Files are tensors (safetensors), JSON and YAML; nothing is ever unpickled, and no code is run but
that of a module which the recipe names as the user's own ("package.module:Class"). `manifest.json`,
written last, holds each file's size and checksum: a directory without it is not there yet, one that
disagrees with it is refused.

A bundle's code/ records the source of such modules. It is compared with what is imported here and
never imported from there, unless the user puts it on Python's path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shlex
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from metatrain import custom, custom_source, schema, storage, yaml_reader
from metatrain.core import InputError, Meta
from metatrain.recipe import Recipe, own_classes
from metatrain.start import verified

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
TENSORS = "meta.safetensors"
CODE = "code/"
MOST_TEXT = 1 << 24  # bytes of a file that holds no tensors


class Damaged(InputError):
    """A directory has its manifest, and is not what was saved."""


def write_directory(uri: str, files: Mapping[str, bytes]) -> None:
    """Write files and then their manifest, which is not there in the meantime.

    On a local disk each is synced before the next, so that a power cut keeps the order, too.
    """
    manifest = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    }
    storage.remove(f"{uri}/{MANIFEST}")
    for name, data in [*files.items(), (MANIFEST, json.dumps(manifest, indent=1).encode())]:
        storage.write(f"{uri}/{name}", data)


def read_directory(uri: str) -> dict[str, bytes]:
    """Return the files of a complete directory; raise Damaged if they are not what was saved."""
    if not is_complete(uri):
        raise InputError(
            f"{uri} holds no bundle or checkpoint (no {MANIFEST})",
            remedy="give a run's folder, or train it to its end",
        )
    try:
        manifest = json.loads(storage.read(f"{uri}/{MANIFEST}", storage.MOST_JSON))
        if not isinstance(manifest, dict) or not all(map(_is_inside, manifest)):
            raise ValueError("its manifest names other files than its own")
        files = {name: storage.read(f"{uri}/{name}", _most(name)) for name in manifest}
        changed = [
            n
            for n, data in files.items()
            if hashlib.sha256(data).hexdigest() != manifest[n]["sha256"]
        ]
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{uri} is damaged ({error})", remedy="use another checkpoint") from error
    if changed:
        raise Damaged(
            f"{uri} is damaged: {changed[0]} is not what was saved",
            remedy="use another checkpoint",
        )
    return files


def _most(name: str) -> int:
    """Return how many bytes of a file are read."""
    return storage.MOST_BYTES if name.endswith(".safetensors") else MOST_TEXT


def is_complete(uri: str) -> bool:
    """Whether the directory has its manifest."""
    return storage.is_file(f"{uri}/{MANIFEST}")


def find(uri: str) -> str | None:
    """The complete directory at `uri`, or else the bundle of the run whose folder that is."""
    return next((place for place in (uri, f"{uri}/bundle") if is_complete(place)), None)


def save(uri: str, recipe: Recipe, meta: Meta, code: Mapping[str, bytes] | None = None) -> None:
    """Write the bundle: what adapting and evaluating need.

    `code` is the source of the user's own modules as it was when training started; by default, as
    it is now.
    """
    recipe = dataclasses.replace(recipe, family=recipe.family.resolved())
    text = schema.as_yaml(recipe)
    code = custom_source.texts(own_classes(recipe)) if code is None else code
    sources = {f"{CODE}{name}": data for name, data in code.items()}
    # What is tracked may lie as fused kernels have it.
    tensors = {name: p.contiguous() for name, p in meta.flat().items()}
    write_directory(
        uri,
        {TENSORS: save_tensors(tensors), "recipe.yaml": text.encode(), **sources},
    )


def load(uri: str) -> tuple[Recipe, Meta]:
    """Read a bundle; warn if modules of the user's own are not what they were in training."""
    files = read_directory(uri)
    code = {name.removeprefix(CODE): data for name, data in files.items() if name.startswith(CODE)}
    if set(files) - {f"{CODE}{name}" for name in code} != {TENSORS, "recipe.yaml"}:
        raise InputError(
            f"{uri} is not a bundle: it holds {', '.join(sorted(files))}",
            remedy="give a run's folder or its bundle",
        )
    tree = yaml_reader.keys(files["recipe.yaml"], f"{uri}/recipe.yaml")
    if code:
        _check_code(uri, tree, code)
    try:
        recipe = schema.parse(Recipe, tree, f"{uri}/recipe.yaml")
    except InputError as error:
        keys = error.__cause__
        if not isinstance(keys, ValidationError) or keys.errors()[0]["type"] == "value_error":
            raise
        # The file is as it was saved: there is nothing to correct in it.
        remedy = "use the version of ray-metatrain that saved it, or train it again"
        raise InputError(
            error.what, got=error.got, expected=error.expected, remedy=remedy
        ) from error
    different = custom_source.changed(code)
    if different:
        log.warning(
            "%s here differs from what %s was trained with, which its code/ holds: results may "
            "differ",
            ", ".join(different),
            uri,
        )
    try:
        tensors = load_tensors(files[TENSORS])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{uri} is damaged: meta.safetensors holds no tensors ({reason})",
            remedy="use another one, or train it again",
        ) from error
    return recipe, verified(recipe, tensors, uri)


def _check_code(uri: str, tree: Any, code: Mapping[str, bytes]) -> None:
    """Refuse code that belongs to no class of the recipe's.

    If such a class is not here, the error says what to do.
    """
    parts = (
        [tree.get(key) for key in ("family", "model", "algorithm")]
        if isinstance(tree, dict)
        else []
    )
    names = custom.own(part.get("name") for part in parts if isinstance(part, dict))
    if (
        not names
        or sum(map(len, code.values())) > custom_source.MOST_BYTES
        or not all(name.endswith(".py") for name in code)
    ):
        reason = "its code/ is not the source of its recipe's own classes"
        raise InputError(f"{uri} is not a bundle: {reason}")
    for name in names:
        try:
            custom.imported(name)
        except custom.NotImported as error:
            place = f"{uri.rstrip('/')}/code"
            copy = f"copy {place} to this machine, " if storage.is_remote(uri) else ""
            path = "its folder here" if storage.is_remote(uri) else shlex.quote(place)
            raise InputError(
                f"{uri} needs {name}, which cannot be imported here ({error.reason})",
                remedy=f"its source is in {place}; {copy}read it, and if you trust it, set "
                f"PYTHONPATH={path}",
            ) from error


def _is_inside(name: str) -> bool:
    """Whether a manifest's name is that of a file below its folder."""
    return not any(part in ("", ".", "..") or set(part) & set("\\:\0") for part in name.split("/"))
