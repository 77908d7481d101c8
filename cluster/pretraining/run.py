"""One pre-training, put together: prepared, trained here or by Ray Train, and its bundle left."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack

import torch

from cluster import checkpoint
from cluster.claim import Check, claimed
from cluster.collector import Interrupted
from cluster.config import RunConfig
from cluster.interrupt import interruptible
from cluster.output import absolute, choose, record, remove_partials
from cluster.progress import ProgressLine
from cluster.ready import Run, checkpoints_of, restore, resumed
from cluster.resumable import check_resumable
from cluster.tracking.metrics_file import metrics_file, read_metrics
from cluster.tracking.recording import recorded
from cluster.workers.plan import choose_plan, device_of
from metatrain import bundle, custom_source, figures, pretraining
from metatrain.core import to_device
from metatrain.first_look import check_setting
from metatrain.isolation import isolated
from metatrain.learner import Applied, Learner
from metatrain.plain import finite
from metatrain.recipe import own_classes
from metatrain.start import TRAINING
from metatrain.start import prepare as prepare_recipe
from metatrain.storage import Folder

log = logging.getLogger(__name__)

SUFFIX = "-pretraining"  # of the run's name: `train --resume auto` finds no run of this kind


def pretrain(
    config: RunConfig,
    address: str | None = None,
    resume: str | None = None,
    *,
    source: str | None = None,
) -> Folder:
    """Train a recipe's network on all its training examples together, as `pretraining` says.

    resume: the folder to resume, or "auto": the newest pre-training of that name and output.
    source: the recipe's file.

    Returns the folder, with config.yaml, metrics.jsonl, checkpoints/, bundle/ and figures/. Raises
    InputError for what the user can fix, and Interrupted, after saving, if somebody asks it to
    stop.
    """
    config = dataclasses.replace(
        config,
        name=f"{config.name.removesuffix(SUFFIX)}{SUFFIX}",
        family=config.family.resolved(),
        pretraining=pretraining.recipe_of(config.recipe()).pretraining,
    )
    with isolated(config.workers.threads), interruptible() as should_stop, ExitStack() as claims:
        run, task = _prepare(config, resume, claims)
        with recorded(run, source=source) as tracker:
            remove_partials(run.folder)
            for path in record(run.folder, config, run.code):
                tracker.artifact(path)
            root, learner = checkpoints_of(run), run.learner
            checkpoint.forget_after(root, learner.version)
            line = ProgressLine(
                config.family.metric,
                learner.version,
                task.keys.steps,
                task.keys.examples_per_step,
                "examples",
            )
            with metrics_file(run.folder, learner.version) as (rows, write, synced), line.line:
                tracker.complete(rows)
                made = learner.version

                def on_step(version: int, applied: Applied) -> None:
                    nonlocal made
                    if version <= made:  # made again, to the same bits, after a worker was lost
                        return
                    made = version
                    metrics = _metrics(applied)
                    tracker.log(version, finite(metrics), write(version, metrics))
                    line(version, metrics)

                try:
                    if config.workers.max == 0:
                        _learn_here(run, task, on_step, synced, should_stop)
                    elif learner.version < task.keys.steps:
                        from cluster.pretraining import data_parallel

                        data_parallel.learn(run, task, on_step, should_stop, address)
                        restore(learner, checkpoint.load(root))
                except Exception as error:
                    newest = checkpoint.latest(root)
                    if isinstance(error, Interrupted):
                        kept = int(newest.rpartition("-")[2]) if newest else 0
                        all_of_it = "" if kept == made else f", of which {kept} are kept"
                        steps = f"{made} of {task.keys.steps} steps"
                        error.args = (f"stopped after {steps}{all_of_it}",)
                    # Whoever reports the error says how to continue.
                    vars(error).update(run=str(run.folder), saved=newest is not None)
                    raise
            meta = pretraining.result(run.prepared, to_device(learner.meta(), torch.device("cpu")))
            bundle.save(str(run.folder / "bundle"), run.prepared.recipe, meta, run.code)
            figure = figures.pretraining_curve(
                read_metrics(run.folder / "metrics.jsonl"),
                config.family.metric,
                f"{config.name}: all training examples together",
            )
            figures.save(figure, run.folder / "figures" / "learning_curve.png")
            run.folder.sync()
            for name in ("figures", "bundle"):
                tracker.artifact(run.folder / name)
    return run.folder


def _prepare(
    config: RunConfig, resume: str | None, claims: ExitStack
) -> tuple[Run, pretraining.Supervision]:
    """Check a configuration, choose its folder, and set up its learner."""
    held: list[Check] = []

    def claim(folder: Folder) -> None:
        places = {absolute(uri): uri for uri in (str(folder), config.checkpoint.uri) if uri}
        held.extend(claims.enter_context(claimed(place, "run")) for place in places.values())

    code = custom_source.texts(own_classes(config.recipe()))
    prepared = prepare_recipe(config.recipe())
    check_setting(prepared, TRAINING)
    folder, saved = choose(config, resume, claim=claim)
    plan, reason = choose_plan(prepared, config.workers.gpus, config.workers.threads)
    if saved is not None:
        check_resumable(saved, config, plan)
    log.info("compute path %s: %s", plan.path, reason)
    task = pretraining.supervision(prepared, plan.path)
    device = device_of(plan) if config.workers.max == 0 else torch.device("cpu")
    learner = Learner(to_device(task.meta, device), task.outer, config.seed)
    notes = resumed(learner, saved)
    folder.create()
    return Run(config, prepared, plan, folder, learner, notes, code, tuple(held)), task


def _learn_here(
    run: Run,
    task: pretraining.Supervision,
    on_step: Callable[[int, Applied], None],
    synced: Callable[[], None],
    should_stop: Callable[[], bool],
) -> None:
    """Take the steps that are left in this process, with a checkpoint now and then."""
    config, learner = run.config, run.learner
    for applied in pretraining.learn(task, learner):
        on_step(learner.version, applied)
        stop = should_stop() and learner.version < task.keys.steps
        if stop or is_due(config, task, learner.version):
            run.check_claims()
            synced()
            keep = config.checkpoint.keep
            checkpoint.save(checkpoints_of(run), config, run.plan, learner, run.notes, keep)
        if stop:
            raise Interrupted


def is_due(config: RunConfig, task: pretraining.Supervision, version: int) -> bool:
    """Whether a checkpoint follows after so many steps."""
    return version % config.checkpoint.every_steps == 0 or version == task.keys.steps


def _metrics(applied: Applied) -> dict[str, float]:
    """The metrics of a step under the names of a run's."""
    return {
        **{f"train/{name}": value for name, value in applied.metrics.items()},
        "learner.gradient_norm": applied.gradient_norm,
        "learner.lr": applied.lr,
    }
