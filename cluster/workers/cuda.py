"""For GPUs: exact products, and steps that are sent to it as one graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

from cluster.workers.watched import SAME, Watched
from metatrain.core import Algorithm, Context, Phased, Update, count

log = logging.getLogger(__name__)


def exact_products() -> None:
    """Have GPUs multiply in float32: TF32 makes second-order gradients wrong by tens of percent."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


Step = Callable[[Any, Context], Update]


class Replays:
    """An algorithm's updates, each number of tasks as a graph of its own, new in each phase.

    Graphs of an earlier phase are dropped, since outer steps do not return to it.
    """

    def __init__(self, step: Step, algorithm: Algorithm) -> None:
        self._step, self._algorithm = step, algorithm
        self._phase: Hashable = None
        self._graphs: dict[int, Replayed] = {}  # by the number of tasks

    def __call__(self, tasks: Any, context: Context) -> Update:
        same, phase = SAME, None
        if isinstance(self._algorithm, Phased):
            same, phase = SAME | {"step"}, self._algorithm.phase(context.ticket.step)
        if phase != self._phase:
            self._phase, self._graphs = phase, {}
        if count(tasks) not in self._graphs:
            self._graphs[count(tasks)] = Replayed(self._step, same)
        return self._graphs[count(tasks)](tasks, context)


class Replayed:
    """An update as one CUDA graph: instead of thousands of small kernels the GPU is sent one task.

    The first call is computed as it is. If it drew random numbers or read of its ticket more than
    the `same`, so are all others: a replay would repeat them. The second call is recorded, on
    buffers of its own for the tasks; parameters must stay where they are. What a call returns lies
    where the next one writes.
    """

    def __init__(self, step: Step, same: frozenset[str] = SAME) -> None:
        self._step, self._same = step, same
        self._calls = 0
        self._replays = True
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tasks: Any, context: Context) -> Update:
        self._calls += 1
        if self._calls == 1:
            watched = Watched(context, self._same)
            update = self._step(tasks, watched.context)
            self._replays = not watched.decides()
            watched.leave()
            return update
        if not self._replays:
            return self._step(tasks, context)
        if self._graph is None:
            self._record(tasks, context)
        if self._graph is None:
            return self._step(tasks, context)
        for mine, given in zip(self._tasks, tasks, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._update

    def _record(self, tasks: Any, context: Context) -> None:
        self._tasks = type(tasks)(*(leaf.clone() for leaf in tasks))
        watched = Watched(context, self._same)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries allocate what they need outside the graph
            for _ in range(2):
                self._step(self._tasks, watched.context)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._update = self._step(self._tasks, watched.context)
            self._replays = not watched.decides()
            self._graph = graph if self._replays else None
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning(
                "updates cannot be recorded as a CUDA graph and are slower: %s",
                str(error).partition("\n")[0],
            )
            self._replays = False
