"""The training loop. It knows a pool and a learner, and neither Ray, nor MLflow, nor the algorithm.

    request(tickets of steps v to v + max_staleness) --> pool --> updates of step v, in ticket order
          ^                                                           |
          +---- publish(version v + 1) <---- learner.apply(updates) <-+--> validate, report, save

If max_staleness is 0, workers compute all updates from the newest parameters. Which worker computes
a ticket then does not matter.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from cluster.collector import Requests
from cluster.evaluation import evaluate_for
from cluster.pools.pool import Pool, Snapshot
from metatrain.core import Purpose, Update
from metatrain.learner import Applied, Diverged, Learner
from metatrain.start import TRAINING, Prepared

log = logging.getLogger(__name__)

Metrics = dict[str, float]
MOST_UNSOUND = 3  # steps in a row with updates that are not finite: the next will have some, too
MOST_AHEAD = 4  # steps that a GPU may not have made when the next one is asked for


class Hooks(NamedTuple):
    """What the loop calls."""

    on_step: Callable[[int, Metrics], None]  # after each outer step, with its metrics
    save: Callable[[], None]  # write a checkpoint of the learner as it is
    finished: Callable[[], bool] = lambda: False  # whether training ends before its last step


class Step(NamedTuple):
    """An outer step whose numbers may not have come yet."""

    version: int  # outer steps made with it
    applied: Callable[[], Applied]
    updates: list[str]  # each update's ticket and worker
    metrics: Metrics


def train(
    prepared: Prepared,
    learner: Learner,
    pool: Pool,
    requests: Requests,
    hooks: Hooks,
    save_every: int,
) -> None:
    """Take the learner from its version to `outer.steps`, or until the hooks say that it is done.

    Whatever ends it early leaves a checkpoint of the last whole step.

    Raises Interrupted, Diverged or WorkersLost.
    """
    outer, validation = prepared.recipe.outer, prepared.recipe.validation
    training = prepared.settings[TRAINING]
    pool.publish(Snapshot(learner.version, learner.meta()))
    asked = learner.version  # steps below it have been asked for
    saved, unsound = learner.version, 0
    steps: deque[Step] = deque()  # those that are not reported

    def report(left: int) -> None:
        """Report the oldest steps until so many are left."""
        nonlocal unsound
        while len(steps) > left:
            step = steps.popleft()
            applied = step.applied()
            unsound = unsound + 1 if applied.left_out else 0
            last = step.version == outer.steps
            _report_left_out(applied.left_out, step.updates, unsound, last)
            metrics = {
                **{f"train/{name}": value for name, value in applied.metrics.items()},
                "learner.gradient_norm": applied.gradient_norm,
                "learner.lr": applied.lr,
                **{f"algorithm.{name}": value for name, value in applied.learned.items()},
                **step.metrics,
                "system/left_out_updates": len(applied.left_out),
            }
            if validates(step.version):
                metrics |= _validate(prepared, requests, pool, learner, step.version)
            hooks.on_step(step.version, metrics)

    def validates(version: int) -> bool:
        every = validation.every_steps
        return every > 0 and (version % every == 0 or version == outer.steps)

    def save() -> None:
        nonlocal saved
        if learner.version > saved:
            saved = learner.version  # before: what fails is not tried again on the way out
            hooks.save()

    requests.on_danger = save
    try:
        if validation.every_steps and learner.version == 0:
            hooks.on_step(0, _validate(prepared, requests, pool, learner, 0))
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
            found = requests.collect(tickets, oldest)
            report(MOST_AHEAD)
            staleness = learner.version - min(c.version for c in found)
            applied = learner.take([c.result for c in found if isinstance(c.result, Update)])
            pool.publish(Snapshot(learner.version, learner.meta()))
            seconds = time.monotonic() - started
            metrics: Metrics = {
                "system/staleness": staleness,
                "system/tasks_per_s": outer.tasks_per_step / seconds,
                "system/worker_utilisation": (requests.busy_s - busy_s)
                / (seconds * max(pool.status().alive, 1)),
                "system/worker_cpu_ms_per_task": 1000
                * (requests.cpu_s - cpu_s)
                / outer.tasks_per_step,
                "system/driver_share": 1 - (requests.waited_s - waited_s) / seconds,
                "system/workers": pool.status().alive,
                "system/lost_tickets": requests.lost,
                "system/repeated_tickets": requests.repeated,
                "system/replaced_workers": requests.replaced,
                "system/dropped_updates": requests.dropped,
            }
            names = [f"{c.ticket} by {c.worker}" for c in found]
            steps.append(Step(learner.version, applied, names, metrics))
            last, due = learner.version == outer.steps, learner.version % save_every == 0
            if last or due or validates(learner.version) or not learner.defers:
                report(0)
            ended = last or hooks.finished()
            if due or ended:
                report(0)
                save()
    except Exception:
        while steps:  # a checkpoint's steps have their lines
            with suppress(Exception):  # what failed may fail again
                report(len(steps) - 1)
        save()
        raise
    finally:
        requests.on_danger = lambda: None


def _report_left_out(
    left_out: Sequence[int], updates: Sequence[str], in_a_row: int, is_last: bool
) -> None:
    """Name the tickets whose updates are not finite.

    Raises Diverged if the last steps had some, each of them, or if the run's last step had no
    other.
    """
    if not left_out:
        return
    names = [updates[i] for i in left_out]
    log.warning("updates that are not finite are left out: %s", "; ".join(names))
    if in_a_row >= MOST_UNSOUND or (is_last and len(left_out) == len(updates)):
        what = "the last outer step has only updates"
        if in_a_row >= MOST_UNSOUND:
            what = f"{in_a_row} outer steps in a row have updates"
        raise Diverged(
            f"{what} that are not finite, such as that of {names[-1]}: lower algorithm.inner_lr or "
            "outer.lr"
        )


def _validate(
    prepared: Prepared, requests: Requests, pool: Pool, learner: Learner, version: int
) -> Metrics:
    """The mean over the tasks that did not diverge, and how many did, if any."""
    if learner.averages:
        pool.publish(Snapshot(learner.version, learner.scored(), averaged=True))
    score = evaluate_for(prepared, requests, Purpose("validate"), version)[0]
    if learner.averages:
        pool.publish(Snapshot(learner.version, learner.meta()))
    name = f"val/{score.metric.name}"
    # Empty if adaptation has no step.
    before = {f"{name}_before": value for value in score.curve[:-1][:1]}
    diverged = {"val/diverged_tasks": float(score.diverged)} if score.diverged else {}
    # The main one first: MLflow's comparison of runs opens on the metric that came first.
    return {f"{name}_after": score.mean, f"{name}_after_ci95": score.ci95, **before, **diverged}
