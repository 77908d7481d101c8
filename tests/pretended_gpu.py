"""A GPU that is only pretended: it refuses and gets wrong what a real one would.

Its tensors are CPU tensors whose storage carries a mark. Python sees `cuda:0`. Operations on
tensors of both places are refused as CUDA refuses them. A wait of the host is counted, and refused
within a capture. A CUDA graph is the list of operations that were captured, done again on the very
tensors that they were captured on: what the host decided, drew or read stays as it was. A capture
that fails leaves what torch 2.11 leaves: an allocator that believes that it is under way
(pytorch#180395).

Kernels, streams, memory and cuDNN are not pretended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pretended_tensors import CUDA as CUDA
from pretended_tensors import CaptureError, Functions, Gpu, Ops, on_gpu, wait
from pretended_tensors import kernels as kernels
from pretended_tensors import tensors as tensors
from pretended_tensors import unmarked as unmarked
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Graph:
    """torch.cuda.CUDAGraph"""

    def __init__(self, keep_graph: bool = False) -> None:
        self.calls: list[Any] = []
        self.kernels = 0
        self.invalid = self.ready = False

    def record(self, func: Any, args: Any, kwargs: Any) -> Any:
        # A number on the CPU is a kernel's argument: it stays what it was.
        args, kwargs = tree_map_only(
            Tensor, lambda t: t if on_gpu(t) or t.dim() else t.clone(), (args, kwargs)
        )
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        self.kernels += kernels(func, tensors((args, kwargs)), tensors(out))
        return out

    def replay(self) -> None:
        assert self.ready, "Called CUDAGraph::replay without a preceding successful capture."
        Gpu.replays += 1
        Gpu.kernels += self.kernels
        with torch.no_grad(), unmarked():
            for func, args, kwargs, out in self.calls:
                before = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
                fresh = [t for t in tensors(out) if t.untyped_storage()._cdata not in before]
                if not fresh and not func._schema.is_mutable:
                    continue  # a view
                for old, new in zip(tensors(out), tensors(func(*args, **kwargs)), strict=True):
                    if old.untyped_storage()._cdata not in before:
                        old.copy_(new)

    def capture_begin(self, *_: Any, **__: Any) -> None:
        if Gpu.stuck:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")
        assert Gpu.stream is not None, "CUDA graphs must be captured on a non-default stream."
        Gpu.capturing = self

    def capture_end(self) -> None:
        Gpu.capturing = None
        if self.invalid:
            Gpu.stuck += 1
            raise CaptureError("CUDA error: operation failed due to an error during capture")
        self.ready = True


class Stream:
    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, other: Any) -> None: ...

    def synchronize(self) -> None:
        wait("synchronize")


class Event(Stream):
    def record(self, *_: Any) -> None: ...

    def query(self) -> bool:
        return True


DEFAULT = Stream()


@contextlib.contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    before, Gpu.stream = Gpu.stream, None if stream is DEFAULT else stream
    try:
        yield
    finally:
        Gpu.stream = before


class graph:  # noqa: N801
    """torch.cuda.graph of 2.11: if its exit fails, the stream stays as it is."""

    own = Stream()

    def __init__(self, cuda_graph: Graph, pool: Any = None, stream: Any = None, **_: Any) -> None:
        self.graph, self.stream = cuda_graph, stream or graph.own
        Gpu.captures.append({"pool": pool, "stream": stream})

    def __enter__(self) -> None:
        self.before, Gpu.stream = Gpu.stream, self.stream
        self.graph.capture_begin()

    def __exit__(self, *_: Any) -> None:
        self.graph.capture_end()
        Gpu.stream = self.before


def _end_allocate_to_pool(device: int, pool: Any) -> None:
    if not Gpu.stuck:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
    Gpu.stuck = 0


def _fakes() -> dict[str, Callable[..., Any] | type]:
    return {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": graph,
        "graph_pool_handle": lambda: object(),
        "current_stream": lambda *_: Gpu.stream or DEFAULT,
        "default_stream": lambda *_: DEFAULT,
        "stream": on_stream,
        "synchronize": lambda *_: wait("synchronize"),
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: Gpu.capturing is not None,
        "manual_seed_all": lambda *_: None,
        "set_stream": lambda s: setattr(Gpu, "stream", None if s is DEFAULT else s),
        "set_sync_debug_mode": lambda mode: setattr(Gpu, "strict", mode in ("error", 2)),
        "get_sync_debug_mode": lambda: 2 * Gpu.strict,
        "get_device_name": lambda *_: "pretended",
        "reset_peak_memory_stats": lambda: None,
        "max_memory_reserved": lambda: 2**30,
        "memory_reserved": lambda: 0,
        "mem_get_info": lambda: (2**30, 2**30),
    }


@contextlib.contextmanager
def pretended() -> Iterator[type[Gpu]]:
    """As if torch saw a GPU."""

    def healthy(self: Any) -> None:
        captured = Gpu.capturing is not None
        assert not captured or all(group["capturable"] for group in self.param_groups)

    Gpu.reset()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _fakes().items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", _end_allocate_to_pool, raising=False)
        for name in (
            "_cuda_graph_capture_health_check",
            "_accelerator_graph_capture_health_check",
        ):
            if hasattr(torch.optim.Optimizer, name):
                patch.setattr(torch.optim.Optimizer, name, healthy)
        with Functions(), Ops():
            yield Gpu
