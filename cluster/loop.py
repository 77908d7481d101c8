"""The training loop. It knows a pool and a learner, and neither Ray, nor MLflow, nor the algorithm.

    request(tickets of steps v to v + max_staleness) --> pool --> updates of step v, in ticket order
          ^                                                           |
          +---- publish(version v + 1) <---- learner.apply(updates) <-+--> validate, report, save

If max_staleness is 0, workers compute all updates from the newest parameters. Which worker computes
a ticket then does not matter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from cluster.collector import Interrupted, Requests, WorkersLost
from cluster.evaluation import evaluate_for
from cluster.pools.pool import Pool, Snapshot
from metatrain.core import InputError, Purpose
from metatrain.learner import Diverged, Learner
from metatrain.start import TRAINING, Prepared

Metrics = dict[str, float]


class Hooks(NamedTuple):
    """What the loop calls."""

    on_step: Callable[[int, Metrics], None]  # after each outer step, with its metrics
    save: Callable[[], None]  # write a checkpoint of the learner as it is
    finished: Callable[[], bool] = lambda: False  # whether training ends before its last step


def train(
    prepared: Prepared,
    learner: Learner,
    pool: Pool,
    requests: Requests,
    hooks: Hooks,
    save_every: int,
) -> None:
    """Take the learner from its version to `outer.steps`, or until the hooks say that it is done.

    Whatever ends it early (Interrupted, Diverged, WorkersLost, InputError) leaves a checkpoint of
    the last whole step.
    """
    outer, validation = prepared.recipe.outer, prepared.recipe.validation
    training = prepared.settings[TRAINING]
    pool.publish(Snapshot(learner.version, learner.meta()))
    asked = learner.version  # steps below it have been asked for
    saved = learner.version
    try:
        if validation.every_steps and learner.version == 0:
            hooks.on_step(0, _validate(prepared, requests, 0))
        ended = learner.version >= outer.steps or hooks.finished()
        while not ended:
            started, busy_s, cpu_s, waited_s = (
                time.monotonic(),
                requests.busy_s,
                requests.cpu_s,
                requests.waited_s,
            )
            while asked < outer.steps and asked <= learner.version + outer.max_staleness:
                requests.ask(training.tickets(asked))
                asked += 1
            oldest = learner.version - outer.max_staleness
            tickets = training.tickets(learner.version)
            updates, version = requests.collect_updates(tickets, oldest)
            staleness = learner.version - version
            applied = learner.apply(updates)
            pool.publish(Snapshot(learner.version, learner.meta()))
            seconds = time.monotonic() - started
            metrics: Metrics = {
                **{f"train/{name}": value for name, value in applied.metrics.items()},
                "learner.gradient_norm": applied.gradient_norm,
                "learner.lr": applied.lr,
                **{f"algorithm.{name}": value for name, value in applied.learned.items()},
                "system/staleness": staleness,
                "system/tasks_per_s": outer.tasks_per_step / seconds,
                "system/worker_utilisation": (requests.busy_s - busy_s)
                / (seconds * max(pool.status().alive, 1)),
                "system/worker_cpu_ms_per_task": 1000
                * (requests.cpu_s - cpu_s)
                / outer.tasks_per_step,
                "system/driver_share": 1 - (requests.waited_s - waited_s) / seconds,
                "system/lost_tickets": requests.lost,
                "system/dropped_updates": requests.dropped,
            }
            last = learner.version == outer.steps
            if validation.every_steps and (learner.version % validation.every_steps == 0 or last):
                metrics |= _validate(prepared, requests, learner.version)
            hooks.on_step(learner.version, metrics)
            ended = last or hooks.finished()
            if learner.version % save_every == 0 or ended:
                hooks.save()
                saved = learner.version
    except (Interrupted, Diverged, WorkersLost, InputError):
        if learner.version > saved:
            hooks.save()
        raise


def _validate(prepared: Prepared, requests: Requests, version: int) -> Metrics:
    """The mean over the tasks that did not diverge, and how many did, if any."""
    score = evaluate_for(prepared, requests, Purpose("validate"), version)[0]
    name = f"val/{score.metric.name}"
    # Empty if adaptation has no step.
    before = {f"{name}_before": value for value in score.curve[:-1][:1]}
    diverged = {"val/diverged_tasks": float(score.diverged)} if score.diverged else {}
    # The main one first: MLflow's comparison of runs opens on the metric that came first.
    return {f"{name}_after": score.mean, f"{name}_after_ci95": score.ci95, **before, **diverged}
