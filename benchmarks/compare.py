"""Two trained runs on the same tasks: the paired difference of their results, with its 95 % interval.

    python benchmarks/compare.py runs/a runs/b

The tasks and all settings of the evaluation but the algorithm's are those of the first run. Where tasks differ much
from each other, far fewer of them tell two runs apart by pairs than by two separate intervals.
"""

from __future__ import annotations

import dataclasses
import math
import sys

import torch

from cluster.worker import Worker, choose_plan
from metatrain import bundle
from metatrain.core import InputError, Scores, Ticket
from metatrain.recipe import Recipe


def results(recipe: Recipe, worker: Worker) -> torch.Tensor:
    """[tasks] the metric after adaptation."""
    setting = recipe.setting(recipe.evaluation.split)
    parts = []
    for part in range(-(-setting.tasks // setting.tasks_per_ticket)):
        found, _ = worker.compute(Ticket("score", recipe.evaluation.split, 0, part))
        assert isinstance(found, Scores)
        parts.append(found.curves[setting.family.metric][:, -1])
    return torch.cat(parts).double()


def main(first: str, second: str) -> None:
    """Print both means and the mean difference, second - first."""
    measured, evaluation = [], None
    for place in (first, second):
        recipe, meta = bundle.load(bundle.find(place) or place)
        own = recipe.evaluation
        evaluation = evaluation or own
        recipe = dataclasses.replace(recipe, evaluation=dataclasses.replace(evaluation, algorithm=own.algorithm))
        worker = Worker(recipe, choose_plan(recipe, 0, 1)[0])
        worker.load(0, worker.layout.flatten(meta))
        measured.append((recipe, results(recipe, worker)))
    (recipe, before), (other, after) = measured
    if recipe.setting(evaluation.split).family != other.setting(evaluation.split).family:
        raise InputError(f"{first} and {second} were not tested on the same tasks: give runs of one family")
    for place, values in ((first, before), (second, after)):
        print(f"{place}: {values.mean():.4f} +- {1.96 * values.std() / math.sqrt(len(values)):.4f}")
    difference = after - before
    width = 1.96 * difference.std() / math.sqrt(len(difference))
    verdict = "a tie" if abs(difference.mean()) <= width else "a difference"
    print(f"paired difference over {len(difference)} tasks: {difference.mean():.4f} +- {width:.4f}: {verdict}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
