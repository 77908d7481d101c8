"""The closing lines of a command: the result, what to do next, how to continue."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.jobs.job import JOB
from metatrain.console import again, program

if TYPE_CHECKING:
    from cluster.config import RunConfig
    from cluster.spread import Spread
    from metatrain.evaluate import Score
    from metatrain.recipe import Recipe


def print_results(scores: Sequence[Score], kept: str = "") -> None:
    """Print the baselines and the scores, the result last.

    kept: where everything else is. Raises InputError if too many tasks diverged for a result.
    """
    from metatrain.core import InputError

    for line in scores[0].baseline_lines():
        print(line)
    for score in [*scores[1:], scores[0]]:
        if score.usable:
            print(score.line())
    if not scores[0].usable:
        left = scores[0].tasks - scores[0].diverged
        raise InputError(
            f"there is no result, as {left} of {scores[0].tasks} tasks did not diverge",
            remedy="lower the inner rate, or the number of inner steps, of the evaluation's "
            f"algorithm{kept and f'; {kept}'}",
        )


def print_spread(spread: Spread, kept: str) -> None:
    """Print a score over training seeds.

    kept: where everything else is. Raises InputError if a seed has no result.
    """
    from metatrain.core import InputError

    if spread.lost:
        raise InputError(
            "there is no result, as half of the tasks or more diverged with seed "
            f"{', '.join(map(str, spread.lost))}",
            remedy="lower the inner rate, or the number of inner steps, of the evaluation's "
            f"algorithm; {kept}",
        )
    print(spread.line())


def print_next(recipe: Recipe, folder: str) -> None:
    """Say what to do with a finished run: predict examples, if it learned from examples."""
    from metatrain.inference import takes_examples
    from metatrain.tasks.fewshot import FewShot
    from metatrain.tasks.text import Texts

    setting = recipe.setting("score")
    problem = setting.family.bind(recipe.model, setting.norm, "reference")
    if isinstance(setting.family, FewShot):
        words = ["adapt", folder, "--support", "few", "--query", "new"]
        about = "few: one folder of images per class; new: images to classify"
    elif takes_examples(setting.family, problem):
        words = ["adapt", folder, "--support", "few.csv", "--query", "new.csv"]
        about = "few.csv: rows with their targets; new.csv: rows to predict"
        if isinstance(setting.family, Texts):
            about = "few.csv: columns text and label; new.csv: column text"
    else:
        words, about = ["evaluate", folder, "--set", "evaluation.tasks=1000"], ""
    command = shlex.join([program(), *words])
    print(f"next: {command}", *([f"  {about}"] if about else []), sep="\n")


def to_continue(ended: Exception, config: RunConfig, resume: str | None) -> list[str]:
    """Return a line with the command that continues a run which ended before its end.

    resume: the option with which the run was started.

    Returns no line in a job: `submit` names the command that sends the job again.
    """
    if JOB in os.environ:
        return []
    way = ["--resume", "auto"] if config.output is not None else []
    folder, saved = getattr(ended, "run", None), is_saved(ended)
    if not saved:
        way = ["--resume", resume] if resume else way
    elif config.output is None and config.checkpoint.uri is None:
        way = ["--resume", str(folder)]
    elif config.output is None:  # the folder says where the checkpoints are, and does not hold them
        way = ["--set", f"output={folder}", "--resume", "auto"]
    what = "continue" if saved else "start again"
    return [f"to {what}: {again(sys.argv[1:], *way)}"]


def is_saved(ended: Exception) -> bool:
    """Whether the run that an error ended has a checkpoint."""
    return bool(getattr(ended, "saved", False))
