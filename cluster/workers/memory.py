"""A process's memory: kept between tickets, measured, and what this machine has left."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch


def keep_freed_memory() -> None:
    """Give back what is free at the heap's end only from a gigabyte on.

    To fetch pages again can take a tenth of the time. If the environment configures glibc's
    allocator, that holds.
    """
    if not any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        # M_MMAP_THRESHOLD, above which a block is no part of the heap
        _glibc("mallopt", -3, 32 * 2**20)
        _glibc("mallopt", -1, 2**30)  # M_TRIM_THRESHOLD


def peak(device: str, run: Callable[[], object]) -> float:
    """Bytes that this process, or its GPU, holds at most while it runs; 0 if nobody says."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        return float(torch.cuda.max_memory_reserved())
    _glibc("malloc_trim", 0)  # what the process keeps without using it
    mark = Path("/proc/self/clear_refs")
    if mark.exists():
        mark.write_text("5")  # forget the highest so far
    run()
    return _kilobytes(Path("/proc/self/status"), "VmHWM") or 0.0


def available(device: str) -> float | None:
    """Bytes that are free on the GPU, or on this machine, if the operating system says."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved())
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _glibc(function: str, *numbers: int) -> None:
    """Call a function of glibc's allocator; elsewhere nothing happens."""
    found = getattr(ctypes.CDLL(None), function, None)
    if found is not None:
        found(*numbers)


def _kilobytes(path: Path, key: str) -> float | None:
    lines = path.read_text().splitlines() if path.exists() else []
    return next((1024 * float(line.split()[1]) for line in lines if line.startswith(key)), None)
