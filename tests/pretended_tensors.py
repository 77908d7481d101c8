"""Tensors of a GPU that is only pretended: where they are, and what may be done with them."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITS = {  # operations for which the host waits
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "equal",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "_linalg_check_errors",
    "is_nonzero",
    "bincount",
    "histc",
    "multinomial",
}
# They take an index on the CPU as well.
INDEXED = {"index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index"}
OURS = ("/metatrain/", "/cluster/", "/benchmarks/", "/recipes/", "/tests/test_")


class CaptureError(RuntimeError):
    """torch.AcceleratorError for what is not permitted while a stream is captured."""


class Gpu:
    """The state of the pretended device, from one `pretended` to the next."""

    capturing: Any  # the graph that is recorded, or None
    waits: Counter[tuple[str, str]]  # by kind and line
    baked: list[str]  # what a replay would repeat without a word
    stuck: int  # captures that failed and left the allocator so
    stream: Any  # the current one; None: the default one
    captures: list[dict[str, Any]]  # how torch.cuda.graph was called
    replays: int
    kernels: int  # of the graphs that were replayed, and of what is computed without one
    strict: bool  # torch.cuda.set_sync_debug_mode("error")

    @classmethod
    def reset(cls) -> None:
        cls.capturing, cls.waits, cls.baked, cls.stuck, cls.stream = None, Counter(), [], 0, None
        cls.captures, cls.replays, cls.kernels, cls.strict = [], 0, 0, False


def unmarked() -> contextlib.ExitStack:
    """Compute on the CPU, in the midst of it all."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch._C.DisableTorchFunction())
    stack.enter_context(_disable_current_modes())
    return stack


def storage(t: Tensor) -> Any:
    while torch._C._functorch.is_functorch_wrapped_tensor(t):
        t = torch._C._functorch.get_unwrapped(t)
    with torch._C.DisableTorchFunction():
        return t.untyped_storage()


def on_gpu(t: Tensor) -> bool:
    return bool(getattr(storage(t), "pretended", False))


def is_pinned(t: Tensor) -> bool:
    return bool(getattr(storage(t), "pinned", False))


def mark(t: Tensor) -> Tensor:
    storage(t).pretended = True
    return t


def tensors(tree: Any) -> list[Tensor]:
    """Those in what an operation gets and returns; torch's own function takes longer."""
    if isinstance(tree, Tensor):
        return [tree]
    branches = tree.values() if isinstance(tree, dict) else tree
    if not isinstance(tree, dict | list | tuple):
        return []
    return [t for branch in branches for t in tensors(branch)]


def line() -> str:
    """The line of this project that is executed."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        other = "site-packages" in name or name.endswith("/workers/draws.py")
        if not other and any(part in name for part in OURS):
            return f"{'/'.join(Path(name).parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def wait(kind: str) -> None:
    """The host waits for the device."""
    Gpu.waits[kind, line()] += 1
    if Gpu.capturing is not None:
        Gpu.capturing.invalid = True
        raise CaptureError(
            f"CUDA error: operation not permitted when stream is capturing: {kind} at {line()}"
        )
    if Gpu.strict:
        raise RuntimeError(f"called a synchronizing CUDA operation: {kind} at {line()}")


PLACES: list[tuple[bool, bool]] = []  # of what has no arguments: on the device, and moved there


@contextlib.contextmanager
def made_on(gpu: bool, moving: bool = False) -> Iterator[None]:
    PLACES.append((gpu, moving))
    try:
        yield
    finally:
        PLACES.pop()


class Functions(TorchFunctionMode):
    """Where Python sees a tensor, and how it gets there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "__get__":
            there = on_gpu(first)
            seen = {"device": CUDA if there else CPU, "is_cuda": there, "is_cpu": not there}
            prop = func.__self__.__name__
            return seen[prop] if prop in seen else func(*args, **kwargs)
        if first is not None and name in ("cpu", "cuda", "to"):
            return moved(first, name, args[1:], kwargs)
        if first is not None and name == "pin_memory":
            return pinned(first.clone())
        if first is not None and name == "is_pinned":
            return is_pinned(first)
        if first is not None and on_gpu(first):
            if name == "get_device":
                return 0
            if name == "tolist":
                wait("tolist")
            if name in ("numpy", "__array__"):
                raise TypeError("can't convert cuda:0 device type tensor to numpy")
            if name == "one_hot":  # which looks at its values on a CPU only
                classes = args[1] if len(args) > 1 else kwargs["num_classes"]
                with made_on(True):
                    zeros = torch.zeros(*first.shape, classes, dtype=first.dtype)
                    return zeros.scatter_(-1, first.unsqueeze(-1), 1)
        if first is not None and name == "copy_" and on_gpu(first) != on_gpu(args[1]):
            host = args[1] if on_gpu(first) else first
            non_blocking = kwargs.get("non_blocking") or args[2:3] == (True,)
            if non_blocking and is_pinned(host):
                with made_on(on_gpu(first), moving=True):
                    return func(first, args[1])
        device, generator = kwargs.get("device"), kwargs.get("generator")
        there = None if device is None else torch.device(device).type == "cuda"
        is_there = there or (first is not None and on_gpu(first))
        if generator is not None and generator.device.type == "cpu" and is_there:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        if there:
            kwargs["device"] = CPU
        if kwargs.pop("pin_memory", False):
            return pinned(func(*args, **kwargs))
        if there and name in ("tensor", "as_tensor", "asarray"):
            wait("H2D copy")
        # What C++ makes on the way lies as the tensors do.
        place = there if there is not None else any(map(on_gpu, tensors((args, kwargs))))
        with made_on(place):
            found = func(*args, **kwargs)
        if there:
            tree_map_only(Tensor, mark, found)
        return found


def pinned(t: Tensor) -> Tensor:
    storage(t).pinned = True
    return t


def moved(t: Tensor, name: str, args: Any, kwargs: Any) -> Tensor:
    """What `to`, `cpu` and `cuda` return."""
    other = next((a for a in args if isinstance(a, Tensor)), None)
    device: torch.device | None
    if other is not None:
        device, dtype = (CUDA if on_gpu(other) else CPU), other.dtype
    elif name == "to":
        names = ("device", "dtype", "non_blocking", "memory_format")
        known = {k: v for k, v in kwargs.items() if k in names}
        device, dtype, *_ = torch._C._nn._parse_to(*args, **known)
    else:
        device, dtype = (CUDA if name == "cuda" else CPU), None
    gpu, dtype = on_gpu(t), dtype or t.dtype
    to = gpu if device is None else device.type == "cuda"
    copy = bool(kwargs.get("copy"))
    if gpu == to:
        with made_on(to):
            return Tensor.to(t, dtype=dtype, copy=copy) if copy or dtype != t.dtype else t
    if not (kwargs.get("non_blocking") and (not to or is_pinned(t))):
        wait("H2D copy" if to else "D2H copy")
    found: Tensor = _Move.apply(t, dtype, to)
    return found


class _Move(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, dtype: torch.dtype, to: bool) -> Tensor:
        with made_on(to, moving=True):
            return Tensor.to(t, dtype=dtype, copy=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dtype, ctx.to = inputs[0].dtype, inputs[2]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _Move.apply(g, ctx.dtype, not ctx.to), None, None


class Ops(TorchDispatchMode):
    """Every operation, those of backward passes as well."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; torch would import its compiler."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, given = kwargs or {}, tensors((args, kwargs))
        name, full = func._schema.name.removeprefix("aten::"), str(func)
        places = [on_gpu(t) for t in given]
        gpu = any(places) if given else bool(PLACES and PLACES[-1][0])
        if PLACES and PLACES[-1][1]:  # a copy from one place to the other
            if Gpu.capturing is not None:
                Gpu.baked.append(f"a copy between host and device at {line()}")
            out = func(*args, **kwargs)
            return tree_map_only(Tensor, mark, out) if PLACES[-1][0] else out
        if gpu and given and not all(places):
            if name == "copy_":
                wait("D2H copy" if places[1] else "H2D copy")
            elif name in INDEXED and places[0]:
                wait("H2D copy of an index")
            elif name in ("stack", "cat") or any(
                t.dim() for t, there in zip(given, places, strict=True) if not there
            ):
                raise RuntimeError(
                    "Expected all tensors to be on the same device: cuda:0 and cpu, "
                    f"{full} at {line()}"
                )
            elif Gpu.capturing is not None:
                Gpu.baked.append(f"a number on the CPU in {full} at {line()}")
        masks = any(t.dtype in (torch.bool, torch.uint8) for t in given[1:2] if t.dim())
        masks = masks and name in INDEXED and name != "index_put_"
        if gpu and (name in WAITS or full == "aten.repeat_interleave.Tensor" or masks):
            wait(name)
        if Gpu.capturing is not None and kwargs.get("generator") is not None:
            Gpu.baked.append(f"what {full} draws at {line()}")
        capture = Gpu.capturing if gpu else None
        out = func(*args, **kwargs) if capture is None else capture.record(func, args, kwargs)
        if gpu and name not in WAITS:
            Gpu.kernels += kernels(func, given, tensors(out)) if capture is None else 0
            tree_map_only(Tensor, mark, out)
        return out


def kernels(func: Any, given: list[Tensor], found: list[Tensor]) -> int:
    """How many kernels a GPU starts for an operation, about: none for a view."""
    name = func._schema.name.removeprefix("aten::")
    before = {t.untyped_storage()._cdata for t in given}
    fresh = any(t.untyped_storage()._cdata not in before for t in found)
    if name.startswith("empty") or not (fresh or func._schema.is_mutable):
        return 0
    if name in ("stack", "cat") and found[0].dim() > 4:  # one copy for each of the parts
        return len(given)
    return 1 + (name in ("slice_backward", "select_backward", "constant_pad_nd"))
