"""Protocol lines: what a score depends on, and what parameters were learned from."""

from __future__ import annotations

from metatrain.core import Norm, Purpose
from metatrain.names import described
from metatrain.recipe import Recipe
from metatrain.start import Prepared
from metatrain.tasks.fewshot import FewShot


def of_score(prepared: Prepared, purpose: Purpose, version: int, norm: Norm | None = None) -> str:
    """All that a score depends on, in a line.

    version: the outer steps that the parameters were trained for.
    norm: the one that the score is measured with; the purpose's first by default.
    """
    recipe, setting = prepared.recipe, prepared.settings[purpose]
    norm = norm or prepared.problems[purpose].norm[0]
    # A network without batch statistics has no norm in training.
    trained_norm = "none" if norm == "none" else recipe.norm
    how = f"bn={trained_norm}, {described(recipe.algorithm)}"
    best = ", best by validation" if recipe.evaluation.of == "best" else ""
    if recipe.pretraining is not None:  # meta-training leaves these keys out
        how, best = "all training examples together, with supervision", ""
    trained = f"{recipe.family.describe()}, {how}"
    return (
        f"{setting.family.describe()}, {setting.split} split, bn={norm}, "
        f"{described(recipe.model)}, {described(setting.algorithm, adapts=True)}, "
        f"{setting.tasks} tasks of seed {setting.seed}; "
        f"trained {_steps(recipe, version)}{best} ({trained}), seed {recipe.seed}; losses are means"
    )


def of_learned(recipe: Recipe) -> str:
    """What a bundle's parameters were learned from, in a few words that need no data."""
    family, steps = recipe.family, _steps(recipe, recipe.outer.steps)
    tasks = family.summary() if isinstance(family, FewShot) else family.describe()
    return f"{tasks}, {recipe.algorithm.name}, {steps} ({recipe.name})"


def _steps(recipe: Recipe, steps: int) -> str:
    pretraining = recipe.pretraining
    if pretraining is not None:
        return f"{pretraining.steps} steps of {pretraining.examples_per_step} examples"
    return f"{steps} steps of {recipe.outer.tasks_per_step} tasks"
