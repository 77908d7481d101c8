"""Initial weights from a file or from another run, in place of random ones."""

from __future__ import annotations

import hashlib
import logging
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from metatrain import bundle, storage
from metatrain.core import OWN, InputError, Meta, Params
from metatrain.recipe import Recipe

log = logging.getLogger(__name__)

BATCH_NORM = {
    "scale": "weight",
    "shift": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}  # torch's names
LAST = ("fc.", "classifier.1.")  # the last layers of torchvision's networks
COUNTED = ("running_mean", "running_var", "num_batches_tracked")  # what torch keeps besides


class Weights(NamedTuple):
    """Tensors by name, and what they are: the name and the checksum of what holds them."""

    tensors: Params
    source: str
    recipe: Recipe | None  # that trained them, if it is known


class Start(NamedTuple):
    """The meta-parameters that training starts from, and what `model.weights` was, if it is set."""

    meta: Meta
    source: str | None


def warm(recipe: Recipe, meta: Meta) -> Start:
    """The initial meta-parameters with the weights that `model.weights` names, if it does.

    Raises InputError if the recipe records that these were others.
    """
    place = getattr(recipe.model, "weights", None)  # a model of the user's own need not have it
    if place is None:
        return Start(meta, None)
    given = weights_at(place)
    if recipe.started_from not in (None, given.source):
        raise InputError(
            f"model.weights: {place}",
            got=given.source,
            expected=f"{recipe.started_from!r}, which started_from records",
            remedy="give those weights, or delete started_from to train from these",
        )
    return Start(merged(meta, given.tensors, place), given.source)


def merged(meta: Meta, given: Params, place: str) -> Meta:
    """Meta-parameters with given weights, which are at `place`.

    A head of other shapes is left as it is. InputError if a weight of the body is missing or of
    another shape.
    """
    given, fresh = in_parts(given, meta), []
    found = Meta(*(dict(params) for params in meta))
    for name in [name for params in (meta.model, meta.frozen, meta.state) for name in params]:
        layer, _, own = name.rpartition(".")
        tensor = given.pop(name, None)
        if tensor is None and own in BATCH_NORM:
            tensor = given.pop(f"{layer}.{BATCH_NORM[own]}", None)
        params = next(params for params in found if name in params)
        fits = tensor is not None and tensor.shape == params[name].shape
        if (
            fits
            and tensor is not None
            and tensor.is_floating_point()
            and bool(tensor.to(params[name].dtype).isfinite().all())
        ):
            params[name] = tensor.to(params[name].dtype)
        elif name.startswith("head.") and not fits:
            fresh.append(name)
        elif name not in meta.state:
            others = ", ".join(sorted(given)[:3])
            got = f"none, but {others}" if tensor is None else f"one of shape {list(tensor.shape)}"
            got = "one that is not of finite real numbers" if fits else got
            raise InputError(
                f"model.weights: the network needs {name} of shape {list(params[name].shape)}, and "
                f"{place} has {got}",
                remedy="give weights of the same network",
            )
    rest = sorted(
        name
        for name in given
        if not name.startswith("head.") and name.rpartition(".")[2] not in COUNTED
    )
    if rest:
        raise InputError(
            f"model.weights: {place} has {', '.join(rest[:3])}, which the network does not have",
            remedy="give weights of the same network",
        )
    if fresh:
        log.info("%s: from the seed, as %s has none that fit", ", ".join(fresh), place)
    return found


def in_parts(given: Params, meta: Meta) -> Params:
    """Weights by our names: those of a network that is no body and head get these parts."""
    own = meta.model | meta.frozen
    if any(name.startswith(("body.", "head.")) for name in given) or not any(
        name.startswith("body.") for name in own
    ):
        return dict(given)
    last = next((last for last in LAST if f"{last}weight" in given), "")
    return {
        f"head.{name.removeprefix(last)}" if last and name.startswith(last) else f"body.{name}": p
        for name, p in given.items()
    }


def weights_at(place: str) -> Weights:
    """The weights in a safetensors file or in the bundle of a run."""
    where = bundle.find(place)
    if where is not None:
        recipe, meta = bundle.load(where)
        log.info("initial weights: %s", where)
        source = _source(recipe.name, storage.read(f"{where}/{bundle.TENSORS}"))
        tracked = {name: p for name, p in meta.state.items() if not name.startswith(OWN)}
        return Weights(meta.model | meta.frozen | tracked, source, recipe)
    try:
        data = storage.read(place)
        tensors: dict[str, Tensor] = load_tensors(data)
    except FileNotFoundError:
        what = (
            f"{place} is a folder without a bundle"
            if storage.listing(place)
            else f"there is no {place}"
        )
        raise InputError(
            f"model.weights: {what}",
            remedy="give a safetensors file or the folder of a finished run",
        ) from None
    except (SafetensorError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"model.weights: {place} is no safetensors file ({error})",
            remedy="save a state_dict with safetensors.torch",
        ) from error
    source = _source(place.rpartition("/")[2], data)
    log.info("initial weights: %s (%s)", place, source)
    return Weights(tensors, source, None)


def _source(name: str, data: bytes) -> str:
    return f"{name} sha256 {hashlib.sha256(data).hexdigest()[:16]}"
