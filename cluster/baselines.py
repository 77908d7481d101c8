"""Baselines measured by a pool, and left in the run's folder and in MLflow."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from cluster.api.files import read_result, read_yaml
from cluster.api.files import scores as scores_in
from cluster.collector import Requests
from cluster.config import RunConfig, Tracking
from cluster.evaluation import Baseline as Measured
from cluster.evaluation import Baselines, collected
from cluster.pools.opening import open_pool
from cluster.pools.pool import Snapshot
from cluster.tracking.mlflow_tracker import MLflowTracker
from cluster.tracking.place import place_of
from cluster.tracking.sync import send_files, store_of
from cluster.workers.plan import choose_plan
from metatrain import protocol, schema, storage
from metatrain.baselines import Baseline
from metatrain.core import InputError, Scores, Work
from metatrain.evaluate import Score
from metatrain.metrics import Metric
from metatrain.plain import finite, to_json
from metatrain.start import Prepared

log = logging.getLogger(__name__)

FILE = "baselines.json"
Ask = Callable[[Prepared, Work, str], list[Scores]]  # the answers to all tickets of a work


def measured(
    baselines: Sequence[Baseline],
    config: RunConfig,
    address: str | None,
    should_stop: Callable[[], bool],
) -> Baselines:
    """Measure baselines on the tasks of the evaluation, by its first norm."""

    def ask(prepared: Prepared, work: Work, what: str) -> list[Scores]:
        workers = config.workers
        plan, _ = choose_plan(prepared, workers.gpus, workers.threads)
        with open_pool(workers, prepared, plan, address, should_stop=should_stop) as pool:
            pool.publish(Snapshot(0, prepared.meta))
            requests = Requests(pool, should_stop, workers.wait_s)
            return collected(prepared.setting(work), requests, 0, what)

    found: dict[str, Measured] = {}
    for baseline in baselines:
        found |= _measured(baseline, ask)
    return found


def _measured(baseline: Baseline, ask: Ask) -> dict[str, Measured]:
    words, chosen = baseline.name.replace("_", " "), ""
    steps: int | None = None
    if baseline.most_steps:
        steps, chosen = _best_steps(baseline, ask, words)
        baseline = baseline.after(steps)
    metric = baseline.prepared.setting("score").family.metric
    parts = ask(baseline.prepared, "score", f"evaluating the baseline {words}")
    curves = [_curve(part, metric) for part in parts]
    text = protocol.of_baseline(baseline.prepared, baseline.how, baseline.start + chosen)
    found = {baseline.name: Measured([curve[:, -1] for curve in curves], steps, text)}
    if baseline.untuned:
        text = protocol.of_baseline(baseline.prepared, "no adaptation", baseline.start)
        found[baseline.untuned] = Measured([curve[:, 0] for curve in curves], 0, text)
    return found


def _best_steps(baseline: Baseline, ask: Ask, words: str) -> tuple[int, str]:
    """The number of inner steps that is best on validation tasks, and a note on them.

    Without validation tasks, it is the most that there may be.
    """
    setting = baseline.prepared.setting("validate")
    try:
        setting.family.check("val")
    except InputError as error:
        log.info("baseline %s: %d steps, as %s", words, baseline.most_steps, error.what)
        return baseline.most_steps, ""
    parts = ask(baseline.prepared, "validate", f"choosing the steps of baseline {words}")
    metric = setting.family.metric
    means = torch.cat([_curve(part, metric) for part in parts])[:, 1:].nanmean(0)
    is_max = metric.better == "max"
    means = means.nan_to_num(-math.inf if is_max else math.inf)
    steps = parts[0].steps[1 + int(means.argmax() if is_max else means.argmin())]
    log.info("baseline %s: %d steps, best on %d validation tasks", words, steps, setting.tasks)
    return steps, f", inner_steps best on {setting.tasks} val tasks of seed {setting.seed}"


def _curve(part: Scores, metric: Metric) -> Tensor:
    """[T, steps]: the metric after each measured step, by the only norm."""
    return next(iter(part.curves.values()))[metric.name]


def leave(folder: str, scores: Sequence[Score]) -> None:
    """Write baselines.json into a run's folder, and log the baselines and the gains over them.

    Those of another evaluation than the run's are not logged beside its result.
    """
    if not storage.is_file(f"{folder}/result.json"):
        return  # a bundle, a checkpoint or a pre-training
    record = to_json({"scores": [score.record() for score in scores]}, indent=1)
    storage.write(f"{folder}/{FILE}", record.encode())
    if not storage.is_file(f"{folder}/mlflow.json"):
        return
    if scores_in(read_result(folder))[0].get("protocol") != scores[0].protocol:
        log.info("MLflow does not get these baselines: they are of another evaluation")
        return
    config, place = f"{folder}/config.yaml", place_of(folder)
    recorded = schema.parse(Tracking, read_yaml(config).get("tracking", {}), config)
    tracking = dataclasses.replace(recorded, uri=store_of(place))
    tracker = MLflowTracker(tracking, "", [], place.run_id, {})
    tracker.log(0, as_metrics(scores[0]))
    send_files(tracker, folder, [FILE])
    tracker.finish("FINISHED")


def as_metrics(score: Score) -> Mapping[str, float]:
    """The baselines of a score, and the gains over them, under their names in MLflow."""
    found = {f"test/{name}": value for name, value in score.baselines.items()}
    found |= {f"test/{name}_ci95": width for name, width in score.baseline_ci95.items()}
    for name, (gain, ci95) in score.differences.items():
        found |= {f"test/gain_over_{name}": gain, f"test/gain_over_{name}_ci95": ci95}
    return finite(found)
