"""A sweep: Ray Tune runs trials, a journal keeps what they report, and the winner is tested once.

    journal.jsonl --> trials so far --> Tune: those that did not end, then new ones --> trial.run
          ^                                                                               |
          +--- started, reported, ended <--- callback in this process --> progress <------+

`--resume` reads the journal and the trials' own folders: Tune's records are pickles, and lack the
state of its schedulers.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

from cluster.claim import LEASE, LOCK, claimed
from cluster.collector import Interrupted
from cluster.interrupt import interruptible
from cluster.pools.ray_connection import connected
from cluster.progress import Line
from cluster.results import how_to_load
from cluster.tracking import description, provenance
from cluster.tracking.place import place_of
from cluster.tracking.recording import columns_of, experiment_of, to_sync
from cluster.tracking.tracker import start_tracker
from metatrain import protocol, schema, storage
from metatrain.awaiting import awaiting
from metatrain.core import InputError, Purpose
from metatrain.recipe import own_code
from metatrain.start import prepare
from metatrain.storage import Folder
from tuning import search as searches
from tuning.config import as_files
from tuning.journal import Journal
from tuning.ray_tune import Watch, run_trials
from tuning.resources import check_resources
from tuning.result import Outcome, conclude, end_trials
from tuning.search import Search

log = logging.getLogger(__name__)

QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal and MLflow have it all
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `interruptible` has one
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a recipe's own classes are found from here
    "RAY_AIR_NEW_OUTPUT": "0",
}


def start(search: Search, address: str | None = None, *, resume: str | None = None) -> Outcome:
    """Run a sweep, or resume the one in its folder.

    With `resume` "auto" a new sweep starts if the folder holds none; with another value it does
    not. The folder gets sweep.yaml, recipe.yaml, journal.jsonl, trials/, figures/ and, of the
    winner, bundle/ and result.json. Raises InputError for what the user can correct, and
    Interrupted after Ctrl-C.
    """
    folder = search.folder
    # The function API has no way to do what Tune recommends there.
    warnings.filterwarnings("ignore", "Consider boosting PBT", UserWarning)
    code = own_code(search.base)
    with ExitStack() as stack:
        should_stop = stack.enter_context(interruptible())
        stack.enter_context(claimed(str(folder), "sweep"))
        check_folder(search, resume)
        stack.enter_context(connected(address, code))
        os.environ.update(QUIET)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # Watch reports failures
        with awaiting("starting the sweep"):
            check_resources(search)
            steps = Journal(folder / "journal.jsonl").steps()
            tracker = start_tracker(
                experiment_of(search.base),
                provenance.dated(search.sweep.name),
                _described(search),
                _run_id(folder),
                step=steps,
                about=provenance.tags(str(folder), search.base.name, search.sweep.recipe),
                columns=columns_of(search.base),
                mend=to_sync(str(folder)),
            )
            journal = _open(search)
            place = tracker.place()
            if place is not None:
                storage.write(str(folder / "mlflow.json"), json.dumps(place._asdict()).encode())
            folder.sync()
        status, winner = "FAILED", None
        try:
            prepared = prepare(search.base.recipe())
            tracker.inputs(prepared.used())
            measured = protocol.of_score(prepared, Purpose("score"), search.steps)
            tracker.describe(description.note(measured, how_to_load(prepared, folder)))
            with Line(search.trials * search.steps, journal.steps()) as line:
                watch = Watch(search, journal, tracker, line, should_stop)
                run_trials(search, journal, watch, place, should_stop)
                if should_stop():
                    raise Interrupted
                for trial in journal.trials.values():
                    if trial.state == "running":  # not in the journal: it may be resumed
                        trial.state = "timed out"
            with awaiting("testing the winner"):
                outcome = conclude(search, journal, tracker, place)
            status, winner = "FINISHED", outcome.winner
        except Interrupted:
            status = "KILLED"
            ended = sum(trial.state != "running" for trial in journal.trials.values())
            raise Interrupted(f"stopped after {ended} of {search.trials} trials") from None
        finally:
            tracker.finish(status)
            end_trials(search, journal, place, winner)
            folder.sync()
            storage.remove(f"{folder}/tune")
    return outcome


def check_folder(search: Search, resume: str | None) -> None:
    """Refuse a folder that holds something else, or a finished sweep."""
    folder = search.folder
    if (folder / "sweep.yaml").exists():
        if not resume:
            raise InputError(
                f"{folder} already holds a sweep",
                remedy="pass --resume auto to continue it, or give another output",
            )
        other = searches.changed(searches.load(folder / "sweep.yaml"), search)
        if other is not None:
            raise InputError(
                f"{folder} holds another sweep: {other} differs", remedy="give another output"
            )
        trials = Journal(folder / "journal.jsonl").trials.values()
        if (folder / "result.json").exists() and all(trial.over for trial in trials):
            raise InputError(f"the sweep in {folder} is finished", remedy="give another output")
    elif resume not in (None, "auto"):
        raise InputError(
            f"{folder} holds no sweep to continue", remedy="give a sweep's folder, or --resume auto"
        )
    elif storage.is_file(str(folder)):
        raise InputError(f"{folder} is a file", remedy="give the sweep a folder as output")
    elif not (_is_empty(folder) or (resume and _has_begun(search))):
        raise InputError(f"{folder} is not empty and holds no sweep", remedy="give another output")
    elif resume:
        log.info("there is nothing to resume in %s: starting a new sweep", folder)


def _is_empty(folder: Folder, besides: Collection[str] = ()) -> bool:
    names = {info.base_name for info in storage.listing(str(folder))}
    return names <= {LOCK, LEASE, *besides}


def _has_begun(search: Search) -> bool:
    """Whether a driver of this sweep was killed before it had written sweep.yaml."""
    folder, name = search.folder, "recipe.yaml"
    if not _is_empty(folder, (name, f"{name}.partial", "sweep.yaml.partial")):
        return False
    try:
        written = storage.read(f"{folder}/{name}", storage.MOST_JSON)
    except FileNotFoundError:
        return True
    return written == as_files(search.sweep, search.base)[name].encode()


def _run_id(folder: Folder) -> str | None:
    """Return the run in MLflow of a sweep that is resumed, if that is known."""
    if not (folder / "mlflow.json").exists():
        return None
    try:
        return place_of(str(folder)).run_id or None
    except InputError as error:
        log.warning("%s: the sweep gets another run in MLflow", error.what)
        return None


def _open(search: Search) -> Journal:
    """Write what a sweep starts from into its folder, and open its journal.

    A folder with a sweep.yaml has all of it, also if this process is killed here.
    """
    folder = search.folder
    folder.create()
    storage.remove(f"{folder}/tune")
    for name, text in as_files(search.sweep, search.base).items():
        storage.write(str(folder / name), text.encode())
        folder.sync()
    return Journal(folder / "journal.jsonl")


def _described(search: Search) -> list[tuple[str, Any]]:
    """Return the sweep as the parameters of its run in MLflow."""
    sweep = schema.dump(
        dataclasses.replace(search.sweep, space={}, set={}, recipe=search.base.name)
    )
    given = [(key, value) for key, value in schema.flatten(sweep) if value not in (None, {})]
    space = [(f"space.{key}", domain) for key, domain in search.space.items()]
    return [
        *given,
        ("trials", search.trials),
        ("steps", search.steps),
        ("compared by", f"{search.mode} {search.metric}"),
        *space,
    ]
