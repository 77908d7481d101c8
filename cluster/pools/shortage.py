"""Which workers a cluster, or this machine, has no room for."""

from __future__ import annotations

import os

import ray

from cluster.config import Workers
from cluster.jobs.job import JOB_CPUS, JOB_GPUS
from metatrain.core import InputError

HELD = {"CPU": JOB_CPUS, "GPU": JOB_GPUS}  # by a job's driver: the variables that say how many


def check_capacity(workers: Workers) -> None:
    """Raise InputError for workers that never fit: Ray would leave them pending for ever."""
    there = ray.cluster_resources()
    for kind, each in (("CPU", workers.cpus), ("GPU", workers.gpus)):
        if each * workers.min > there.get(kind, 0.0):
            raise InputError(
                f"workers.min = {workers.min} workers of {wanted(workers)} do not fit on this "
                f"machine, which has {resources(there)}",
                remedy="lower workers.min, workers.cpus or workers.gpus, or give --address",
            )


def wanted(workers: Workers) -> str:
    """What each worker asks for."""
    return f"{workers.cpus:g} CPUs and {workers.gpus:g} GPUs"


def resources(found: dict[str, float]) -> str:
    """What a cluster has."""
    return f"{found.get('CPU', 0):g} CPUs and {found.get('GPU', 0):g} GPUs"


def waiting(workers: Workers, alive: int) -> str:
    """How many workers the cluster has no room for, and what they wait for.

    Nothing if all have their place.
    """
    from ray.autoscaler.v2.sdk import (
        get_cluster_status,
    )  # nothing else says which actors have no place

    each = {kind: value for kind, value in (("CPU", workers.cpus), ("GPU", workers.gpus)) if value}
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    asked = [
        bundle
        for demand in status.resource_demands.ray_task_actor_demand
        for bundle in demand.bundles_by_count
    ]
    count = min(
        sum(bundle.count for bundle in asked if _same(bundle.bundle, each)), workers.max - alive
    )
    if count <= 0:
        return ""
    free = {
        usage.resource_name: usage.total - usage.used for usage in status.cluster_resource_usage
    }
    total = {usage.resource_name: usage.total for usage in status.cluster_resource_usage}
    kind = next(
        (kind for kind in ("GPU", "CPU") if kind in each and free.get(kind, 0.0) < each[kind]),
        "CPU",
    )
    value, held = each.get(kind, 0.0), float(os.environ.get(HELD[kind], 0.0))
    what = (f"a {kind}" if value == 1 else f"{value:g} {kind}s") + " each" * (count > 1)
    if 0 < count * value <= held:
        why = f", which the driver has: --driver-{kind.lower()}s 0 leaves it to workers"
    elif held:
        why = f"; the driver has {held:g} of the cluster's {total.get(kind, 0.0):g} {kind}s"
    else:
        why = (
            f"; {free.get(kind, 0.0):g} of the cluster's {total.get(kind, 0.0):g} {kind}s are free"
        )
    return (
        f"{alive} of {workers.max} workers started; {count} "
        f"{'waits' if count == 1 else 'wait'} for {what}{why}"
    )


def _same(bundle: dict[str, float], each: dict[str, float]) -> bool:
    """Whether they ask for the same; Ray counts in ten-thousandths."""
    return bundle.keys() == each.keys() and all(
        abs(bundle[kind] - value) < 1e-3 for kind, value in each.items()
    )
