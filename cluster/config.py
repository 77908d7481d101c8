"""A run's configuration: the recipe, and where and how it is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from metatrain.addresses import holds_secret
from metatrain.bounds import STEPS, bounded, check_bounds
from metatrain.core import InputError
from metatrain.recipe import Recipe

OUR_PACKAGES = [Path(__file__).parent.parent / name for name in ("metatrain", "cluster", "tuning")]


def _refuse_secret(uri: str | None, remedy: str) -> None:
    """Refuse a password: recipes go to checkpoints, to MLflow and to colleagues."""
    if uri is not None and holds_secret(uri):
        raise InputError(
            "uri holds a password or options, which would be written into every checkpoint",
            remedy=remedy,
        )


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The workers that compute tickets; on CPUs none of this changes the parameters."""

    __pydantic_config__ = {"extra": "forbid"}

    min: int = bounded(1, least=1, most=10_000)
    """Number of workers with which training starts."""
    max: int = bounded(2, least=0, most=10_000)
    """Largest number of workers, each a Ray actor; 0: the driver computes, without Ray."""
    cpus: float = bounded(1.0, least=0, most=1024)
    """CPUs of each worker."""
    gpus: float = bounded(0.0, least=0, most=1)
    """GPUs of each worker: one, or a part of one that workers share."""
    compile: bool = False
    """Whether torch's compiler fuses updates on a GPU: in minutes, to other bits; if `max` is 0."""
    threads: int = bounded(1, least=1, most=512)
    """Threads of torch in each process."""
    wait_s: float = bounded(600.0, least=0, most=10**6)
    """Seconds to wait for the first `min` workers of a cluster."""

    def __post_init__(self) -> None:
        check_bounds(self)
        for name in ("cpus", "gpus"):
            value = getattr(self, name)
            if value > 1 and not float(value).is_integer():
                raise InputError(name, got=value, expected="a part of one, or a whole number")
        if self.compile and (self.max or not self.gpus):
            raise InputError("compile", got=True, expected="false unless max is 0 and gpus is 1")
        if self.max and not 1 <= self.min <= self.max:
            raise InputError("min", got=self.min, expected=f"1 to max, which is {self.max}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When and where checkpoints are saved."""

    __pydantic_config__ = {"extra": "forbid"}

    every_steps: int = bounded(500, least=1, most=STEPS)
    """Outer steps between checkpoints; there is one at the end as well."""
    keep: int = bounded(2, least=1, most=10_000)
    """Number of checkpoints that stay."""
    uri: str | None = None
    """Folder or address such as s3://bucket/run; default: `checkpoints` in the output."""

    def __post_init__(self) -> None:
        check_bounds(self)
        _refuse_secret(self.uri, "give storage keys in the environment")


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """Where and how often a run is recorded in MLflow."""

    __pydantic_config__ = {"extra": "forbid"}

    uri: str | None = None
    """Server, store or none; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db."""
    experiment: str | None = None
    """Name of the experiment; default: the family and its data, such as fewshot omniglot."""
    every_steps: int = bounded(1, least=1, most=STEPS)
    """Outer steps between the metrics that are sent."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.experiment is not None and not self.experiment.strip():
            raise InputError(
                "experiment is empty",
                remedy="give a name, or leave it out to get the family's",
            )
        _refuse_secret(self.uri, "give it in MLFLOW_TRACKING_URI or MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True, kw_only=True, repr=False)
class RunConfig(Recipe):
    """A recipe file: the recipe, and where and how it is computed."""

    workers: Workers = Workers()
    """The workers that compute tickets."""
    checkpoint: Checkpoint = Checkpoint()
    """When and where checkpoints are saved."""
    tracking: Tracking = Tracking()
    """Where and how often the run is recorded in MLflow."""
    output: str | None = None
    """The run's folder or address; default: runs/NAME/DATE-TIME."""

    def recipe(self) -> Recipe:
        """Return the recipe alone, which workers and bundles get."""
        return Recipe(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
        )
