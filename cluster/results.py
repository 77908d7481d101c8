"""The results of a run: result.json, the pictures, and how to use them."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from cluster.tracking import provenance
from cluster.tracking.metrics_file import read_metrics
from metatrain import inference, storage
from metatrain.core import Meta, Purpose, Setting, to_device
from metatrain.evaluate import Score
from metatrain.plain import to_json
from metatrain.start import Prepared
from metatrain.storage import Folder
from metatrain.tasks.fewshot import FewShot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

SEVERAL = 3  # evaluations that have a picture beside each other

NORMALISED = {
    "transductive": "query images normalised together (transductive)",
    "support": "query images normalised with the support set",
    "support+1": "each query image normalised with the support set and itself (support+1)",
    "running": "query images normalised with training's moving averages (running)",
    "none": "after adaptation",
}


def leave(folder: Folder, prepared: Prepared, meta: Meta, scores: Sequence[Score]) -> None:
    """Write result.json and the pictures."""
    from metatrain import figures  # matplotlib takes time to import, and trials draw nothing

    recipe, meta = prepared.recipe, to_device(meta, torch.device("cpu"))
    result = {"scores": [score.record() for score in scores]}
    storage.write(str(folder / "result.json"), to_json(result, indent=1).encode())
    rows = read_metrics(folder / "metrics.jsonl")
    # The axis says how many tasks the result has; further evaluations have numbers of their own.
    labels = [
        f"{score.evaluation}, {score.tasks} tasks: {NORMALISED[score.norm]}"
        if score.evaluation
        else NORMALISED[score.norm]
        for score in scores
    ]
    pictures = {
        "learning_curve": figures.learning_curve(
            rows, scores[0].metric, f"{recipe.name}: learning curve"
        ),
        "adaptation_curve": figures.adaptation_curve(
            list(zip(labels, scores, strict=True)), f"{recipe.name}: adaptation to held-out tasks"
        ),
    }
    pictures |= _of_evaluations(prepared, scores)
    pictures |= _of_classes(recipe.name, list(zip(labels, scores, strict=True)))
    if meta.algorithm:
        pictures["learned"] = figures.learned_parameters(
            rows, f"{recipe.name}: what the algorithm learned"
        )
    for name, figure in pictures.items():
        figures.save(figure, folder / "figures" / f"{name}.png")
    try:
        shown = {
            "example": inference.illustrate(recipe, meta),
            "made": inference.illustrate_made(recipe, meta),
        }
        for name, picture in shown.items():
            if picture is not None:
                figures.save(picture, folder / "figures" / f"{name}.png")
    except Exception as error:  # of a family of the user's: the results are worth more
        log.warning(
            "there is no picture of an example, as `picture` failed: %s: %s",
            type(error).__name__,
            error,
        )


def _of_evaluations(prepared: Prepared, scores: Sequence[Score]) -> dict[str, Figure]:
    """Draw several evaluations beside each other, by support examples if only these differ."""
    from metatrain import figures

    found: dict[str, Score] = {}
    for score in scores:
        found.setdefault(score.evaluation, score)  # by its first norm
    if len(found) < SEVERAL:
        return {}
    settings = [prepared.settings[Purpose("score", name)] for name in found]
    shots = [_shots(setting) for setting in settings]
    by_shots = len(set(shots)) == len(shots) and None not in shots
    by_shots = by_shots and all(_but_shots(each) == _but_shots(settings[0]) for each in settings)
    named = [(name or "result", score) for name, score in found.items()]
    drawn = figures.evaluations(
        named,
        [number for number in shots if number is not None] if by_shots else [],
        f"{prepared.recipe.name}: evaluations",
    )
    return {"evaluations": drawn}


def _shots(setting: Setting) -> int | None:
    """Return the number of support examples of a class or a task, if it is always the same."""
    shots = getattr(setting.family, "shots", None)
    if isinstance(shots, tuple):
        return shots[0] if shots[0] == shots[1] else None
    return shots if isinstance(shots, int) else None


def _but_shots(setting: Setting) -> list[Any]:
    """What an evaluation measures, without the number of support examples."""
    family = setting.family
    keys = [item.name for item in fields(family) if item.name != "shots"]  # type: ignore[arg-type]
    _, split, _, algorithm, norm, *_ = setting
    disturbed = setting.corruption, setting.attack, setting.ensemble
    return [
        type(family),
        split,
        algorithm,
        norm,
        disturbed,
        *(getattr(family, key) for key in keys),
    ]


def _of_classes(run: str, scores: Sequence[tuple[str, Score]]) -> dict[str, Figure]:
    """Draw what scores of classes have besides: calibration, and a matrix of each evaluation."""
    from metatrain import figures

    found = {}
    calibrated = [(label, score) for label, score in scores if "reliability" in score.details]
    if calibrated:
        found["reliability"] = figures.reliability(calibrated, f"{run}: calibration")
    for _, score in scores:
        name = f"confusion_{score.evaluation}".rstrip("_")
        if "confusion" in score.details and name not in found:  # by an evaluation's first norm
            title = f"{run} {score.evaluation}".rstrip()
            found[name] = figures.confusion(score, f"{title}: predicted classes")
    return found


def how_to_load(prepared: Prepared, folder: Folder, model: str = "") -> list[str]:
    """Code that puts to use what a run learned, of which MLflow may have a `model`."""
    where, purpose = provenance.absolute(str(folder)), Purpose("score")
    family, problem = prepared.settings[purpose].family, prepared.problems[purpose]
    if not inference.takes_examples(family, problem):
        return [f"bash\nmetatrain evaluate {shlex.quote(where)}"]
    python = f"python\nimport metatrain\n\nlearned = metatrain.load({where!r})"
    if model:
        python += f"\n\nimport mlflow\n\nmodel = mlflow.pyfunc.load_model({model!r})"
    few, new = ("few", "new") if isinstance(family, FewShot) else ("few.csv", "new.csv")
    return [python, f"bash\nmetatrain adapt {shlex.quote(where)} --support {few} --query {new}"]


def warn(scores: Sequence[Score]) -> None:
    """Log a sentence about tasks that diverged, or are about to."""
    for sentence in filter(None, (score.warning() for score in scores)):
        log.warning("%s", sentence)
