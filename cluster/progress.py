"""The progress line: live on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_EVERY_S = 10.0


class ProgressLine:
    """Shows step, loss, metric, tasks/s and the time to go."""

    def __init__(self, metric: str, first: int, steps: int, tasks_per_step: int) -> None:
        self._metric, self._steps, self._tasks = metric, steps, tasks_per_step
        self._first, self._started, self._shown = first, time.monotonic(), 0.0
        self._validation = ""
        self._live: Progress | None = None
        if sys.stderr.isatty():
            self._live = Progress(
                BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
            )
            self._task = self._live.add_task("starting", total=steps, completed=first)

    def __enter__(self) -> ProgressLine:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        validated = metrics.get(f"val/{self._metric}_after")
        if validated is not None:
            self._validation = f"  val {self._show(validated)}"
        if "train/loss_after" not in metrics:
            return
        text = self._describe(step, metrics)
        if self._live:
            self._live.update(self._task, completed=step, description=text)
        elif validated is not None or step == self._steps or time.monotonic() - self._shown >= PLAIN_EVERY_S:
            self._shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def _describe(self, step: int, metrics: Mapping[str, float]) -> str:
        seconds = time.monotonic() - self._started
        steps_per_s = (step - self._first) / max(seconds, 1e-9)
        eta_s = int((self._steps - step) / max(steps_per_s, 1e-9))
        name = f"train/{self._metric}_after"
        value = f"  {self._metric} {self._show(metrics[name])}" if name in metrics else ""
        return (
            f"step {step}/{self._steps}  loss {metrics['train/loss_after']:.4f}{value}{self._validation}  "
            f"{steps_per_s * self._tasks:.1f} tasks/s  ETA {eta_s // 60}:{eta_s % 60:02d}"
        )

    def _show(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self._metric == "accuracy" else f"{value:.3f}"
