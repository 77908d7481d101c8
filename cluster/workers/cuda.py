"""What a GPU needs: exact products, and steps that are sent to it as one graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from cluster.workers.watched import Watched
from metatrain.core import Context, Update

log = logging.getLogger(__name__)


def exact_products() -> None:
    """Have GPUs multiply in float32: TF32 makes second-order gradients wrong by tens of percent."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


Step = Callable[[Any, Context], Update]


class Replayed:
    """An update as one CUDA graph: instead of thousands of small kernels the GPU is sent one thing
    to do.

    The first call is computed as it is. If it drew random numbers or read which step it is, so are
    all others: a replay would repeat them. The second one is recorded, on buffers of its own for
    the tasks; parameters must stay where they are. What a call returns lies where the next one
    writes.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._calls = 0
        self._replays = True
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tasks: Any, context: Context) -> Update:
        self._calls += 1
        if self._calls == 1:
            watched = Watched(context)
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
        watched = Watched(context)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            aside
        ):  # libraries choose and allocate what they need outside the graph
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
