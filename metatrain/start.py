"""What a run starts from, and what would end it later: the initial meta-parameters, and a first
look at its tasks.
"""

from __future__ import annotations

import hashlib
import logging

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from metatrain import bundle, storage
from metatrain.core import InputError, Meta, Params, Path, Ticket, Work, generator_for
from metatrain.metrics import Metric
from metatrain.problems.functional import trying
from metatrain.recipe import Recipe

log = logging.getLogger(__name__)

TASKS = 7  # of a first look: so many that they are not taken for the examples of a task
BATCH_NORM = {
    "scale": "weight",
    "shift": "bias",
    "mean": "running_mean",
    "variance": "running_var",
}  # torch's names
COUNTED = ("running_mean", "running_var", "num_batches_tracked")  # what torch keeps besides


def initial_meta(recipe: Recipe, work: Work = "update") -> Meta:
    """The meta-parameters that a recipe and its seed determine; those of another work have the
    shapes that it needs.
    """
    generator = generator_for(recipe.seed, Ticket("update", "train", 0, 0), "init")
    setting = recipe.setting(work)
    problem = setting.family.bind(recipe.model, setting.norm, "reference")
    return setting.algorithm.init(problem, generator)._replace(frozen=problem.frozen(generator))


def warm(recipe: Recipe, meta: Meta) -> Meta:
    """The initial meta-parameters with the weights that `model.weights` names, if it does.

    A head of other shapes is left as it is. InputError if a weight of the body is missing or of
    another shape.
    """
    place = getattr(recipe.model, "weights", None)  # a model of the user's own need not have it
    if place is None:
        return meta
    given = _weights(place)
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
                (
                    f"model.weights: the network needs {name} of shape {list(params[name].shape)}, "
                    "and "
                    f"{place} has {got}"
                ),
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
            remedy=("give weights of the same network"),
        )
    return found


def _weights(place: str) -> Params:
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
            remedy=("save a state_dict with safetensors.torch"),
        ) from error
    log.info("initial weights: %s (sha256 %s)", place, hashlib.sha256(data).hexdigest()[:16])
    return tensors


def check_data(recipe: Recipe) -> None:
    """Refuse tasks that the data cannot give, or that do not fit the network, before anything is
    started.
    """
    works: tuple[Work, ...] = ("update", "validate", "score")
    for work in works:
        if work == "validate" and not recipe.validation.every_steps:
            continue
        setting = recipe.setting(work)
        setting.family.check(setting.split)
        check_sample(recipe, work, "reference")


def check_sample(recipe: Recipe, work: Work, path: Path) -> None:
    """Refuse a family whose first tasks are not what the network, computed on this path, and the
    losses need.
    """
    setting = recipe.setting(work)
    family, ticket = setting.family, Ticket(work, setting.split, 0, 0)
    who = f"{type(family).__name__} of family.name {recipe.family.name!r}"
    if not isinstance(family.metric, Metric):
        raise InputError(
            f"{who}: its metric",
            got=family.metric,
            expected="a metatrain.metrics.Metric",
            remedy='such as Metric("f1", "max", "percent")',
        )
    with trying(f"{who}: `sample`", f"for {TASKS} tasks of the {setting.split} split", "it"):
        tasks, again = (
            family.sample(generator_for(setting.seed, ticket, "tasks"), TASKS, setting.split)
            for _ in range(2)
        )
    fields = getattr(tasks, "_fields", None)
    if fields is None:
        raise InputError(
            f"{who}",
            remedy=(
                f"`sample` gives {type(tasks).__name__}, expected a NamedTuple such as core.Task"
            ),
        )
    for name, leaf in zip(fields, tasks, strict=True):
        if not isinstance(leaf, Tensor):
            raise InputError(
                f"{who}: {name} is {type(leaf).__module__}.{type(leaf).__name__}",
                expected=("a torch.Tensor"),
                remedy=("convert it, such as with torch.from_numpy"),
            )
        if leaf.layout != torch.strided or leaf.device.type != "cpu":
            raise InputError(
                f"{who}",
                remedy=(
                    f"{name} is {leaf.layout} on {leaf.device}, expected a dense tensor on the CPU"
                ),
            )
        if leaf.dim() < 1 or len(leaf) != TASKS:
            raise InputError(
                f"{who}: {name} is {list(leaf.shape)} for {TASKS} tasks",
                expected=f"[{TASKS}, ...]",
                remedy="one entry a task",
            )
        if not bool(leaf.isfinite().all()):
            raise InputError(
                f"{who}: {name} has values that are not finite", remedy="correct `sample`"
            )
    if not all(torch.equal(leaf, other) for leaf, other in zip(tasks, again, strict=True)):
        raise InputError(
            f"{who}: the same generator gives other tasks the second time",
            remedy=("draw from the generator that `sample` gets, and from nothing else"),
        )
    problem = family.bind(recipe.model, setting.norm[:1], path)
    try:
        problem.check(tasks)
    except InputError as error:
        raise InputError(f"{who}", remedy=f"{error}") from error
    if path == "reference" and not any(_is_own(part) for part in (family, recipe.model)):
        return
    measured = problem.try_out(tasks)
    if family.metric.name not in measured:
        raise InputError(
            f"{who}: its metric's name",
            got=family.metric.name,
            expected=f"one that `bind` measures: {', '.join(measured)}",
        )


def _is_own(component: object) -> bool:
    """Whether a family or a model is of a class of the user's; ours are tried in tests."""
    return not type(component).__module__.startswith("metatrain.")


def check_fit(recipe: Recipe, meta: Meta) -> None:
    """Refuse to evaluate meta-parameters on a network that they are not of."""
    works: tuple[Work, ...] = ("score", "validate") if recipe.validation.every_steps else ("score",)
    for work in works:
        for have, need in zip(meta, initial_meta(recipe, work), strict=True):
            for name in need:
                shapes = [
                    list(params[name].shape) if name in params else None for params in (have, need)
                ]
                if shapes[0] != shapes[1]:
                    what, do = (
                        ("evaluation", "evaluate")
                        if work == "score"
                        else ("validation", "validate")
                    )
                    raise InputError(
                        (
                            f"the {what} needs {name} of shape {shapes[1]}, and what was trained "
                            "has "
                            f"{shapes[0]}"
                        ),
                        remedy=f"{do} with the model, algorithm, norm and family.ways of training",
                    )
