"""The actor of a pool: a Worker, and numpy arrays on the way in and out."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import psutil
import ray
import torch
from numpy.typing import NDArray

from cluster.jobs.places import absent
from cluster.pools import wire
from cluster.pools.ray_connection import this_node
from cluster.workers.plan import Plan
from cluster.workers.usage import WORKER_S, Meter
from cluster.workers.worker import Worker
from metatrain import schema
from metatrain.core import InputError, Ticket
from metatrain.recipe import Recipe
from metatrain.start import prepare


class Here(NamedTuple):
    """Where a worker is, and what keeps it from working."""

    refusal: str | None  # None if it can work
    node: str  # Ray's id
    place: str  # the node, as people tell it from others
    process: int


class RayWorker:
    """A Worker that another process asks; `ready` says what it could not start for."""

    def __init__(self, recipe: schema.Tree, plan: Plan, shared: bool = False) -> None:
        """`shared`: other machines are in the cluster, and may have what this one lacks."""
        self.refusal: str | None = None
        self._shared = shared
        self._pins = plan.device == "cuda"
        self._meter = Meter(WORKER_S, at_once=True)
        try:
            self._worker = Worker(
                prepare(schema.parse(Recipe, recipe, "the driver's recipe")), plan
            )
        except (InputError, OSError, ImportError) as error:
            self.refusal = (absent(error, this_node()) if shared else None) or str(error)

    def ready(self) -> Here:
        """Where this worker is, and why it cannot work, if it cannot."""
        node = ray.get_runtime_context().get_node_id()
        return Here(self.refusal, node, this_node(), os.getpid())

    def draw(self, ticket: Ticket) -> None:
        with suppress(Exception):  # `compute` draws them again, and its error is collected
            self._worker.draw(ticket)

    def compute(self, ticket: Ticket, key: int, flat: NDArray[np.float32]) -> wire.Answer:
        if key != self._worker.version:
            # What arrives may be read-only, and no memory that a GPU copies from by itself.
            own = torch.empty(len(flat), pin_memory=self._pins)
            own.numpy()[:] = flat
            self._worker.load(key, own)
        try:
            result, spent = self._worker.compute(ticket, keep=False)  # it is packed at once
        except Exception as error:  # of a family of the user's also
            lacks = absent(error, this_node()) if self._shared else None
            if lacks is None:
                raise
            raise InputError(lacks) from error
        return wire.packed(result, spent._replace(usage=self._meter.read()), self._worker.layout)


def end(process: int) -> None:
    """End a worker's process on this node; one that hangs does not end by itself."""
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(process)
        if found.cmdline()[0].startswith("ray::"):  # else another process has its number now
            found.kill()
