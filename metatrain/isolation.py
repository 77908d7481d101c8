"""What computing in a caller's process must neither depend on nor change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated(threads: int) -> Iterator[None]:
    """Compute in so many threads, with gradients and in full precision, and leave torch as the caller had it.

    Sums in several threads are added in another order: with a fixed number the bits do not depend on the caller's.
    """
    before = torch.get_num_threads()
    products = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Leave Python's and numpy's generators as the caller had them: Ray draws from them, and a sweep seeds them."""
    pythons, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(pythons)
        np.random.set_state(numpys)
