"""What the benchmarks compute.

W1 to W7 are the few-shot papers' workloads, O1 is the MAML paper's Omniglot recipe, R1 and R2 are a
ResNet-12 on colour images of 32 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from metatrain.algorithms import MAML, Prototypical, Reptile
from metatrain.core import ComputePath, Model, Norm, Split, Task, Ticket
from metatrain.metrics import ACCURACY, Metric, accuracy, cross_entropy
from metatrain.models.conv import Conv4
from metatrain.models.mlp import MLP
from metatrain.models.resnet import ResNet12
from metatrain.outer import Outer
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe
from metatrain.tasks import FewShot, Sinusoid
from metatrain.tasks.generated import Generated

TICKET = Ticket("update", "train", 0, 0)


@dataclass(frozen=True, kw_only=True)
class Other:
    """A network that no kernel is for: Conv4 with group normalisation and SiLU."""

    name: str = "other"

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        layers: list[nn.Module] = []
        for narrow in (inputs[0], 64, 64, 64):
            layers += [
                nn.Conv2d(narrow, 64, 3, padding=1),
                nn.GroupNorm(8, 64),
                nn.SiLU(),
                nn.MaxPool2d(2),
            ]
        net = nn.Sequential()
        net.body, net.head = nn.Sequential(*layers, nn.Flatten()), nn.Linear(64, outputs)
        return net


@dataclass(frozen=True, kw_only=True)
class Colours(Generated):
    """Classes of colour images of 32 pixels, which are noise."""

    metric: ClassVar[Metric] = ACCURACY

    name: str = "workloads:Colours"
    ways: int = 5
    shots: int = 1
    queries: int = 5

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        sets = []
        for each in (self.shots, self.queries):
            shape = (count, self.ways * each, 3, 32, 32)
            x = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            y = torch.arange(self.ways).repeat_interleave(each).expand(count, -1)
            sets += [x, y]
        return Task(*sets)

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=(3, 32, 32),
            outputs=self.ways,
            loss=cross_entropy,
            metrics={"accuracy": accuracy},
            norm=norm,
            path=path,
            classes=True,
            to_float=lambda x: x.float() / 255,
        )


class Workload(NamedTuple):
    what: str
    must: float
    tasks: int
    family: FewShot | Colours | Sinusoid
    model: Conv4 | MLP | ResNet12 | Other
    algorithm: MAML | Reptile | Prototypical

    def recipe(self) -> Recipe:
        outer = Outer(steps=1, tasks_per_step=self.tasks, tasks_per_ticket=self.tasks, lr=1e-3)
        return Recipe(
            name="bench",
            family=self.family,
            model=self.model,
            algorithm=self.algorithm,
            outer=outer,
        )


STRIDED = Conv4(pool="stride", features="mean")
PAPER = Conv4(pool="stride", features="mean", norm_scale=False)
FIVE = FewShot(queries=15)
WORKLOADS = {
    "W1": Workload(
        "MAML, 5-way 1-shot, 15 queries, 5 steps, Conv4",
        1.8,
        8,
        FIVE,
        Conv4(),
        MAML(inner_lr=0.1, inner_steps=5),
    ),
    "W1s": Workload(
        "the same, strided Conv4", 1.2, 16, FIVE, STRIDED, MAML(inner_lr=0.1, inner_steps=5)
    ),
    "W2": Workload(
        "first-order MAML",
        1.9,
        16,
        FIVE,
        Conv4(),
        MAML(inner_lr=0.1, inner_steps=5, first_order=True),
    ),
    "W3": Workload(
        "Reptile, 5 Adam steps of 10 images",
        1.8,
        16,
        FewShot(shots=10),
        Conv4(),
        Reptile(inner_lr=1e-3, inner_steps=5, inner_batch=10),
    ),
    "W4": Workload(
        "sinusoid MAML, 5 steps, MLP 40-40",
        10,
        25,
        Sinusoid(),
        MLP(),
        MAML(inner_lr=0.01, inner_steps=5),
    ),
    "W4a": Workload("sinusoid MAML, 1 step", 8, 25, Sinusoid(), MLP(), MAML(inner_lr=0.01)),
    "W5": Workload(
        "ANIL, W1 otherwise",
        2.0,
        8,
        FIVE,
        Conv4(),
        MAML(inner_lr=0.1, inner_steps=5, adapts=("head.*",)),
    ),
    "W6": Workload(
        "MAML, 20-way 5-shot, 5 queries, 5 steps",
        2.3,
        2,
        FewShot(ways=20, shots=5, queries=5),
        Conv4(),
        MAML(inner_lr=0.1, inner_steps=5),
    ),
    "W7": Workload(
        "prototypical network, 20-way 5-shot, 15 queries",
        2.0,
        4,
        FewShot(ways=20, shots=5, queries=15),
        Conv4(),
        Prototypical(),
    ),
    "O1": Workload(
        "the MAML paper's Omniglot recipe: strided, 1 step, 5 + 5 images",
        1.5,
        32,
        FewShot(),
        PAPER,
        MAML(inner_lr=2.0, adapts=("*.conv.*", "head.*")),
    ),
    "R1": Workload(
        "ResNet-12, MAML, 2 steps, 5-way 1-shot, 5 queries, 3 x 32 x 32",
        1.0,
        2,
        Colours(),
        ResNet12(),
        MAML(inner_lr=0.01, inner_steps=2),
    ),
    "R2": Workload(
        "ResNet-12, prototypical network, 5-way 5-shot, 5 queries, 3 x 32 x 32",
        1.0,
        2,
        Colours(shots=5),
        ResNet12(),
        Prototypical(),
    ),
    "other": Workload(
        "MAML, 5 steps, a network that no kernel is for",
        0.97,
        16,
        FIVE,
        Other(),
        MAML(inner_lr=0.1, inner_steps=5),
    ),
}
