"""One recipe trained from several seeds, one after the other.

    OUTPUT/seed-0/, OUTPUT/seed-1/, ...: a run each, with all that a run has
    OUTPUT/seeds.json, OUTPUT/figures/seeds.png: all seeds together, at the end

The runs say what is finished: `--resume` reads nothing else.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster import output, run, spread
from cluster.api.files import read_result, scores
from cluster.claim import claimed
from cluster.collector import Interrupted
from cluster.config import RunConfig
from cluster.pools.opening import shared_ray
from cluster.spread import Record, Spread
from cluster.tracking import provenance
from cluster.tracking.mlflow_run import PARENT, SEED
from cluster.tracking.place import place_of
from cluster.tracking.recording import columns_of, experiment_of, parameters_of
from cluster.tracking.tracker import Tracker, start_tracker
from metatrain import schema, storage
from metatrain.core import InputError, Setting
from metatrain.first_look import check_data
from metatrain.start import prepare as prepare_recipe
from metatrain.storage import Folder
from metatrain.weights import warm

log = logging.getLogger(__name__)

FOLDER = "seed-"  # of a seed's run, in the output of all


def parse(text: str) -> list[int]:
    """Read seeds such as "0,1,2"."""
    parts = [part.strip() for part in text.split(",")]
    numbers = [int(part) for part in parts if re.fullmatch(r"-?[0-9]{1,20}", part)]
    if len(numbers) < max(2, len(parts)) or len(set(numbers)) < len(numbers):
        raise InputError(
            "--seeds", got=text, expected="two or more different whole numbers, such as 0,1,2"
        )
    return numbers


def train(
    config: RunConfig,
    seeds: Sequence[int],
    address: str | None = None,
    resume: str | None = None,
    *,
    source: str | None = None,
) -> tuple[Folder, list[Spread]]:
    """Train a recipe from each of these seeds, and say how its scores vary between them.

    seeds: two or more, in place of the recipe's.
    resume: the folder of all seeds, or "auto". Seeds that are finished are not trained again.
    source: the recipe's file.

    Returns the folder of all seeds and their scores, the result first. Raises what
    `cluster.run.train` raises, with the folder of all seeds as the one to continue.
    """
    config = dataclasses.replace(config, family=config.family.resolved(), pretraining=None)
    folder = _place(config, seeds, resume)
    runs = {seed: _one(config, seed, folder) for seed in seeds}
    found: dict[int, list[Record]] = {}
    with claimed(str(folder), "seeds"):
        begun = _check_free(folder, resume)
        prepared = prepare_recipe(config.recipe())
        check_data(prepared)
        if any(Path(str(one.output)).name not in begun for one in runs.values()):
            weights = warm(prepared.recipe, prepared.meta).source  # the same for all seeds
            runs = {s: dataclasses.replace(one, started_from=weights) for s, one in runs.items()}
        with (
            shared_ray(config.workers, config.recipe(), address),
            _recorded(config, prepared.used(), folder, source) as (tracker, tags),
        ):
            for seed, one in runs.items():
                known = _result(one)
                log.info("seed %d%s", seed, "" if known is None else " is finished")
                if known is None:
                    again = "auto" if Path(str(one.output)).name in begun else None
                    own = tags and tags | {SEED: str(seed)}
                    try:
                        _, scored = run.train(one, address, again, source=source, tags=own)
                    except Exception as error:
                        if isinstance(error, Interrupted):
                            error.args = (f"{error} of seed {seed}",)
                        saved = bool(found) or getattr(error, "saved", False)
                        vars(error).update(run=str(folder), saved=saved)
                        raise
                    known = [score.record() for score in scored]
                found[seed] = known
            spreads = spread.summarise(found)
            spread.leave(folder, config.name, spreads)
            folder.sync()
            for name in spread.FILES:
                tracker.artifact(folder / name)
            tracker.log(config.outer.steps, spread.as_metrics(spreads))
            tracker.describe(spread.note(spreads))
    return folder, spreads


def _one(config: RunConfig, seed: int, folder: Folder) -> RunConfig:
    """The run of one seed."""
    uri, name = config.checkpoint.uri, f"{FOLDER}{seed}"
    checkpoint = dataclasses.replace(config.checkpoint, uri=uri and f"{uri.rstrip('/')}/{name}")
    return dataclasses.replace(
        config,
        name=f"{config.name}-{name}",
        seed=seed,
        checkpoint=checkpoint,
        output=f"{folder}/{name}",
    )


def _place(config: RunConfig, seeds: Sequence[int], resume: str | None) -> Folder:
    """The folder of all seeds, to start or to resume: the newest that has one of them."""
    own = {f"{FOLDER}{seed}" for seed in seeds}
    if resume not in (None, "auto"):
        folder = Folder(str(resume))
        if not _begun(_names(folder)):
            raise InputError(
                f"{folder} holds no runs of seeds to continue",
                remedy="give the output of all seeds, or --resume auto",
            )
        return folder
    if config.output is not None:
        return Folder(config.output)
    runs = Path("runs") / config.name
    past = sorted((path for path in runs.glob("*") if path.is_dir()), reverse=True)
    found = (folder for folder in map(Folder, past) if resume and own & _names(folder))
    return next(found, None) or Folder(output.dated(runs))


def _names(folder: Folder) -> set[str]:
    return {info.base_name for info in storage.listing(str(folder))}


def _begun(names: set[str]) -> set[str]:
    """Those of these names that are of a seed's folder."""
    return {name for name in names if re.fullmatch(rf"{FOLDER}-?[0-9]+", name)}


def _check_free(folder: Folder, resume: str | None) -> set[str]:
    """Refuse a folder that holds something else; return the names of its seeds' folders."""
    names = _names(folder)
    begun = _begun(names)
    if begun and resume is None:
        raise InputError(
            f"{folder} already holds runs of seeds",
            remedy="pass --resume auto to continue them, or give another output",
        )
    known = begun | output.EARLY | (spread.FILES if begun else set())
    other = sorted(name for name in names - known if not name.startswith("."))
    if other:
        raise InputError(
            f"{folder} holds {other[0]} and no runs of seeds", remedy="give another output"
        )
    return begun


def _result(one: RunConfig) -> list[Record] | None:
    """The scores of a seed that is finished, if its recipe is still the same."""
    try:
        before = schema.load(RunConfig, f"{one.output}/config.yaml")
        if one.started_from is None:
            before = dataclasses.replace(before, started_from=None)
        if schema.dump(before.recipe()) == schema.dump(one.recipe()):
            return scores(read_result(str(one.output)))
    except InputError:
        pass  # training it says what is wrong
    return None


@contextmanager
def _recorded(
    config: RunConfig, settings: Sequence[Setting], folder: Folder, source: str | None
) -> Iterator[tuple[Tracker, dict[str, str]]]:
    """Record a run in MLflow that stands for all seeds; yields tags that put runs under it."""
    known = folder / "mlflow.json"
    tracker = start_tracker(
        experiment_of(config),
        provenance.dated(f"{config.name} seeds"),
        [(key, value) for key, value in parameters_of(config) if key != "seed"],
        place_of(str(folder)).run_id if known.exists() else None,
        about=provenance.tags(str(folder), config.name, source),
        columns=columns_of(config),
    )
    place, status = tracker.place(), "FAILED"
    folder.create()
    if place is not None:
        storage.write(str(known), json.dumps(place._asdict()).encode())
        folder.sync()
    try:
        tracker.inputs(settings)
        yield tracker, {PARENT: place.run_id} if place is not None else {}
        status = "FINISHED"
    except (Interrupted, SystemExit, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
