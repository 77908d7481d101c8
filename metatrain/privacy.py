"""The privacy that a private run has spent, by the accountant of Opacus (extra `privacy`)."""

from __future__ import annotations

import math
import warnings
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from metatrain.aggregation import Private
from metatrain.core import InputError

ORDERS = (*(1 + n / 10 for n in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)  # of Renyi


def check(private: Private) -> None:
    """Raise InputError if privacy is to be counted and the accountant is not installed."""
    if private.delta is not None and find_spec("opacus") is None:
        raise InputError(
            "outer.aggregate.delta counts the privacy spent, which needs the package opacus",
            remedy="install it with: pip install 'ray-metatrain[privacy]', or set "
            "outer.aggregate.delta to null",
        )


def epsilon(private: Private, tasks_per_step: int, steps: int) -> float:
    """The epsilon, at the aggregation's `delta`, that so many outer steps have spent.

    The unit is the owner of a task, added or left out. Each owner has at most one task in a step:
    in each step if `population` is null, else with the probability tasks_per_step / population
    (Mironov, Talwar, Zhang 2019, arXiv 1908.10530). It is a bound by Renyi differential privacy.
    """
    if not steps:
        return 0.0
    if private.delta is None or private.noise_multiplier == 0:
        return math.inf
    check(private)
    from opacus.accountants.analysis import rdp

    share = min(tasks_per_step / (private.population or tasks_per_step), 1.0)
    one = _one_step(private.noise_multiplier, share)
    with warnings.catch_warnings():  # that the best order is the first or the last: a bound still
        warnings.simplefilter("ignore")
        found, _ = rdp.get_privacy_spent(orders=ORDERS, rdp=one * steps, delta=private.delta)
    return max(float(found), 0.0)


@lru_cache(maxsize=16)
def _one_step(noise_multiplier: float, share: float) -> NDArray[np.float64]:
    """The Renyi divergence of one step, of each order."""
    from opacus.accountants.analysis import rdp

    return rdp.compute_rdp(q=share, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS)
