"""The resources that a sweep needs, and how long it would take."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import ray

from cluster.config import RunConfig
from cluster.jobs.job import JOB, JOB_CPUS, JOB_GPUS
from cluster.pools.ray_connection import connected
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.core import InputError, Ticket
from metatrain.recipe import own_code
from metatrain.start import prepare
from tuning.search import Search

START_S = 8.0  # for a trial's processes to start, about


def trial_resources(base: RunConfig) -> list[dict[str, float]]:
    """Return the resource bundles of a trial: one for its own process, one for each worker.

    Without workers the trial computes in its own process.
    """
    workers = base.workers
    each = {kind: value for kind, value in (("CPU", workers.cpus), ("GPU", workers.gpus)) if value}
    return [{}, *([each] * workers.max)] if workers.max else [each]


def at_once(search: Search) -> int:
    """Return how many trials fit on the connected cluster, at most as many as were asked for."""
    rooms = [_room(node) for node in ray.nodes() if node["Alive"]]
    most = min(search.sweep.at_once or search.trials, search.trials)
    for trial in range(most):
        for needs in trial_resources(search.base):
            fitting = (r for r in rooms if all(r.get(kind, 0) >= n for kind, n in needs.items()))
            room = next(fitting, None)
            if room is None:
                return trial
            for kind, need in needs.items():
                room[kind] -= need
    return most


def _room(node: dict[str, Any]) -> dict[str, float]:
    """Return what a node has, less what this process reserved there if it is a job."""
    room = dict(node["Resources"])
    if node["NodeID"] == ray.get_runtime_context().get_node_id():
        for kind, variable in (("CPU", JOB_CPUS), ("GPU", JOB_GPUS)):
            room[kind] = room.get(kind, 0.0) - float(os.environ.get(variable, 0.0))
    return room


def check_resources(search: Search) -> None:
    """Refuse trials that no cluster like this one can hold: Tune would wait for ever."""
    if at_once(search) == 0:
        rooms = [_room(node) for node in ray.nodes() if node["Alive"]]
        there = {kind: sum(room.get(kind, 0.0) for room in rooms) for kind in ("CPU", "GPU")}
        besides = " besides what --driver-cpus and --driver-gpus hold" * (JOB in os.environ)
        raise InputError(
            f"a trial needs {_resources(search.base)}, and this cluster has {there['CPU']:g} CPUs "
            f"and {there['GPU']:g} GPUs{besides}",
            remedy="set workers.max, cpus or gpus in the sweep's `set`, or give --address",
        )


def _resources(base: RunConfig) -> str:
    workers = base.workers
    each = f"{workers.cpus:g} CPUs and {workers.gpus:g} GPUs"
    return f"{workers.max} workers of {each}" if workers.max else each


class Estimate(NamedTuple):
    """What a sweep would take."""

    at_once: int
    resources: str  # of a trial
    validated: int  # tasks
    seconds: float
    measured: str


def estimate(search: Search, address: str | None) -> Estimate:
    """Estimate a sweep that makes all its steps: a ticket of each kind is measured here."""
    base = search.base
    recipe, workers, outer = base.recipe(), base.workers, base.outer
    prepared = prepare(recipe)
    plan, _ = choose_plan(prepared, 0, workers.threads)
    worker = Worker(prepared, plan)
    worker.load(0, worker.layout.flatten(prepared.meta))
    each: dict[str, float] = {}
    for ticket in (Ticket("update", "train", 0, 0), Ticket("validate", "val", 0, 0)):
        setting = prepared.settings[ticket.purpose]
        worker.compute(ticket)  # the first one is slower
        each[ticket.work] = worker.compute(ticket)[1].wall_s / min(
            setting.tasks_per_ticket, setting.tasks
        )
    with connected(address, own_code(base)):
        check_resources(search)
        together = at_once(search)
        cores = ray.cluster_resources().get("CPU", 1.0)
    validations = outer.steps // base.validation.every_steps + 1
    validated = search.trials * validations * base.validation.tasks
    busy = min(together * max(workers.max, 1), cores)
    learnt = search.trials * outer.steps * outer.tasks_per_step
    computing = (learnt * each["update"] + validated * each["validate"]) / busy
    seconds = computing + START_S * search.trials / together
    measured = (
        f"{1 / each['update']:.0f} tasks/s to learn from and {1 / each['validate']:.0f} to "
        "validate on one core here"
    )
    return Estimate(together, _resources(base), validated, seconds, measured)
