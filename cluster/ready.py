"""A run that is ready to learn: its recipe bound, its folder chosen, its learner set up."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from typing import NamedTuple

import torch

from cluster import checkpoint
from cluster.claim import Check, claimed
from cluster.config import RunConfig
from cluster.ensembles import check_checkpoints
from cluster.output import absolute, choose
from cluster.resumable import check_resumable
from cluster.workers.plan import Plan, choose_plan, device_of
from metatrain import custom_source
from metatrain.bundle import Damaged
from metatrain.core import InputError, Purpose, to_device
from metatrain.first_look import check_data
from metatrain.learner import Learner
from metatrain.recipe import own_classes
from metatrain.start import Prepared, check_fit
from metatrain.start import prepare as prepare_recipe
from metatrain.storage import Folder
from metatrain.weights import warm

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """A run that is ready to learn: from the beginning, or from a checkpoint."""

    config: RunConfig
    prepared: Prepared
    plan: Plan
    folder: Folder
    learner: Learner
    notes: dict[str, str]  # what its checkpoints carry besides
    code: Mapping[str, bytes]  # the source of the user's own modules, as it was imported
    claims: tuple[Check, ...] = ()  # that its folders are this process's

    def check_claims(self) -> None:
        """Refuse to write to a folder that is not this process's any more."""
        for check in self.claims:
            check()


def checkpoints_of(run: Run) -> str:
    """Where a run saves its checkpoints."""
    return run.config.checkpoint.uri or f"{run.folder}/checkpoints"


def prepare(
    config: RunConfig,
    resume: str | None = None,
    *,
    trial: bool = False,
    claims: ExitStack | None = None,
) -> Run:
    """Check a configuration, choose its folder, and set up its learner.

    resume: the folder or checkpoint to resume from, or "auto".
    trial: it may resume in its own folder from another trial's checkpoint.
    claims: keeps other processes out of the folders that the run writes to, until it is closed.
    """
    held: list[Check] = []

    def claim(folder: Folder) -> None:
        places = {absolute(uri): uri for uri in (str(folder), config.checkpoint.uri) if uri}
        if claims is not None:
            for place in places.values():
                held.append(claims.enter_context(claimed(place, "run")))

    code = custom_source.texts(own_classes(config.recipe()))
    config = dataclasses.replace(config, family=config.family.resolved(), pretraining=None)
    prepared = prepare_recipe(config.recipe())
    check_data(prepared)
    check_fit(prepared, prepared.meta)
    check_checkpoints(config)
    norm, trained = prepared.problems[Purpose("score")].norm[0], config.norm
    if norm not in ("none", trained):
        log.info("norm is %s in training and %s in the evaluation (evaluation.norm)", trained, norm)
    if config.outer.max_staleness and config.workers.max:
        log.warning(
            "outer.max_staleness is %d: timing decides which parameters an update is of, so the "
            "result cannot be reproduced bit for bit; with 0 it can",
            config.outer.max_staleness,
        )
    folder, saved = choose(config, resume, trial=trial, claim=claim)
    plan, reason = choose_plan(prepared, config.workers.gpus, config.workers.threads)
    plan = plan._replace(compile=config.workers.compile)
    if saved is not None and saved.plan.device == plan.device:
        # whatever there was to choose from then
        plan, reason = plan._replace(path=saved.plan.path), "as before"
    # In process, updates and parameters never leave the device.
    device = device_of(plan) if config.workers.max == 0 else torch.device("cpu")
    config, prepared = started(config, prepared, saved)
    if saved is not None:
        check_resumable(saved, config, plan)
    log.info("compute path %s: %s", plan.path, reason)
    learner = Learner(to_device(prepared.meta, device), config.outer, config.seed)
    notes = resumed(learner, saved)
    folder.create()
    return Run(config, prepared, plan, folder, learner, notes, code, tuple(held))


def started(
    config: RunConfig, prepared: Prepared, saved: checkpoint.Saved | None
) -> tuple[RunConfig, Prepared]:
    """Record what a run starts from, and start from it: weights that are given, or the seed."""
    if saved is not None:
        if config.started_from is None:
            config = dataclasses.replace(config, started_from=saved.config.started_from)
        return config, prepared._replace(recipe=config.recipe())
    start = warm(prepared.recipe, prepared.meta)
    config = dataclasses.replace(config, started_from=start.source)
    return config, prepared._replace(recipe=config.recipe(), meta=start.meta)


def resumed(learner: Learner, saved: checkpoint.Saved | None) -> dict[str, str]:
    """Continue from a checkpoint, if there is one, and return what it carries besides."""
    if saved is None:
        return {}
    restore(learner, saved)
    log.info("resuming %s after %d steps", saved.uri, learner.version)
    return dict(saved.notes)


def restore(learner: Learner, saved: checkpoint.Saved) -> None:
    """Continue from a checkpoint; Damaged if it is not a learner's like this one."""
    try:
        learner.load_state_dict(saved.tensors, saved.scalars)
    except InputError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Damaged(
            f"{saved.uri} is damaged ({reason})", remedy="use another checkpoint"
        ) from error
