"""How tickets are computed: on which path, by which device, decided once by the driver."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cluster.workers.cuda import exact_products
from metatrain.core import ComputePath, InputError
from metatrain.first_look import check_sample
from metatrain.ops.build import KernelsUnavailable
from metatrain.start import TRAINING, Prepared


class Plan(NamedTuple):
    """How tickets are computed: decided once by the driver, and part of a checkpoint."""

    path: ComputePath
    device: str
    threads: int
    compile: bool = False  # updates, on a GPU


def choose_plan(prepared: Prepared, gpus: float, threads: int) -> tuple[Plan, str]:
    """The compute path for a recipe, and why."""
    plan, why = _choose(prepared, gpus, threads)
    if plan.device == "cpu" and torch.cuda.is_available():
        why += "; this machine has a GPU that is not used: set workers.gpus to 1"
    return plan, why


def _choose(prepared: Prepared, gpus: float, threads: int) -> tuple[Plan, str]:
    device = "cuda" if gpus > 0 else "cpu"
    start = prepared.meta
    if gpus > 0 or all(p.dim() <= 2 for p in (start.model | start.frozen).values()):
        try:
            check_sample(prepared, TRAINING, "batched")
        except InputError as reason:  # on the reference path it was not refused
            why = (
                "one task after the other: this network cannot be computed for several tasks "
                f"at once ({reason})"
            )
            return Plan("reference", device, threads), why
        together = "a GPU computes" if gpus > 0 else "a CPU computes a small net faster for"
        return Plan("batched", device, threads), f"{together} a ticket's tasks together"
    try:
        prepared.bind(TRAINING, "fused")
    except KernelsUnavailable as reason:
        slower = (
            "one task after the other; the fused kernels, which take about half the time, "
            f"cannot be used: {reason}"
        )
        return Plan("reference", "cpu", threads), slower
    return Plan(
        "fused", "cpu", threads
    ), "a CPU computes convolutions faster one task after the other, fused"


def device_of(plan: Plan) -> torch.device:
    """Where it computes: on a GPU from now on by exact products; InputError if it is not here."""
    if plan.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "workers.gpus asks for a GPU, but torch sees none here", remedy="set workers.gpus to 0"
        )
    if plan.device == "cuda":
        exact_products()
    return torch.device(plan.device)
