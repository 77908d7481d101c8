"""A family in a folder of your own: it imports its neighbour helpers.py and reads rooms.csv."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from helpers import other_thermometers

from metatrain.core import Split, Task
from metatrain.tasks.table import Table


@dataclass(frozen=True, kw_only=True)
class Rooms(Table):
    """A table, but in training each task is read by a thermometer that is some degrees off."""

    name: str = "rooms:Rooms"

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        task = super().sample(generator, count, split)
        return other_thermometers(task, generator) if split == "train" else task
