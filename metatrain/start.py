"""A recipe, bound once: what a run, its workers and its evaluation start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from metatrain.core import (
    ComputePath,
    InputError,
    Meta,
    Params,
    Problem,
    Purpose,
    Setting,
    Ticket,
    Work,
    generator_for,
)
from metatrain.custom import staying
from metatrain.recipe import Recipe

TRAINING = Purpose("update")


class Prepared(NamedTuple):
    """A recipe with all that follows from it and its seed."""

    recipe: Recipe
    settings: Mapping[Purpose, Setting]
    problems: Mapping[Purpose, Problem]  # each setting's family and the model, on the plain path
    meta: Meta  # that training starts from, unless model.weights names others

    def setting(self, work: Work, variant: str = "") -> Setting:
        """The setting of a purpose."""
        return self.settings[Purpose(work, variant)]

    def bind(self, purpose: Purpose, path: ComputePath) -> Problem:
        """The problem of a purpose on a compute path."""
        if path == "reference":
            return self.problems[purpose]
        setting = self.settings[purpose]
        return setting.family.bind(self.recipe.model, setting.norm, path)

    def used(self) -> list[Setting]:
        """The settings that a run has tickets for."""
        validates = self.recipe.validation.every_steps > 0
        unused = None if validates else Purpose("validate")
        return [s for s in self.settings.values() if s.purpose != unused]

    def without_validation(self) -> Prepared:
        """The same for scores alone: data that only tests has no classes for validation."""
        kept = {p: s for p, s in self.settings.items() if p != Purpose("validate")}
        return self._replace(settings=kept)


def prepare(recipe: Recipe) -> Prepared:
    """Resolve a recipe's settings, bind its problems and initialise its meta-parameters.

    Raises InputError if an override does not fit, or if the parts of the recipe do not fit each
    other. Tasks are not drawn: see first_look.
    """
    with staying("`bind` or `init`"):
        settings = recipe.settings()
        problems = {
            purpose: setting.family.bind(recipe.model, setting.norm, "reference")
            for purpose, setting in settings.items()
        }
        meta = _initial(recipe.seed, settings[TRAINING], problems[TRAINING])
    return Prepared(recipe, settings, problems, meta)


def check_fit(prepared: Prepared, meta: Meta) -> None:
    """Raise InputError if validation or an evaluation needs other shapes than those trained."""
    have = {name: list(p.shape) for name, p in meta.flat().items()}
    for setting in prepared.used():
        purpose = setting.purpose
        if purpose == TRAINING:
            continue
        need = _initial(prepared.recipe.seed, setting, prepared.problems[purpose])
        for full, p in need.flat().items():
            if have.get(full) != list(p.shape):
                what, do = (
                    ("validation", "validate")
                    if purpose.work == "validate"
                    else (f"evaluation {purpose.variant}".rstrip(), "evaluate")
                )
                name = full.partition(".")[2]
                raise InputError(
                    f"the {what} needs {name} of shape {list(p.shape)}, and what was trained has "
                    f"{have.get(full)}",
                    remedy=f"{do} with the model, algorithm, norm and family of training: ways, "
                    "columns and classes decide shapes",
                )


def verified(recipe: Recipe, flat: Params, source: str) -> Meta:
    """Return the meta-parameters that somebody saved, if they are those of the recipe.

    Raises InputError if a name, a shape or a type is another one, or if a number is not finite.
    """
    setting = recipe.setting("update")
    problem = setting.family.bind(recipe.model, setting.norm, "reference")
    need = _initial(recipe.seed, setting, problem).flat()
    for name in sorted(need.keys() | flat.keys()):
        reason = ""
        if name not in need or name not in flat:
            reason = f"{'has' if name in flat else 'lacks'} {name}"
        elif flat[name].shape != need[name].shape or flat[name].dtype != need[name].dtype:
            reason = f"has {name} as {_described(flat[name])} instead of {_described(need[name])}"
        elif not bool(flat[name].isfinite().all()):
            reason = f"has numbers in {name} that are not finite"
        if reason:
            raise InputError(
                f"{source} does not hold the parameters of its recipe: it {reason}",
                remedy="use another one, or train it again",
            )
    return Meta.unflat(flat)


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _initial(seed: int, setting: Setting, problem: Problem) -> Meta:
    """Initialise the meta-parameters of a setting from a seed."""
    generator = generator_for(seed, Ticket("update", "train", 0, 0), "init")
    return setting.algorithm.init(problem, generator)._replace(frozen=problem.frozen(generator))
