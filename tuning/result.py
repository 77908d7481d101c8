"""The results of a sweep: the winner, tested once, and the records of all trials."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from cluster import checkpoint, run
from cluster.results import how_to_load
from cluster.tracking import description
from cluster.tracking.mlflow_run import mark_ended
from cluster.tracking.place import Place, place_of
from cluster.tracking.tracker import Tracker
from metatrain import bundle, figures, protocol, storage
from metatrain.core import InputError, Purpose
from metatrain.evaluate import Score
from metatrain.plain import to_json
from metatrain.start import prepare
from tuning import figures as pictures
from tuning.journal import Journal, Trial, ranked
from tuning.search import Search
from tuning.trial import folder_of, name_of, schedule_of

log = logging.getLogger(__name__)

WON = " (winner)"  # in a run's name
# How the trials of a state ended, as MLflow calls it; those of other states are KILLED.
STATUS = {"completed": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}
MOST_COMPARED = 10  # trials that are opened side by side
KEPT = (  # of a sweep's folder, in MLflow
    "sweep.yaml",
    "recipe.yaml",
    "journal.jsonl",
    "schedule.json",
    "result.json",
    "figures",
    "bundle",
)


class Outcome(NamedTuple):
    """What a sweep found."""

    trials: list[Trial]  # best first
    winner: Trial
    scores: list[Score]  # the winner's, on the evaluation tasks
    protocol: str  # of the validation that it was chosen by
    place: Place | None  # where MLflow opens the best trials side by side


def conclude(search: Search, journal: Journal, tracker: Tracker, place: Place | None) -> Outcome:
    """Test the winner, draw the pictures, and leave all results in the folder and in MLflow."""
    folder = search.folder
    order = ranked(search, journal.trials.values())
    if not order or order[0].last is None:  # time was up, or all of them diverged or failed
        causes = sorted({trial.cause for trial in order if trial.cause})
        because = f": {causes[0]}" if causes else ""
        raise InputError(
            f"no trial came to a validation{because}",
            remedy="" if causes else "give the sweep more time (budget.minutes)",
        )
    winner, last = order[0], order[0].last
    newest = _checkpoint_of(search, winner, last.step)
    config, meta, version = run.load_trained(newest, [])
    prepared = prepare(config.recipe())
    bundle.save(str(folder / "bundle"), run.recipe_after(config.recipe(), version), meta)
    scores = run.evaluate(newest, [])
    schedule = schedule_of(checkpoint.load(newest).notes)
    if schedule:
        storage.write(str(folder / "schedule.json"), json.dumps(schedule, indent=1).encode())
    for name, figure in pictures.draw(search, order, schedule).items():
        figures.save(figure, folder / "figures" / f"{name}.png")
    if place is not None:
        place = _beside(search, order[:MOST_COMPARED], place)
        storage.write(str(folder / "mlflow.json"), json.dumps(place._asdict()).encode())
    chosen_by = protocol.of_score(prepared, Purpose("validate"), last.step)
    outcome = Outcome(order, winner, scores, chosen_by, place)
    found = _as_json(outcome)
    storage.write(str(folder / "result.json"), to_json(found, indent=1).encode())
    for path in (folder / name for name in KEPT):
        if path.exists():
            tracker.artifact(path)
    model = tracker.model(folder / "bundle", journal.steps())
    tracker.log(journal.steps(), description.as_metrics(scores))
    for step, metrics in description.adaptation(scores).items():
        tracker.log(step, metrics)
    load = how_to_load(prepared, folder, model)
    tracker.describe(description.note(scores[0].protocol, load, scores))
    if all(trial.over for trial in order):  # MLflow never changes a parameter: only when it is sure
        tracker.params(won_by(found))
    if last.diverged_tasks:
        log.warning(
            "%d validation tasks of the winner diverged, and no trial that made as many steps had "
            "fewer: search lower inner rates",
            last.diverged_tasks,
        )
    return outcome


def _checkpoint_of(search: Search, winner: Trial, step: int) -> str:
    """Return the winner's checkpoint of the validation that it won by, else its newest one."""
    root = f"{folder_of(search.folder, winner.number)}/checkpoints"
    reported = f"{root}/step-{step:08d}"
    if bundle.is_complete(reported):
        with suppress(bundle.Damaged):
            return checkpoint.load(reported).uri
    if checkpoint.latest(root) is None:
        raise InputError(
            f"trial {winner.number} has no checkpoint yet",
            remedy="give the sweep more time (budget.minutes)",
        )
    return checkpoint.load(root).uri


def _beside(search: Search, trials: Sequence[Trial], place: Place) -> Place:
    """Return the place in MLflow that opens these trials side by side."""
    folders = [folder_of(search.folder, trial.number) for trial in trials]
    recorded = [uri for uri in folders if storage.is_file(f"{uri}/mlflow.json")]
    return place._replace(compared=tuple(place_of(uri).run_id for uri in recorded))


def _as_json(outcome: Outcome) -> dict[str, Any]:
    """Return what result.json holds."""
    rows = [
        {
            "trial": trial.number,
            "state": trial.state,
            "step": trial.steps,
            "value": trial.last.value if trial.last else None,
            "diverged_tasks": trial.last.diverged_tasks if trial.last else None,
            **trial.values,
        }
        for trial in outcome.trials
    ]
    return {
        "winner": outcome.winner.number,
        "chosen_by": outcome.protocol,
        "values": outcome.winner.values,
        "trials": rows,
        "scores": [score.record() for score in outcome.scores],
    }


def won_by(found: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the winner of a result.json as parameters of the sweep's run in MLflow."""
    best = [(f"best.{key}", value) for key, value in found["values"].items()]
    return [("best.trial", found["winner"]), *best]


def name_in_mlflow(sweep: str, number: int, *, is_winner: bool) -> str:
    """Return the name of a trial's run in MLflow once the sweep has ended."""
    return f"{name_of(sweep, number)}{WON if is_winner else ''}"


def end_trials(search: Search, journal: Journal, place: Place | None, winner: Trial | None) -> None:
    """Mark the trials' runs in MLflow as ended, and the winner by its name.

    A trial's process ends before it could do so itself.
    """
    if place is None:
        return
    for trial in journal.trials.values():
        recorded = folder_of(search.folder, trial.number)
        if storage.is_file(f"{recorded}/mlflow.json"):
            run_id = place_of(recorded).run_id
            name = name_in_mlflow(search.sweep.name, trial.number, is_winner=trial is winner)
            ended = STATUS.get(trial.state, "KILLED")
            if not mark_ended(search.base.tracking, run_id, name, ended, trial.at_s):
                return
