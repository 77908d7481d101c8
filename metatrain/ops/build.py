"""C++ that is compiled on first use, kept in the cache, and called through ctypes.

It needs no headers of torch, so that it builds in seconds.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metatrain import files
from metatrain.awaiting import awaiting
from metatrain.storage import cache

FLAGS = [
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
FLAGS += ["-std=c++17", "-shared", "-fPIC"]
if platform.machine() in ("x86_64", "AMD64"):
    FLAGS.append("-mprefer-vector-width=512")
COMPILERS = ("c++", "g++", "clang++")
TIMEOUT_S = 300.0
KINDS = {torch.float32: "float", torch.float64: "double"}


class KernelsUnavailable(RuntimeError):
    """The kernels cannot compute this network, or cannot be built here: the message says why."""


@functools.cache
def library(name: str) -> ctypes.CDLL:
    """NAME.cpp of this folder as a library, which is built for this processor if it is not yet.

    Of several processes that ask at once one builds, and a reader sees a whole file or none. Only
    what nobody else can have written is loaded. Raises KernelsUnavailable if it cannot be built.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    try:
        folder = cache() / ".compiled"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not files.is_own(folder):
            raise KernelsUnavailable(
                f"others can write {folder}, and its code would run as yours: set METATRAIN_CACHE"
            )
        parts = [
            source.read_bytes(),
            source.with_name("vectors.h").read_bytes(),
            " ".join(FLAGS).encode(),
            _processor(),
        ]
        built = folder / f"{name}-{hashlib.sha256(bytes(1).join(parts)).hexdigest()[:16]}.so"
        if not _is_ours(built):
            with files.locked(folder / f"{name}.lock"):
                if not _is_ours(built):
                    with awaiting(f"compiling {source.name}, once for this machine"):
                        _compile(source, built)
        return ctypes.CDLL(str(built))
    except (OSError, ValueError) as error:
        raise KernelsUnavailable(f"{source.name} cannot be built and loaded ({error})") from error


def _is_ours(built: Path) -> bool:
    """Whether a library is there, as a file that nobody else can have written."""
    try:
        return stat.S_ISREG(built.lstat().st_mode) and files.is_own(built)
    except FileNotFoundError:
        return False


def call(
    name: str, function: str, kind: torch.dtype, numbers: Sequence[float], tensors: Sequence[Tensor]
) -> None:
    """Run a function of NAME.cpp for tensors of a type, which lie in memory as it wants them."""
    _function(name, f"{function}_{KINDS[kind]}", (*map(type, numbers), *[Tensor] * len(tensors)))(
        *numbers, *(t.data_ptr() for t in tensors)
    )


@functools.cache
def _function(name: str, symbol: str, arguments: tuple[type, ...]) -> Any:
    function = getattr(library(name), symbol)
    function.argtypes = [
        {int: ctypes.c_int64, float: ctypes.c_double, Tensor: ctypes.c_void_p}[kind]
        for kind in arguments
    ]
    function.restype = None
    return function


def _compile(source: Path, built: Path) -> None:
    compiler = (
        shlex.split(os.environ.get("CXX", ""))
        or [name for name in COMPILERS if shutil.which(name)][:1]
    )
    if not compiler:
        raise KernelsUnavailable(
            "there is no C++ compiler: install g++ or clang, or name one in CXX"
        )
    with tempfile.TemporaryDirectory(dir=built.parent) as temporary:
        half = Path(temporary) / built.name
        try:
            subprocess.run(
                [*compiler, *FLAGS, "-o", str(half), str(source)],
                capture_output=True,
                check=True,
                timeout=TIMEOUT_S,
            )
        except (OSError, subprocess.SubprocessError) as error:
            said = getattr(error, "stderr", None) or str(error).encode()
            reason = said.decode(errors="replace").strip().partition("\n")[0][:200]
            raise KernelsUnavailable(
                f"{' '.join(compiler)} does not build {source.name} ({reason})"
            ) from error
        half.chmod(0o755)  # whatever the umask
        half.replace(built)


def _processor() -> bytes:
    """What -march=native means here: a cache may be shared by machines that are not alike."""
    info = Path("/proc/cpuinfo")
    lines = info.read_bytes().splitlines() if info.exists() else []
    flags = [line for line in lines if line.startswith((b"flags", b"Features", b"model name"))]
    return b"\n".join(sorted(set(flags))) or platform.processor().encode()
