"""Initial weights from a file or from another run, in place of random ones."""

from __future__ import annotations

import hashlib
import logging

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from metatrain import bundle, storage
from metatrain.core import InputError, Meta, Params
from metatrain.recipe import Recipe

log = logging.getLogger(__name__)

BATCH_NORM = {
    "scale": "weight",
    "shift": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}  # torch's names
COUNTED = ("running_mean", "running_var", "num_batches_tracked")  # what torch keeps besides


def warm(recipe: Recipe, meta: Meta) -> Meta:
    """The initial meta-parameters with the weights that `model.weights` names, if it does."""
    place = getattr(recipe.model, "weights", None)  # a model of the user's own need not have it
    return meta if place is None else merged(meta, weights_at(place), place)


def merged(meta: Meta, given: Params, place: str) -> Meta:
    """Meta-parameters with given weights, which are at `place`.

    A head of other shapes is left as it is. InputError if a weight of the body is missing or of
    another shape.
    """
    given = dict(given)
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
            what = "is not in" if tensor is None else "has another shape in"
            log.info("%s %s %s: it starts from the seed", name, what, place)
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
    return found


def weights_at(place: str) -> Params:
    """Tensors by name, of a safetensors file or of the bundle of a run."""
    where = bundle.find(place)
    if where is not None:
        _, meta = bundle.load(where)
        log.info("initial weights: %s", where)
        return meta.model | meta.frozen | meta.state
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
    log.info("initial weights: %s (sha256 %s)", place, hashlib.sha256(data).hexdigest()[:16])
    return tensors
