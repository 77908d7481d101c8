"""Tools of the benchmarks: candidates that take turns, ratios, memory, dated results.

Machines are noisy and differ: what is compared is measured in the same process, in turns, and only
ratios are claims.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F

RESULTS = Path(__file__).parent / "results"


class Rounds(NamedTuple):
    """Seconds of each round."""

    wall_s: list[float]
    cpu_s: list[float]  # processor time of this process: neighbours disturb it less


def in_turns(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Rounds]:
    """Seconds of a call of each candidate, in each round; each round begins with another candidate.

    What is short is called several times a turn, one call after the other, so that a turn takes a
    quarter of a second at least. Two calls before all do not count.
    """
    found = {name: Rounds([], []) for name in candidates}
    calls = {}
    for name, run in candidates.items():
        run()
        started = time.perf_counter()
        run()
        calls[name] = max(1, round(0.25 / (time.perf_counter() - started)))
    for i in range(rounds):
        names = list(candidates)
        for name in names[i % len(names) :] + names[: i % len(names)]:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                candidates[name]()
            found[name].wall_s.append((time.perf_counter() - wall) / calls[name])
            found[name].cpu_s.append((time.process_time() - cpu) / calls[name])
    return found


def ratio(ours: list[float], theirs: list[float]) -> float:
    """How many times faster: the median over rounds of their seconds by ours."""
    return median(t / o for o, t in zip(ours, theirs, strict=True))


def gemm_peak() -> float:
    """GFLOP/s that large float32 products sustain, by the better of torch's two libraries.

    One library has matmul, the other convolutions, which are also products of blocks. The first
    may leave half of the machine unused on processors that are not Intel's.
    """
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    x = torch.randn(16, 128, 30, 30).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3).contiguous(memory_format=torch.channels_last)
    flops = {"matmul": 2 * 1536**3, "convolution": 2 * 16 * 28**2 * 128**2 * 9}
    times = in_turns({"matmul": lambda: a @ b, "convolution": lambda: F.conv2d(x, weight)}, 10)
    return max(flops[name] / min(t.wall_s) / 1e9 for name, t in times.items())


def peak_mb(run: Callable[[], object]) -> float:
    """Megabytes that a call after the first adds to this process's peak (Linux, glibc)."""

    def now(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back
    Path("/proc/self/clear_refs").write_text("5")
    before = now("VmRSS")
    run()
    return (now("VmHWM") - before) / 1024


def machine(*packages: str) -> str:
    """Processor, device, versions and commit, in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    cores = sum(line.startswith("processor") for line in lines)
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", *packages))
    commit = ""
    if shutil.which("git"):
        git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return (
        f"{' '.join(names) or platform.processor()}, {cores} cores{device}; "
        f"Python {platform.python_version()}, {versions}; {commit or 'no commit'}"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """As Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def keep(name: str, text: str, folder: Path = RESULTS) -> Path:
    """Write a result under its name and today's date, instead of an earlier one of the day."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{date.today().isoformat()}.md"
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    path.write_text(f"`{command}`, {date.today().isoformat()}\n\n{text}\n")
    return path


def write(name: str, text: str, folder: Path = RESULTS) -> None:
    """Print a result and keep it."""
    print(f"{text}\n\nwritten to {keep(name, text, folder)}")
