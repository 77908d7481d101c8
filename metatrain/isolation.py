"""Keeps a run and the settings of the caller's process apart."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch


@contextmanager
def isolated(threads: int) -> Iterator[None]:
    """Compute in so many threads, with gradients, in float32, on the CPU; leave torch as it was.

    A call that names another device or type still gets it. Sums in several threads are added in
    another order: with a fixed number the bits do not depend on the caller's.
    """
    before = torch.get_num_threads(), torch.get_default_dtype()
    products = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    here = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    try:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.autocast("cuda", enabled=False),
            here,
        ):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_default_dtype(before[1])
        # Only if it changed: to set it at all would forbid torch's newer way to say it.
        if torch.backends.cuda.matmul.allow_tf32 != products[0]:
            torch.backends.cuda.matmul.allow_tf32 = products[0]
        if torch.backends.cudnn.allow_tf32 != products[1]:
            torch.backends.cudnn.allow_tf32 = products[1]


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave Python's and numpy's generators as the caller had them.

    Ray draws from them, and a sweep seeds them.
    """
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
