"""Scores over training seeds: how far they vary apart from the interval of their tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple

from cluster.api.files import metric_of
from cluster.tracking import description
from metatrain import storage
from metatrain.metrics import Metric
from metatrain.plain import finite, to_json
from metatrain.storage import Folder

FILES = {"seeds.json", "figures"}  # what `leave` writes
Record = dict[str, Any]  # a score as result.json has it


class OfSeed(NamedTuple):
    """What training from one seed scores."""

    seed: int
    value: float
    ci95: float  # half the width of the interval over its tasks; nan of a median
    diverged: int  # tasks
    protocol: str


class Spread(NamedTuple):
    """A score over training seeds, which are all tested on the same tasks."""

    metric: Metric
    evaluation: str  # as in Score
    norm: str
    tasks: int
    statistic: Literal["mean", "median"]  # of a seed's tasks; the median if any of them diverged
    mean: float  # over the seeds, as the two below; nan if a seed has no result
    std: float  # between seeds, with seeds - 1 in the denominator
    ci95: float  # half the width of the interval of `mean`, by Student's t
    seeds: list[OfSeed]

    @property
    def lost(self) -> list[int]:
        """The seeds without a result: half of their tasks or more diverged."""
        return [each.seed for each in self.seeds if 2 * each.diverged >= self.tasks]

    def record(self) -> Record:
        """The score over seeds as seeds.json has it."""
        return self._asdict() | {
            "metric": self.metric.name,
            "better": self.metric.better,
            "shown": self.metric.shown,
            "seeds": [each._asdict() for each in self.seeds],
        }

    def heading(self) -> str:
        """What is measured, such as "accuracy on 600 tasks"."""
        median = "median " if self.statistic == "median" else ""
        evaluation = f"{self.evaluation}: " if self.evaluation else ""
        norm = "" if self.norm == "none" else f", norm {self.norm}"
        return f"{evaluation}{median}{self.metric.name} on {self.tasks} tasks{norm}"

    def rows(self) -> list[tuple[str, str]]:
        """A table: each seed with its value, and then all of them together."""
        found = []
        for each in self.seeds:
            lost = f", {each.diverged} tasks diverged" if each.diverged else ""
            found.append((f"seed {each.seed}", self._interval(each.value, each.ci95) + lost))
        std = self.metric.text(self.std).replace("%", " points")
        return [
            *found,
            (f"mean of {len(self.seeds)} seeds", self._interval(self.mean, self.ci95)),
            ("standard deviation between seeds", std),
        ]

    def line(self) -> str:
        """The closing line of a command, for machines and people."""
        name = f"result {self.evaluation}".rstrip()
        median = " statistic=median" if self.statistic == "median" else ""
        width, std = self.metric.width(self.ci95), self.metric.width(self.std)
        found = f"{self.metric.text(self.mean)}{median} seeds={len(self.seeds)}"
        spread = f"seed_std={std} seed_ci95={width} tasks={self.tasks}"
        return f'{name}: {self.metric.name}={found} {spread} protocol="{self.protocol()}"'

    def protocol(self) -> str:
        """The protocol of all seeds; with a patience they may differ in their steps."""
        numbers = ", ".join(str(each.seed) for each in self.seeds)
        texts = [each.protocol.replace(f", seed {each.seed};", "|") for each in self.seeds]
        steps = "" if len(set(texts)) == 1 else " (steps of the first seed)"
        return texts[0].replace("|", f", seeds {numbers}{steps};")

    def _interval(self, value: float, width: float) -> str:
        if math.isfinite(width):
            return self.metric.interval(value, width)
        return self.metric.text(value)


def summarise(found: Mapping[int, Sequence[Record]]) -> list[Spread]:
    """Each score over seeds, in the order in which a run has its scores.

    found: the scores of each seed's run, of two seeds or more.
    """
    return [
        _spread(dict(zip(found, records, strict=True)))
        for records in zip(*found.values(), strict=True)
    ]


def _spread(records: Mapping[int, Record]) -> Spread:
    from scipy.special import stdtrit  # the inverse of Student's t

    first, n = next(iter(records.values())), len(records)
    lost = any(record["diverged"] for record in records.values())
    statistic: Literal["mean", "median"] = "median" if lost else "mean"
    seeds = [
        OfSeed(
            seed,
            record[statistic],
            math.nan if lost else record["ci95"],
            record["diverged"],
            record["protocol"],
        )
        for seed, record in records.items()
    ]
    values = [each.value for each in seeds]
    usable = all(2 * each.diverged < first["tasks"] for each in seeds)
    std = stdev(values) if usable else math.nan
    return Spread(
        metric_of(first),
        first["evaluation"],
        first["norm"],
        first["tasks"],
        statistic,
        mean(values) if usable else math.nan,
        std,
        float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n),
        seeds,
    )


def leave(folder: Folder, name: str, spreads: Sequence[Spread]) -> None:
    """Write seeds.json and its picture.

    name: the recipe's.
    """
    from metatrain import figures

    record = {"scores": [spread.record() for spread in spreads]}
    storage.write(str(folder / "seeds.json"), to_json(record, indent=1).encode())
    drawn = {
        spread.heading(): [
            *(figures.Interval(f"seed {s.seed}", s.value, s.ci95) for s in spread.seeds),
            figures.Interval(f"mean of {len(spread.seeds)} seeds", spread.mean, spread.ci95),
        ]
        for spread in spreads
    }
    picture = figures.over_seeds(drawn, spreads[0].metric, f"{name}: training seeds")
    figures.save(picture, folder / "figures" / "seeds.png")


def as_metrics(spreads: Sequence[Spread]) -> dict[str, float]:
    """The scores over seeds under the names in MLflow that the scores of a run have."""
    found: dict[str, float] = {}
    for prefix, spread in description.named(spreads):
        name = f"test/{prefix}{spread.metric.name}"
        found |= {name: spread.mean, f"{name}_ci95": spread.ci95, f"{name}_seed_std": spread.std}
    return finite(found)


def note(spreads: Sequence[Spread]) -> str:
    """The scores over seeds as MLflow's description of the run that stands for all of them."""
    tables = [
        "\n".join(
            [f"| {spread.heading()} | |", "|---|---|"]
            + [f"| {label} | {text} |" for label, text in spread.rows()]
        )
        for spread in spreads
    ]
    return "\n\n".join([*tables, f"**Protocol:** {spreads[0].protocol()}", description.END])
