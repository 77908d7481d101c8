"""For GPUs: exact products, and updates that are sent to it as one graph."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from cluster.workers.draws import Draw, Given, Noted, draw
from cluster.workers.staging import Staged
from cluster.workers.watched import SAME, Watched
from metatrain.core import Algorithm, Context, Phased, Update

log = logging.getLogger(__name__)

MOST_GRAPHS = 8  # shapes of tasks that are recorded; each graph keeps memory


def exact_products() -> None:
    """Have GPUs compute in float32 and in one order of sums.

    TF32 makes second-order gradients wrong by tens of percent. By `fp32_precision` it could come
    back from a flag above those that are older.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    backends: Any = torch.backends  # half typed
    for each in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn):
        each.fp32_precision = "ieee"
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


Step = Callable[[Any, Context], Update]
Fuse = Callable[[Any, Context], Step]  # a faster step for tasks and a context like these


class Replays:
    """An algorithm's updates, for each kind of tasks as a graph of its own, new in each phase.

    The kind of tasks is the shapes and types of their tensors. Graphs of an earlier phase are
    dropped, since outer steps do not return to it.
    """

    def __init__(
        self, step: Step, algorithm: Algorithm, device: torch.device, fuse: Fuse | None = None
    ) -> None:
        self._step, self._algorithm, self._fuse = step, algorithm, fuse
        self._recorder = Recorder(device)
        self._phase: Hashable = None
        self._graphs: dict[Hashable, Replayed] = {}

    def __call__(self, tasks: Any, context: Context) -> Update:
        same, phase = SAME, None
        if isinstance(self._algorithm, Phased):
            same, phase = SAME | {"step"}, self._algorithm.phase(context.ticket.step)
        if phase != self._phase:
            self._phase, self._graphs = phase, {}
            self._recorder.renew_memory()
        kind = tuple((leaf.shape, leaf.dtype) for leaf in tasks)
        if kind not in self._graphs:
            recorder = self._recorder if len(self._graphs) < MOST_GRAPHS else None
            self._graphs[kind] = Replayed(self._step, recorder, same, self._fuse)
        return self._graphs[kind](tasks, context)


class Replayed:
    """An update as one CUDA graph: instead of thousands of small kernels the GPU is sent one task.

    The first call is computed as it is. If it read of its ticket more than the `same`, or had
    random numbers that cannot be drawn before it, all others are computed so: a replay would repeat
    them. The second call is recorded, on memory of its own for the tasks and the random numbers;
    parameters must stay where they are. What a call returns lies where the next one writes.
    """

    def __init__(
        self,
        step: Step,
        recorder: Recorder | None,
        same: frozenset[str] = SAME,
        fuse: Fuse | None = None,
    ) -> None:
        """`recorder`: None if this update is not to be recorded."""
        self._step, self._same, self._recorder, self._fuse = step, same, recorder, fuse
        self._calls = 0
        self._replays = recorder is not None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._moves = True  # random numbers to the GPU when they are drawn
        self._draws: list[Draw] = []

    def __call__(self, tasks: Any, context: Context) -> Update:
        self._calls += 1
        if self._calls > 1 and self._replays and self._graph is None:
            self._record(tasks, context)
        if self._graph is None:
            return self._compute(tasks, context)
        for mine, given in zip(self._tasks, tasks, strict=True):
            mine.copy_(given)
        self._numbers.fill(draw(self._draws, context.generator))
        self._graph.replay()
        return self._update

    def _compute(self, tasks: Any, context: Context) -> Update:
        """The update as it is; the first call decides whether others are replayed."""
        if not self._moves:
            return self._step(tasks, context)
        watched = Watched(context, self._same)
        noted = Noted(watched.context.generator, tasks[0].device)
        try:
            with noted:
                update = self._step(tasks, watched.context)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            if not noted.draws:
                raise
            # It needs its random numbers on the host.
            self._moves = self._replays = False
            return self._step(tasks, context)
        if self._calls == 1:
            self._draws = noted.draws
            self._replays = self._replays and not watched.decides(self._draws)
        watched.leave()
        return update

    def _record(self, tasks: Any, context: Context) -> None:
        assert self._recorder is not None
        self._tasks = type(tasks)(*(leaf.clone() for leaf in tasks))
        watched = Watched(context, self._same)
        generator = watched.context.generator
        # Any numbers do: none is read but by the GPU.
        numbers = draw(self._draws, torch.Generator())
        self._numbers = Staged(numbers, tasks[0].device)
        self._numbers.fill(numbers)
        step = self._fused(context)

        def compute() -> Update:
            with Given(generator, self._draws, self._numbers.tensors) as given:
                update = step(self._tasks, watched.context)
            if watched.decides() or not given.all_taken():
                raise RuntimeError(
                    "it reads its ticket or draws random numbers otherwise than before"
                )
            return update

        recorded = self._recorder.record(compute)
        if recorded is None:
            self._replays = False
            del self._tasks, self._numbers
        else:
            self._graph, self._update = recorded

    def _fused(self, context: Context) -> Step:
        """The step that is recorded; one that draws is not compiled."""
        if self._fuse is None or self._draws:
            return self._step
        try:
            with _waits_refused():  # a compiler would take what the host reads for a constant
                self._step(self._tasks, context)
            return self._fuse(self._tasks, context)
        except Exception as error:  # a compiler raises what it likes
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            log.warning("updates cannot be compiled and are slower: %s", reason)
            return self._step


class Recorder:
    """Records computations as CUDA graphs, on one stream and in one pool of memory.

    Results stay where they are as long as their graph; what is computed on the way shares memory
    with other graphs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def renew_memory(self) -> None:
        """Take another pool for what is recorded from now on."""
        self._pool = None  # a pool whose graphs are all gone takes no other

    def record(self, compute: Callable[[], Update]) -> tuple[torch.cuda.CUDAGraph, Update] | None:
        """A graph, and where it leaves what it computes; None, with a warning, if there cannot be.

        Before, it is computed twice, so that libraries allocate what they need outside the graph,
        and that a wait for the GPU is found: within a graph it would leave the process unsound.
        """
        self._stream = self._stream or torch.cuda.Stream(self._device)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        before = torch.cuda.current_stream()
        self._stream.wait_stream(before)
        try:
            with torch.cuda.stream(self._stream):  # `torch.cuda.graph` may fail to leave it
                with _waits_refused():
                    for _ in range(2):
                        compute()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    update = compute()
            return graph, update
        except RuntimeError as error:  # too little memory is one, too
            log.warning(
                "updates cannot be recorded as a CUDA graph and are slower: %s",
                str(error).partition("\n")[0],
            )
            self._end_capture()
            return None
        finally:
            before.wait_stream(self._stream)

    def _end_capture(self) -> None:
        """Take back what a capture that failed has left: torch below 2.12 allocates in its pool."""
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
        self.renew_memory()


@contextmanager
def _waits_refused() -> Iterator[None]:
    """Have torch raise a RuntimeError if the host would wait for the GPU."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():  # that not every wait is found
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
