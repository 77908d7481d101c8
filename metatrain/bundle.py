"""Directories of files that are complete or refused, and the bundle: meta-parameters and the recipe they came from.

Files are tensors (safetensors), JSON and YAML; nothing is ever unpickled, and no code is run but that of a module which
the recipe names as the user's own ("package.module:Class"). `manifest.json`, written last, holds each
file's size and checksum: a directory without it is not there yet, one that disagrees with it is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from metatrain import recipe as recipes
from metatrain import storage
from metatrain.core import InputError, Meta
from metatrain.recipe import Recipe

MANIFEST = "manifest.json"


def write_directory(uri: str, files: Mapping[str, bytes]) -> None:
    """Write files and then their manifest."""
    manifest = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    for name, data in [*files.items(), (MANIFEST, json.dumps(manifest, indent=1).encode())]:
        storage.write(f"{uri}/{name}", data)


def read_directory(uri: str) -> dict[str, bytes]:
    """The files of a complete directory; InputError where something is missing or was changed."""
    if not is_complete(uri):
        raise InputError(
            f"{uri} holds no bundle or checkpoint (no {MANIFEST}): give a run's folder, or train it to its end"
        )
    try:
        manifest = json.loads(storage.read(f"{uri}/{MANIFEST}"))
        files = {name: storage.read(f"{uri}/{name}") for name in manifest}
        changed = [n for n, data in files.items() if hashlib.sha256(data).hexdigest() != manifest[n]["sha256"]]
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{uri} is damaged ({error}): use another checkpoint") from error
    if changed:
        raise InputError(f"{uri} is damaged: {changed[0]} is not what was saved; use another checkpoint")
    return files


def is_complete(uri: str) -> bool:
    """Whether the directory has its manifest."""
    return storage.is_file(f"{uri}/{MANIFEST}")


def find(uri: str) -> str | None:
    """The complete directory at `uri`, or else the bundle of the run whose folder that is."""
    return next((place for place in (uri, f"{uri}/bundle") if is_complete(place)), None)


def save(uri: str, recipe: Recipe, meta: Meta) -> None:
    """Write the bundle: what adapting and evaluating need."""
    recipe = dataclasses.replace(recipe, family=recipe.family.standalone())
    tensors = {f"{part}.{name}": p for part, params in meta._asdict().items() for name, p in params.items()}
    text = yaml.safe_dump(recipes.dump(recipe), sort_keys=False)
    write_directory(uri, {"meta.safetensors": save_tensors(tensors), "recipe.yaml": text.encode()})


def load(uri: str) -> tuple[Recipe, Meta]:
    """Read a bundle."""
    files = read_directory(uri)
    if set(files) != {"meta.safetensors", "recipe.yaml"}:
        raise InputError(
            f"{uri} is not a bundle: it holds {', '.join(sorted(files))}; give a run's folder or its bundle"
        )
    meta = Meta({}, {}, {}, {})
    for full, tensor in load_tensors(files["meta.safetensors"]).items():
        part, _, name = full.partition(".")
        getattr(meta, part)[name] = tensor
    return recipes.parse(Recipe, yaml.safe_load(files["recipe.yaml"]), f"{uri}/recipe.yaml"), meta
