"""Baselines of an evaluation: the same network learns the same tasks without meta-learning.

Each is one of the algorithms from another start. So it is measured as the result is, on the same
tasks, and the gain over it is a paired difference.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from metatrain import protocol, schema
from metatrain.algorithms.maml import MAML
from metatrain.algorithms.prototypical import Prototypical
from metatrain.core import InputError, Purpose
from metatrain.pretraining import with_linear_head
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe
from metatrain.start import Prepared, prepare
from metatrain.weights import merged, weights_at

# As a person would fine-tune: the whole support set in each step, and as many of these steps as
# are best on validation tasks.
FINE_TUNING = MAML(inner_lr=0.003, inner_steps=50, inner_optimizer="adam")


class Baseline(NamedTuple):
    """A start and a way to adapt from it."""

    name: str
    prepared: Prepared  # with the meta-parameters that it starts from
    start: str  # what these are, in words
    untuned: str = ""  # the name of the start itself, if it is a baseline as well

    @property
    def most_steps(self) -> int:
        """The most inner steps, if validation tasks decide how many there are; else 0."""
        algorithm = self.prepared.recipe.algorithm
        return algorithm.inner_steps if isinstance(algorithm, MAML) else 0

    @property
    def how(self) -> str:
        """How it adapts, in words."""
        algorithm = self.prepared.recipe.algorithm
        if not isinstance(algorithm, MAML):
            return "nearest mean of the support features"
        return (
            f"fine-tuning by {algorithm.inner_optimizer} inner_lr={algorithm.inner_lr} "
            f"inner_steps={algorithm.inner_steps}"
        )

    def after(self, steps: int) -> Baseline:
        """The same baseline with so many inner steps."""
        algorithm = dataclasses.replace(FINE_TUNING, inner_steps=steps)
        recipe = dataclasses.replace(self.prepared.recipe, algorithm=algorithm)
        return self._replace(prepared=prepare(recipe)._replace(meta=self.prepared.meta))


def baselines(recipe: Recipe, pretrained: str | None = None) -> list[Baseline]:
    """The baselines of a recipe's evaluation.

    pretrained: the folder of a pre-training, or other weights of the same network. Without it the
        only baseline is the network that learns the support set from scratch.

    Raises InputError if the tasks are no labelled examples, or the weights do not fit.
    """
    problem = prepare(recipe).problems[Purpose("score")]
    if not isinstance(problem, Supervised):
        raise InputError(
            "baselines need labelled examples, and these tasks are episodes",
            remedy="evaluate without --baselines",
        )
    fresh = f"not trained, seed {recipe.seed}"
    found = [Baseline("from_scratch", _prepared(recipe, FINE_TUNING), fresh)]
    if pretrained is None:
        return found
    given, norm = weights_at(pretrained), problem.norm[0]
    source = f"from {given.source}"
    start = source if given.recipe is None else f"{protocol.of_start(given.recipe, norm)}, {source}"

    def begun(name: str, algorithm: MAML | Prototypical, untuned: str = "") -> Baseline:
        prepared = _prepared(recipe, algorithm)
        meta = merged(prepared.meta, given.tensors, pretrained)
        return Baseline(name, prepared._replace(meta=meta), start, untuned)

    if not problem.classes:
        return [*found, begun("pretrained_fine_tuned", FINE_TUNING, "pretrained_not_tuned")]
    return [
        *found,
        begun("pretrained_fine_tuned", FINE_TUNING),
        begun("pretrained_nearest_centroid", Prototypical()),
    ]


def _prepared(recipe: Recipe, algorithm: MAML | Prototypical) -> Prepared:
    """The recipe's evaluation with another algorithm, from the seed."""
    own, model = recipe.evaluation, with_linear_head(recipe.model)
    if getattr(model, "weights", None) is not None:
        model = dataclasses.replace(model, weights=None)
    changed = dataclasses.replace(
        recipe,
        family=schema.override(recipe.family, own.family, "evaluation.family"),
        model=model,
        algorithm=algorithm,
        validation=dataclasses.replace(
            recipe.validation, norm=None, family=None, algorithm=None, patience=0
        ),
        evaluation=dataclasses.replace(
            own, norm=own.norms()[0], family={}, algorithm={}, ensemble=None
        ),
        evaluations={},
        started_from=None,
    )
    return prepare(changed)
