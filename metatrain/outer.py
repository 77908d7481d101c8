"""The keys of the outer loop: how updates become steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from metatrain import aggregation
from metatrain.aggregation import Mean, Median, Private, TrimmedMean
from metatrain.bounds import EXAMPLES, RATE, STEPS, TASKS, bounded, check_bounds
from metatrain.core import InputError, Penalty

Number = bool | int | float | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Outer:
    """The outer loop: how updates become steps.

    A step takes `tasks_per_step` tasks, computed in tickets of `tasks_per_ticket`. The number of
    workers does not change how sums are grouped.
    """

    __pydantic_config__ = {"extra": "forbid"}

    steps: int = bounded(least=1, most=STEPS)
    """Outer steps."""
    tasks_per_step: int = bounded(least=1, most=TASKS)
    """Tasks of an outer step."""
    tasks_per_ticket: int = bounded(least=1, most=EXAMPLES)
    """Tasks that a worker computes at once; it decides how sums are grouped."""
    optimizer: str = "Adam"
    """A class of `torch.optim`."""
    lr: float = bounded(least=0, most=RATE)
    """Outer learning rate."""
    options: dict[str, Number] = field(default_factory=dict)
    """Further options of the optimizer."""
    groups: dict[str, dict[str, Number]] = field(default_factory=dict)
    """Options for parameters that match a pattern, such as `"algorithm.*": {lr: 0.1}`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """`constant`, or to zero over `steps` as `linear` or `cosine`."""
    warmup_steps: int = bounded(0, least=0, most=STEPS)
    """Outer steps over which the rate rises linearly to what `schedule` says."""
    penalty: Penalty | None = None
    """Penalty on the size of the network's parameters, such as `{l1: 0.001}`; `null`: none."""
    clip_norm: float | None = bounded(None, above=0, most=RATE)
    """Bound of the meta-gradient's norm."""
    clip_value: float | None = bounded(None, above=0, most=RATE)
    """Bound of each of its entries."""
    average: float = bounded(0.0, least=0, most=0.999999)
    """Decay of a moving average of the parameters, which is scored and bundled; 0: none."""
    max_staleness: int = bounded(0, least=0, most=1000)
    """Outer steps by which an update may be old; above 0 two runs differ."""
    aggregate: aggregation.BuiltIn = field(default_factory=Mean)
    """`mean`, `median`, `trimmed_mean`, `norm_bounded` or `private`: how updates become one."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if isinstance(self.aggregate, Private):
            self._check_private(self.aggregate)
        self._check_robust()
        if self.average and self.max_staleness:
            expected = "0 with max_staleness, since workers then compute while others score"
            raise InputError("average", got=self.average, expected=expected)
        found = getattr(torch.optim, self.optimizer, None)
        if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
            raise InputError(
                "optimizer",
                got=self.optimizer,
                expected="a class of torch.optim such as Adam or SGD",
            )

    def _check_private(self, private: Private) -> None:
        if self.tasks_per_ticket != 1:
            raise InputError(
                "tasks_per_ticket",
                got=self.tasks_per_ticket,
                expected="1, as aggregate private bounds the influence of each task",
            )
        if private.population is not None and private.population < self.tasks_per_step:
            raise InputError(
                "aggregate.population",
                got=private.population,
                expected=f"at least tasks_per_step, {self.tasks_per_step}",
            )

    def _check_robust(self) -> None:
        """Refuse what would be a plain mean, because a step has too few tickets."""
        tickets, how = self.tickets(), self.aggregate
        leaves_out = isinstance(how, Median) or (isinstance(how, TrimmedMean) and how.trim > 0)
        if leaves_out and tickets < 3:
            raise InputError(
                "tasks_per_ticket",
                got=self.tasks_per_ticket,
                expected=f"so few that a step has 3 tickets, as aggregate {how.name} leaves out "
                f"none of {tickets}",
            )

    def tickets(self) -> int:
        """Tickets in a step."""
        return -(-self.tasks_per_step // self.tasks_per_ticket)

    def rate(self, version: int) -> float:
        """What part of `lr` the step from `version` to `version + 1` takes."""
        done = min(version / self.steps, 1.0)
        rises = (version + 1) / self.warmup_steps if version < self.warmup_steps else 1.0
        if self.schedule == "linear":
            return rises * (1.0 - done)
        if self.schedule == "cosine":
            return rises * 0.5 * (1.0 + math.cos(math.pi * done))
        return rises
