"""A neighbour that rooms.py imports: a job gets both."""

from __future__ import annotations

import torch

from metatrain.core import Task

DEVIATION = 0.3  # of a thermometer, in standard deviations of the temperature


def other_thermometers(task: Task, generator: torch.Generator) -> Task:
    """Add the same number to all temperatures of a task, another one for each task."""
    off = DEVIATION * torch.randn(len(task.support_y), 1, 1, generator=generator)
    return task._replace(support_y=task.support_y + off, query_y=task.query_y + off)
