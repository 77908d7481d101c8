"""One run, put together: prepared, trained, evaluated, and its results left."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from cluster import checkpoint, ensembles, loop, results
from cluster.baselines import leave, measured
from cluster.collector import Interrupted, Requests
from cluster.config import RunConfig
from cluster.evaluation import Baselines, evaluate_all
from cluster.interrupt import interruptible
from cluster.output import record, remove_partials
from cluster.patience import Patience
from cluster.pools.opening import open_pool, shared_ray
from cluster.pools.pool import Pool, Snapshot
from cluster.progress import ProgressLine
from cluster.ready import Run, checkpoints_of, prepare
from cluster.tracking import description
from cluster.tracking.metrics_file import metrics_file
from cluster.tracking.recording import recorded
from cluster.tracking.tracker import Tracker
from cluster.workers import usage
from cluster.workers.plan import choose_plan
from cluster.workers.usage import DRIVER_S, Meter
from metatrain import bundle, schema
from metatrain.awaiting import awaiting
from metatrain.baselines import baselines as baselines_of
from metatrain.core import InputError, Meta
from metatrain.evaluate import Score
from metatrain.first_look import check_data
from metatrain.isolation import isolated
from metatrain.plain import finite
from metatrain.recipe import Recipe
from metatrain.start import check_fit, verified
from metatrain.start import prepare as prepare_recipe
from metatrain.storage import Folder

log = logging.getLogger(__name__)


def train(
    config: RunConfig,
    address: str | None = None,
    resume: str | None = None,
    *,
    source: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> tuple[Folder, list[Score]]:
    """Train as configured and evaluate what was learned.

    resume: the folder to resume, or "auto": the newest run of that name and output.
    source: the recipe's file.
    tags: those of the run in MLflow, if it is one of several seeds.

    Returns the run's folder and its scores. The folder holds config.yaml, metrics.jsonl,
    checkpoints/, bundle/, figures/ and result.json, and the source of the user's own modules in
    code/. Raises InputError for what the user can fix, and Interrupted, after saving, if somebody
    asks it to stop.
    """
    with (
        isolated(config.workers.threads),
        interruptible() as should_stop,
        ExitStack() as claims,
    ):
        run = prepare(config, resume, claims=claims)
        learner, outer = run.learner, config.outer
        try:
            with ExitStack() as opened:
                pool = opened.enter_context(
                    open_pool(
                        config.workers, run.prepared, run.plan, address, should_stop=should_stop
                    )
                )
                if should_stop():
                    raise Interrupted
                tracker = opened.enter_context(recorded(run, tags, source))
                requests = Requests(pool, should_stop, config.workers.wait_s, config.seed)
                result, best = learn(run, pool, requests, tracker)
                version, meta = result.version, result.meta
                run.check_claims()
                recipe = recipe_after(run.prepared.recipe, version, best=best)
                bundle.save(str(run.folder / "bundle"), recipe, meta, run.code)
                measured = run.prepared._replace(recipe=recipe)
                snapshots = [result, *ensembles.earlier(recipe, checkpoints_of(run), result)]
                scores = evaluate_all(measured, requests, version, snapshots=snapshots)
                results.warn(scores)
                with awaiting("drawing pictures"):
                    results.leave(run.folder, run.prepared, meta, scores)
                run.folder.sync()
                for name in ("figures", "bundle", "result.json"):
                    tracker.artifact(run.folder / name)
                model = tracker.model(run.folder / "bundle", version)
                tracker.log(version, description.as_metrics(scores))
                for step, metrics in description.adaptation(scores).items():
                    tracker.log(step, metrics)
                load = results.how_to_load(run.prepared, run.folder, model)
                tracker.describe(description.note(scores[0].protocol, load, scores))
        except Exception as error:
            if isinstance(error, Interrupted):
                error.args = (f"stopped after {learner.version} of {outer.steps} outer steps",)
            # Whoever reports the error says how to continue.
            vars(error).update(run=str(run.folder), saved=_is_saved(run))
            raise
    return run.folder, scores


def _is_saved(run: Run) -> bool:
    """Whether a run has a checkpoint; if its storage does not answer, nobody knows of one."""
    try:
        return checkpoint.latest(checkpoints_of(run)) is not None
    except (InputError, OSError):
        return False


def learn(
    run: Run, pool: Pool, requests: Requests, tracker: Tracker, hooks: Sequence[loop.Hooks] = ()
) -> tuple[Snapshot, bool]:
    """Take a run's learner to its last step; leaves config.yaml, metrics.jsonl and checkpoints.

    hooks: what is told of each step and each checkpoint once the run has recorded it.

    Returns the parameters that are the result, which it publishes, and whether they are those of
    the best validation; else they are the last ones. A run without hooks keeps the best.
    """
    config, learner, outer = run.config, run.learner, run.config.outer
    root = checkpoints_of(run)
    remove_partials(run.folder)
    for path in record(run.folder, config, run.code):
        tracker.artifact(path)
    checkpoint.forget_after(root, learner.version)
    meter = Meter(DRIVER_S)

    def write_checkpoint(*, best: bool = False) -> None:
        run.check_claims()
        synced()  # first: lines up to the checkpoint are not written again
        keep = config.checkpoint.keep
        checkpoint.save(root, config, run.plan, learner, run.notes, keep, best=best)

    def measure(step: int, *, now: bool = False) -> None:
        driver = meter.read(now=now)
        if driver is not None:
            tracker.log(step, usage.metrics({"driver": driver, **requests.usage}))
            requests.usage.clear()

    line = ProgressLine(config.family.metric, learner.version, outer.steps, outer.tasks_per_step)
    with metrics_file(run.folder, learner.version) as (rows, write, synced), line.line:
        tracker.complete(rows)
        patience = Patience(config.validation.patience, config.family.metric, rows)

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            at_ms = write(step, metrics)
            tracker.log(step, finite(dict(metrics)), at_ms)
            measure(step)
            line(step, metrics)
            if patience.note(step, metrics) and not hooks:  # a trial's scheduler chooses
                write_checkpoint(best=True)
            for other in hooks:
                other.on_step(step, dict(metrics))

        def save() -> None:
            run.check_claims()
            run.folder.sync()  # first: a resumed run forgets what is newer than its checkpoint
            write_checkpoint()
            for other in hooks:
                other.save()

        loop.train(
            run.prepared,
            learner,
            pool,
            requests,
            loop.Hooks(on_step, save, patience.is_over),
            config.checkpoint.every_steps,
        )
    measure(learner.version, now=True)
    result, best = _result(run, patience)
    if result.averaged or result.version != learner.version:
        pool.publish(result)
    return result, best


def _result(run: Run, patience: Patience) -> tuple[Snapshot, bool]:
    """The parameters that are evaluated and bundled, and whether they are the best validated."""
    learner = run.learner
    last = Snapshot(learner.version, learner.scored(), averaged=learner.averages)
    if not run.config.takes_best or patience.best in (None, last.version):
        return last, run.config.takes_best and patience.best is not None
    uri = checkpoint.best(checkpoints_of(run), patience.best)
    try:
        best = checkpoint.load(uri).meta() if uri is not None else None
    except bundle.Damaged as error:
        log.warning("%s", error.what)
        best = None
    if best is None:
        log.warning(
            "the checkpoint of the best validation, after %d steps, is gone: the last parameters "
            "are evaluated",
            patience.best,
        )
        return last, False
    made, steps = learner.version, run.config.outer.steps
    early = "" if made == steps else f" of {steps}, as validation.patience says"
    log.info(
        "trained %d steps%s; the result is of the best validation, after step %d",
        *(made, early, patience.best),
    )
    return Snapshot(patience.best, best), True


def recipe_after(recipe: Recipe, version: int, *, best: bool = False) -> Recipe:
    """The recipe with the number of steps that were made, as a bundle records it.

    With a schedule, training it again has other rates: the run's config.yaml has those of the run.

    best: whether these steps were those of the best validation, which the bundle records, too.
    """
    outer = dataclasses.replace(recipe.outer, steps=version)
    of: Literal["best", "last"] | None = recipe.evaluation.of
    if best != recipe.takes_best or best:
        of = "best" if best else "last"
    evaluation = dataclasses.replace(recipe.evaluation, of=of)
    return dataclasses.replace(recipe, outer=outer, evaluation=evaluation)


def evaluate(
    uri: str,
    overrides: list[str],
    address: str | None = None,
    *,
    baselines: bool = False,
    pretrained: str | None = None,
) -> list[Score]:
    """Score a run's folder, checkpoint or bundle on the tasks of its evaluations.

    overrides: such as "evaluation.norm=support+1"; no key of the training.
    baselines: measure the network without meta-learning as well, and leave baselines.json.
    pretrained: the folder of a pre-training, for the baselines that start from one.
    """
    for item in overrides:
        if not item.strip().startswith(("evaluation", "workers", "family.checksum")):
            raise InputError(
                f"--set {item} would change what was trained",
                remedy="an evaluation takes keys of evaluation and workers, such as "
                "evaluation.family.ways=5",
            )
    config, meta, version = load_trained(uri, overrides)
    with ExitStack() as stack:
        stack.enter_context(isolated(config.workers.threads))
        prepared = prepare_recipe(config.recipe()).without_validation()
        check_data(prepared)
        check_fit(prepared, meta)
        result = Snapshot(version, meta)
        snapshots = [result, *ensembles.earlier(config, uri, result)]
        plan, _ = choose_plan(prepared, config.workers.gpus, config.workers.threads)
        should_stop = stack.enter_context(interruptible())
        others: Baselines = {}
        if baselines:
            asked = baselines_of(config.recipe(), pretrained)
            stack.enter_context(shared_ray(config.workers, config.recipe(), address))
            others = measured(asked, config, address, should_stop)
        pool = stack.enter_context(
            open_pool(config.workers, prepared, plan, address, should_stop=should_stop)
        )
        pool.publish(result)
        requests = Requests(pool, should_stop, config.workers.wait_s)
        scores = evaluate_all(prepared, requests, version, others, snapshots)
        results.warn(scores)
        if baselines:
            try:
                leave(uri, scores)
            except InputError as error:  # what took minutes is still printed
                log.warning("the baselines are not recorded in full: %s", error)
        return scores


def load_trained(uri: str, overrides: list[str]) -> tuple[RunConfig, Meta, int]:
    """The configuration, meta-parameters and number of outer steps of what was trained."""
    if Path(uri).is_file():
        raise InputError(
            f"{uri} is a file", remedy="give a run's folder, a checkpoint's or a bundle's"
        )
    asked = schema.apply_overrides({"evaluation": {}}, overrides)["evaluation"]
    if isinstance(asked, dict) and asked.get("of"):
        uri = checkpoint.chosen(uri, best=asked["of"] == "best")
    where = bundle.find(uri)
    tree: dict[str, Any]
    if where is not None and "recipe.yaml" in bundle.read_directory(where):
        recipe, meta = bundle.load(where)
        tree, version = schema.dump(recipe), recipe.outer.steps
    else:
        saved = checkpoint.load(uri)
        meta = verified(saved.config.recipe(), saved.meta().flat(), saved.uri)
        version, best = saved.version, checkpoint.is_best(saved.uri)
        tree = schema.dump(saved.config)
        tree["evaluation"]["of"] = recipe_after(
            saved.config.recipe(), version, best=best
        ).evaluation.of
    return schema.parse(RunConfig, schema.apply_overrides(tree, overrides), uri), meta, version
