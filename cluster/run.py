"""One run, put together: configuration, folder, pool, learner, tracking; train, evaluate, leave the
results.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cluster import checkpoint, loop
from cluster.collector import Interrupted, Requests, WorkersLost
from cluster.config import RunConfig, Tracking
from cluster.evaluation import evaluate_work, protocol
from cluster.jobs.job import stamp
from cluster.output import choose, record, whole_lines
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Pool, Snapshot
from cluster.progress import ProgressLine
from cluster.tracking import description, provenance
from cluster.tracking.tracker import NoTracker, Tracker, start_tracker
from cluster.workers import usage
from cluster.workers.plan import Plan, choose_plan, device_of
from cluster.workers.usage import DRIVER_S, Meter
from metatrain import bundle, custom_source, figures, inference, schema
from metatrain.awaiting import awaiting
from metatrain.core import InputError, Meta, to_device
from metatrain.evaluate import Score
from metatrain.isolation import isolated
from metatrain.learner import Diverged, Learner
from metatrain.plain import finite, to_json
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe, own_classes, own_code
from metatrain.start import check_data, check_fit, initial_meta, warm
from metatrain.storage import Folder
from metatrain.tasks.fewshot import FewShot

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

log = logging.getLogger(__name__)

NORMALISED = {
    "transductive": "query images normalised together (transductive)",
    "support": "query images normalised with the support set",
    "support+1": "each query image normalised with the support set and itself (support+1)",
    "running": "query images normalised with training's moving averages (running)",
    "none": "after adaptation",
}


class Run(NamedTuple):
    """A run that is ready to learn: from the beginning, or from a checkpoint."""

    config: RunConfig
    plan: Plan
    folder: Folder
    learner: Learner
    notes: dict[str, str]  # what its checkpoints carry besides
    code: Mapping[str, bytes]  # the source of the user's own modules, as it was imported


def train(
    config: RunConfig,
    address: str | None = None,
    resume: str | None = None,
    *,
    source: str | None = None,
) -> tuple[Folder, list[Score]]:
    """Train as configured, or continue from `resume` (a folder, or "auto": the newest run of that
    name and output).

    `source` is the recipe's file, if there is one. Returns the run's folder and a score for each
    norm. The folder holds config.yaml, metrics.jsonl, checkpoints/, bundle/, figures/ and
    result.json, and the source of the user's own modules in code/. Raises InputError for what the
    user can mend and Interrupted, after saving, when asked to stop.
    """
    with isolated(config.workers.threads), interruptible() as should_stop:
        run = prepare(config, resume)
        recipe, learner, outer = run.config.recipe(), run.learner, config.outer
        try:
            with (
                pool_for(run.config, run.plan, address) as pool,
                tracked(run, source=source) as tracker,
            ):
                requests = Requests(pool, should_stop, config.workers.wait_s)
                learn(run, pool, requests, tracker)
                bundle.save(str(run.folder / "bundle"), recipe, learner.meta(), run.code)
                scores = evaluate_work(recipe, requests, "score", learner.version)
                _warn(scores)
                with awaiting("drawing pictures"):
                    _leave_results(run, scores)
                run.folder.sync()
                for name in ("figures", "bundle", "result.json"):
                    tracker.artifact(run.folder / name)
                model = tracker.model(run.folder / "bundle", learner.version)
                tracker.log(learner.version, description.as_metrics(scores))
                for step, metrics in description.adaptation(scores).items():
                    tracker.log(step, metrics)
                load = how_to_load(recipe, run.folder, model)
                tracker.describe(description.note(scores[0].protocol, load, scores))
        except (Interrupted, Diverged, WorkersLost) as error:
            if isinstance(error, Interrupted):
                error.args = (f"stopped after {learner.version} of {outer.steps} outer steps",)
            error.run, error.saved = (
                str(run.folder),
                checkpoint.latest(checkpoints_of(run)) is not None,
            )
            raise
    return run.folder, scores


def checkpoints_of(run: Run) -> str:
    """Where a run saves its checkpoints."""
    return run.config.checkpoint.uri or f"{run.folder}/checkpoints"


def prepare(config: RunConfig, resume: str | None = None, *, trial: bool = False) -> Run:
    """Check a configuration, choose its folder, and set up its learner, or that of the checkpoint
    to go on from.

    A sweep's `trial` may continue in its own folder from another trial's checkpoint.
    """
    code = custom_source.texts(own_classes(config.recipe()))
    config = dataclasses.replace(config, family=config.family.standalone())
    check_data(config.recipe())
    recipe = config.recipe()
    check_fit(recipe, initial_meta(recipe))
    measured = recipe.setting("score")
    norm = measured.family.bind(recipe.model, measured.norm, "reference").norm[0]
    if norm not in ("none", recipe.norm):
        log.info(
            "norm is %s in training and %s in the evaluation (evaluation.norm)", recipe.norm, norm
        )
    folder, saved = choose(config, resume, trial=trial)
    plan, reason = choose_plan(recipe, config.workers.gpus, config.workers.threads)
    if saved is not None and saved.plan.device == plan.device:
        plan, reason = (
            plan._replace(path=saved.plan.path),
            "as before",
        )  # whatever there was to choose from then
    # In process, updates and parameters never leave the device.
    device = device_of(plan) if config.workers.max == 0 else torch.device("cpu")
    if saved is not None:
        checkpoint.check_resumable(saved, config, plan)
    log.info("compute path %s: %s", plan.path, reason)
    start = initial_meta(recipe)
    learner = Learner(
        to_device(start if saved is not None else warm(recipe, start), device), config.outer
    )
    notes: dict[str, str] = {}
    if saved is not None:
        learner.load_state_dict(saved.tensors, saved.scalars)
        notes = dict(saved.notes)
        log.info("resuming %s after %d steps", saved.uri, learner.version)
    folder.create()
    return Run(config, plan, folder, learner, notes, code)


@contextmanager
def tracked(
    run: Run, tags: Mapping[str, str] | None = None, source: str | None = None
) -> Iterator[Tracker]:
    """Record a run in MLflow: as the one that its checkpoint names, or as the one with these tags,
    or as a new one.

    One with tags is part of something that has begun: where MLflow does not answer, it goes on
    without.
    """
    config = run.config
    run_id = None if tags else run.notes.get("mlflow_run_id")
    params = [
        (key, value)
        for key, value in schema.flatten(schema.dump(config))
        if key not in ("name", "output")
    ]
    tracker: Tracker = NoTracker()
    try:
        tracker = start_tracker(
            experiment_of(config),
            config.name if tags else provenance.dated(config.name),
            params,
            run_id,
            tags,
            run.learner.version,
            provenance.tags(str(run.folder), config.name, source),
            columns_of(config),
        )
    except InputError as error:
        if not tags:
            raise
        log.warning("%s; this run's metrics are in %s only", error, f"{run.folder}/metrics.jsonl")
    place = tracker.place()
    if place is not None:
        run.notes["mlflow_run_id"] = place.run_id
        (run.folder / "mlflow.json").write_text(json.dumps(place._asdict()))
        run.folder.sync()
    status = "FAILED"
    try:
        tracker.inputs(config.recipe())
        recipe = config.recipe()
        if not tags:
            text = description.note(
                protocol(recipe, "score", config.outer.steps), how_to_load(recipe, run.folder)
            )
            tracker.describe(text)
        yield tracker
        status = "FINISHED"
    except (Interrupted, SystemExit):  # Tune ends a trial by the latter
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)


def learn(
    run: Run, pool: Pool, requests: Requests, tracker: Tracker, also: Sequence[loop.Hooks] = ()
) -> None:
    """Take a run's learner to its last step; leaves config.yaml, metrics.jsonl and checkpoints.

    `also` is told of each step and each checkpoint once the run has recorded it.
    """
    config, learner, outer = run.config, run.learner, run.config.outer
    for path in record(run.folder, config, run.code):
        tracker.artifact(path)
    root = checkpoints_of(run)
    checkpoint.forget_after(root, learner.version)
    meter = Meter(DRIVER_S)

    def measure(step: int, *, now: bool = False) -> None:
        driver = meter.read(now=now)
        if driver is not None:
            tracker.log(step, usage.metrics({"driver": driver, **requests.usage}))
            requests.usage.clear()

    line = ProgressLine(config.family.metric, learner.version, outer.steps, outer.tasks_per_step)
    with _metrics_file(run.folder, learner.version) as write, line.line:

        def on_step(step: int, metrics: Mapping[str, float]) -> None:
            write(step, metrics)
            tracker.log(step, finite(dict(metrics)))
            measure(step)
            line(step, metrics)
            for hooks in also:
                hooks.on_step(step, dict(metrics))

        def save() -> None:
            run.folder.sync()  # first: a resumed run forgets what is newer than its checkpoint
            checkpoint.save(root, config, run.plan, learner, run.notes, config.checkpoint.keep)
            for hooks in also:
                hooks.save()

        loop.train(
            config.recipe(),
            learner,
            pool,
            requests,
            loop.Hooks(on_step, save),
            config.checkpoint.every_steps,
        )
    measure(learner.version, now=True)


def evaluate(uri: str, overrides: list[str], address: str | None = None) -> list[Score]:
    """Score a run's folder, checkpoint or bundle on its evaluation tasks, with overrides of what is
    no training's.
    """
    for item in overrides:
        if not item.strip().startswith(("evaluation", "workers", "family.checksum")):
            raise InputError(
                f"--set {item} would change what was trained",
                remedy=(
                    "an evaluation takes keys of "
                    "evaluation and workers, such "
                    "as evaluation.family.ways=5"
                ),
            )
    config, meta, version = load_trained(uri, overrides)
    with ExitStack() as stack:
        stack.enter_context(isolated(config.workers.threads))
        check_data(config.recipe())
        check_fit(config.recipe(), meta)
        plan, _ = choose_plan(config.recipe(), config.workers.gpus, config.workers.threads)
        should_stop = stack.enter_context(interruptible())
        pool = stack.enter_context(pool_for(config, plan, address))
        pool.publish(Snapshot(version, meta))
        requests = Requests(pool, should_stop, config.workers.wait_s)
        scores = evaluate_work(config.recipe(), requests, "score", version)
        _warn(scores)
        return scores


def load_trained(uri: str, overrides: list[str]) -> tuple[RunConfig, Meta, int]:
    """The configuration, meta-parameters and number of outer steps of what was trained."""
    if Path(uri).is_file():
        raise InputError(
            f"{uri} is a file", remedy="give a run's folder, a checkpoint's or a bundle's"
        )
    where = bundle.find(uri)
    tree: dict[str, Any]
    if where is not None and "recipe.yaml" in bundle.read_directory(where):
        recipe, meta = bundle.load(where)
        tree, version = schema.dump(recipe), recipe.outer.steps
    else:
        saved = checkpoint.load(uri)
        learner = Learner(initial_meta(saved.config.recipe()), saved.config.outer)
        learner.load_state_dict(saved.tensors, saved.scalars)
        tree, meta, version = schema.dump(saved.config), learner.meta(), learner.version
    return schema.parse(RunConfig, schema.apply_overrides(tree, overrides), uri), meta, version


@contextmanager
def pool_for(
    config: RunConfig, plan: Plan, address: str | None = None, group: PlacementGroup | None = None
) -> Iterator[Pool]:
    """The pool that the configuration asks for; Ray is imported only where it is used.

    Its workers start in a placement `group` where one is given: that of a sweep's trial.
    """
    pool: Pool
    if config.workers.max == 0:
        if address is not None:
            raise InputError(
                "workers.max is 0, which computes in this process",
                remedy=("leave out --address or set workers.max"),
            )
        pool = LocalPool(config.recipe(), plan)
        yield pool
        return
    try:
        from cluster.pools import ray_pool
        from cluster.pools.ray_connection import connected
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed",
            remedy=("pip install 'ray[default,tune,train]', or set workers.max to 0"),
        ) from error
    with connected(
        address, own_code(config.recipe(), whole=address is not None)
    ) as local:
        pool = ray_pool.RayPool(config.recipe(), plan, config.workers, local=local, group=group)
        try:
            yield pool
        finally:
            pool.close()


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop; the second one acts at once."""
    stop = False

    def ask(number: int, frame: object) -> None:
        nonlocal stop
        if stop:
            raise KeyboardInterrupt
        stop = True
        told = (
            f"{stamp()}stopping: it saves first"
            if stamp()
            else "\nstopping; a second Ctrl-C ends at once"
        )
        os.write(2, f"{told}\n".encode())  # print() might be what was interrupted

    if threading.current_thread() is not threading.main_thread():
        yield (
            lambda: False
        )  # signals belong to the main thread; whoever owns this one stops it otherwise
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _metrics_file(
    folder: Folder, version: int
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """metrics.jsonl, one line per outer step; a resumed run forgets the lines after its
    checkpoint.
    """
    path = folder / "metrics.jsonl"
    lines = list(whole_lines(path.read_bytes())) if path.exists() else []
    kept = [(step, line) for step, line in lines if step <= version]
    missing = set(range(1, version + 1)) - {step for step, _ in kept}
    if missing:
        log.warning("%s lacks %d of the %d outer steps before", path, len(missing), version)
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(f"{line}\n" for _, line in kept))
    temporary.replace(path)
    with path.open("a", buffering=1) as file:

        def write(step: int, metrics: Mapping[str, float]) -> None:
            file.write(to_json({"step": step, **metrics}) + "\n")

        yield write


def _leave_results(run: Run, scores: list[Score]) -> None:
    """result.json and the pictures."""
    folder, recipe = run.folder, run.config.recipe()
    meta = to_device(run.learner.meta(), torch.device("cpu"))
    result = {"scores": [score.record() for score in scores]}
    (folder / "result.json").write_text(to_json(result, indent=1))
    rows = read_metrics(folder / "metrics.jsonl")
    labels = [NORMALISED[score.norm] for score in scores]
    pictures = {
        "learning_curve": figures.learning_curve(
            rows, scores[0].metric, f"{recipe.name}: learning curve"
        ),
        "adaptation_curve": figures.adaptation_curve(
            list(zip(labels, scores, strict=True)), f"{recipe.name}: adaptation to held-out tasks"
        ),
    }
    if meta.algorithm:
        pictures["learned"] = figures.learned_parameters(
            rows, f"{recipe.name}: what the algorithm learned"
        )
    for name, figure in pictures.items():
        figures.save(figure, folder / "figures" / f"{name}.png")
    try:
        figures.save(inference.illustrate(recipe, meta), folder / "figures" / "example.png")
    except Exception as error:  # of a family of the user's: the results are worth more
        log.warning(
            "there is no picture of an example, as `picture` failed: %s: %s",
            type(error).__name__,
            error,
        )


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl, without what was no finite number."""
    rows = (json.loads(line) for _, line in whole_lines(path.read_bytes()))
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def experiment_of(config: RunConfig) -> Tracking:
    """Where a run is recorded, with the experiment that it gets if it names none."""
    name = config.tracking.experiment or provenance.experiment(config.family)
    return dataclasses.replace(config.tracking, experiment=name)


def columns_of(config: RunConfig) -> list[str]:
    """The metrics that tell runs apart, the result first."""
    metric = config.family.metric.name
    return [f"test/{metric}", f"test/{metric}_ci95", f"val/{metric}_after"]


def how_to_load(recipe: Recipe, folder: Folder, model: str = "") -> list[str]:
    """Code that puts to use what a run learned, of which MLflow may have a `model`."""
    setting, where = recipe.setting("score"), provenance.absolute(str(folder))
    problem = setting.family.bind(recipe.model, setting.norm, "reference")
    if not isinstance(problem, Supervised):
        return [f"bash\nmetatrain evaluate {shlex.quote(where)}"]
    python = f"python\nimport metatrain\n\nlearned = metatrain.load({where!r})"
    if model:
        python += f"\n\nimport mlflow\n\nmodel = mlflow.pyfunc.load_model({model!r})"
    few, new = ("few", "new") if isinstance(setting.family, FewShot) else ("few.csv", "new.csv")
    return [python, f"bash\nmetatrain adapt {shlex.quote(where)} --support {few} --query {new}"]


def _warn(scores: list[Score]) -> None:
    for sentence in filter(None, (score.warning() for score in scores)):
        log.warning("%s", sentence)
