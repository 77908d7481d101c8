"""The pool that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cluster.config import Workers
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Pool
from cluster.workers.plan import Plan
from metatrain.core import InputError
from metatrain.recipe import Recipe, own_code
from metatrain.start import Prepared

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup


@contextmanager
def open_pool(
    workers: Workers,
    prepared: Prepared,
    plan: Plan,
    address: str | None = None,
    group: PlacementGroup | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Pool]:
    """Start the workers that are asked for; Ray is imported only if there are any.

    address: the Ray cluster to join.
    group: the placement group in which they start, such as that of a sweep's trial.
    should_stop: whether to wait for no more workers, as nobody will ask them anything.
    """
    pool: Pool
    if workers.max == 0:
        if address is not None:
            raise InputError(
                "workers.max is 0, which computes in this process",
                remedy="leave out --address or set workers.max",
            )
        pool = LocalPool(prepared, plan)
        yield pool
        return
    try:
        from cluster.pools import ray_pool
        from cluster.pools.ray_connection import connected
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed",
            remedy="pip install 'ray[default,tune,train]', or set workers.max to 0",
        ) from error
    with connected(address, own_code(prepared.recipe, whole=address is not None)) as local:
        pool = ray_pool.RayPool(
            prepared, plan, workers, local=local, group=group, should_stop=should_stop
        )
        try:
            yield pool
        finally:
            pool.close()


@contextmanager
def shared_ray(workers: Workers, recipe: Recipe, address: str | None) -> Iterator[None]:
    """Have one Ray for all pools that are opened in the context, if they need any."""
    if workers.max == 0:
        yield
        return
    try:
        from cluster.pools.ray_connection import connected
        from cluster.pools.shortage import check_capacity
    except ModuleNotFoundError:  # the first pool says how to install it
        yield
        return
    with connected(address, own_code(recipe, whole=address is not None)) as local:
        if local:
            check_capacity(workers)
        yield
