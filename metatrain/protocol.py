"""Protocol lines: what a score depends on, and what parameters were learned from."""

from __future__ import annotations

import dataclasses

from metatrain import privacy
from metatrain.aggregation import Mean, Private
from metatrain.core import Norm, Purpose
from metatrain.ensembles import Convex, purpose_of_fit
from metatrain.names import described
from metatrain.outer import Outer
from metatrain.recipe import Recipe
from metatrain.start import Prepared
from metatrain.tasks.fewshot import FewShot
from metatrain.tasks.text import Texts


def of_score(
    prepared: Prepared,
    purpose: Purpose,
    version: int,
    norm: Norm | None = None,
    *,
    single: bool = False,
) -> str:
    """All that a score depends on, in a line.

    version: the outer steps that the parameters were trained for.
    norm: the one that the score is measured with; the purpose's first by default.
    single: of the network without its ensemble.
    """
    norm = norm or prepared.problems[purpose].norm[0]
    setting = prepared.settings[purpose]
    how = described(setting.algorithm, adapts=True)
    if setting.ensemble is not None and not single:
        how += f", ensemble {described(setting.ensemble)}"
        if isinstance(setting.ensemble, Convex):
            fit = prepared.settings[purpose_of_fit(purpose)]
            how += f" fitted on {fit.tasks} val tasks of seed {fit.seed}"
    trained = _trained(prepared.recipe, version, norm)
    return f"{_measured(prepared, purpose, norm, how)}; {trained}; losses are means"


def of_baseline(prepared: Prepared, how: str, start: str) -> str:
    """All that the score of a baseline depends on, in a line.

    how: how it adapts, in words.
    start: what it starts from, in words.
    """
    purpose = Purpose("score")
    norm = prepared.problems[purpose].norm[0]
    return f"{_measured(prepared, purpose, norm, how)}; {start}; losses are means"


def of_start(recipe: Recipe, norm: Norm) -> str:
    """How the weights that a baseline starts from were trained."""
    return _trained(recipe, recipe.outer.steps, norm)


def of_learned(recipe: Recipe) -> str:
    """What a bundle's parameters were learned from, in a few words that need no data."""
    family, steps = recipe.family, _steps(recipe, recipe.outer.steps)
    tasks = family.summary() if isinstance(family, FewShot | Texts) else family.describe()
    return f"{tasks}, {recipe.algorithm.name}, {steps} ({recipe.name})"


def _measured(prepared: Prepared, purpose: Purpose, norm: Norm, how: str) -> str:
    """The tasks, the network and how it adapts to them."""
    setting = prepared.settings[purpose]
    disturbing = (each for each in (setting.corruption, setting.attack) if each is not None)
    under = "".join(f", {each.describe()}" for each in disturbing)
    return (
        f"{setting.family.describe()}, {setting.split} split, bn={norm}, "
        f"{_network(prepared.recipe)}, {how}{under}, {setting.tasks} tasks of seed {setting.seed}"
    )


def _trained(recipe: Recipe, version: int, norm: Norm) -> str:
    """How long, on what and how a network was trained, and what it started from."""
    # A network without batch statistics has no norm in training.
    trained_norm = "none" if norm == "none" else recipe.norm
    how = f"bn={trained_norm}, {described(recipe.algorithm)}"
    best = ", best by validation" if recipe.evaluation.of == "best" else ""
    best += f", averaged with decay {recipe.outer.average}" if recipe.outer.average else ""
    best += _aggregated(recipe.outer, version)
    if recipe.pretraining is not None:  # meta-training leaves these keys out
        how, best = "all training examples together, with supervision", ""
    weights = f", from {recipe.started_from}" if recipe.started_from else ""
    return (
        f"trained {_steps(recipe, version)}{best} ({recipe.family.describe()}, {how}){weights}, "
        f"seed {recipe.seed}"
    )


def _aggregated(outer: Outer, version: int) -> str:
    """How updates became one, unless it was their mean, and the privacy that steps spent."""
    if isinstance(outer.aggregate, Mean):
        return ""
    text = f", aggregate {described(outer.aggregate)}"
    if isinstance(outer.aggregate, Private) and outer.aggregate.delta is not None:
        spent = privacy.epsilon(outer.aggregate, outer.tasks_per_step, version)
        text += f" epsilon={spent:.2f}"
    return text


def _network(recipe: Recipe) -> str:
    """The model in words; the name of its weights says more than their place."""
    model = recipe.model
    return described(dataclasses.replace(model, weights=None) if recipe.started_from else model)


def _steps(recipe: Recipe, steps: int) -> str:
    pretraining = recipe.pretraining
    if pretraining is not None:
        return f"{pretraining.steps} steps of {pretraining.examples_per_step} examples"
    return f"{steps} steps of {recipe.outer.tasks_per_step} tasks"
