"""The progress line: one that changes on a terminal and in a notebook, several in a log."""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from cluster.jobs.job import stamp
from metatrain.awaiting import screen
from metatrain.metrics import Metric

PLAIN_EVERY_S = 10.0
NOTEBOOK_EVERY_S = 0.25


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return getattr(get_ipython(), "kernel", None) is not None


class Line:
    """One line that is replaced on a terminal and in a notebook; a log gets it now and then.

    Its last text stays.
    """

    def __init__(self, total: int, done: int) -> None:
        self._shown, self._every_s, self._text = 0.0, PLAIN_EVERY_S, ""
        self._live: Progress | None = None
        self._cell: Any = None  # the notebook's display, once there is something to show
        self._notebook = in_notebook()
        if self._notebook:
            self._every_s = NOTEBOOK_EVERY_S
        elif sys.stderr.isatty():
            said = TextColumn("{task.description}", markup=False)
            self._live = Progress(BarColumn(), said, console=screen(), transient=True)
            self._task = self._live.add_task("starting", total=total, completed=done)

    def __enter__(self) -> Line:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
            if self._text:
                print(self._text, file=sys.stderr, flush=True)
        elif self._notebook and self._text:
            self._display()

    def show(self, done: int, text: str, *, now: bool = False) -> None:
        """Show a text and how many of the total are done.

        now: print it to a log even if the last line was printed just before.
        """
        self._text = text
        if self._live:
            self._live.update(self._task, completed=done, description=text)
        elif now or time.monotonic() - self._shown >= self._every_s:
            self._shown = time.monotonic()
            if self._notebook:
                self._display()
            else:
                print(f"{stamp()}{text}", file=sys.stderr, flush=True)

    def _display(self) -> None:
        from IPython.display import display

        shown = {"text/plain": self._text, "text/html": f"<pre>{html.escape(self._text)}</pre>"}
        if self._cell is None:
            self._cell = display(shown, raw=True, display_id=True)
        else:
            self._cell.update(shown, raw=True)


class ProgressLine:
    """A run's step, loss, metric, tasks per second and remaining time."""

    def __init__(
        self, metric: Metric, first: int, steps: int, tasks_per_step: int, unit: str = "tasks"
    ) -> None:
        self._metric, self._steps, self._tasks, self._unit = metric, steps, tasks_per_step, unit
        self._first, self._started = first, time.monotonic()
        self._validation = ""
        self._validated = -1  # the step that the last validation is of
        self.line = Line(steps, first)

    def __call__(self, step: int, metrics: Mapping[str, float]) -> None:
        validated = metrics.get(f"val/{self._metric.name}_after")
        if validated is not None:
            self._validation = f"  val {self._metric.brief(validated)}"
            self._validated = step
        if "train/loss_after" in metrics:
            self.line.show(
                step,
                self._describe(step, metrics),
                now=validated is not None or step == self._steps,
            )

    def _describe(self, step: int, metrics: Mapping[str, float]) -> str:
        seconds = time.monotonic() - self._started
        steps_per_s = (step - self._first) / max(seconds, 1e-9)
        eta_s = (self._steps - step) / max(steps_per_s, 1e-9)
        name = f"train/{self._metric.name}_after"
        value = ""
        if name in metrics:
            value = f"  {self._metric.name} {self._metric.brief(metrics[name])}"
        earlier = self._validation and step != self._validated
        of = f" of step {self._validated}" if earlier else ""
        return (
            f"step {step}/{self._steps}  loss "
            f"{metrics['train/loss_after']:.4f}{value}{self._validation}{of}  "
            f"{steps_per_s * self._tasks:.1f} {self._unit}/s  ETA {duration(eta_s)}"
        )


def duration(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
