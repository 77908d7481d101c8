"""A run's configuration: the recipe, and where and how it is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cluster.jobs.job import JOB as JOB
from cluster.jobs.job import JOB_CPUS as JOB_CPUS
from cluster.jobs.job import JOB_GPUS as JOB_GPUS
from metatrain.core import InputError
from metatrain.recipe import Recipe

PACKAGES = [Path(__file__).parent.parent / name for name in ("metatrain", "cluster", "tuning")]


def _refuse_secret(key: str, uri: str | None, instead: str) -> None:
    """Recipes go to checkpoints, to MLflow and to colleagues."""
    if uri is not None and urlsplit(uri).password is not None:
        raise InputError(
            f"{key} holds a password, which would be written into every checkpoint",
            remedy=f"{instead}",
        )


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who computes tickets. None of this changes what is learnt on CPUs.

    Up to `max` Ray actors of `cpus` and `gpus` each; training starts once `min` of them are there,
    which on a cluster may take `wait_s`. With `max` 0 the driver's own process computes, without
    Ray. `threads` is what torch uses.
    """

    __pydantic_config__ = {"extra": "forbid"}

    min: int = 1
    max: int = 2
    cpus: float = 1.0
    gpus: float = 0.0
    threads: int = 1
    wait_s: float = 60.0

    def __post_init__(self) -> None:
        if self.max < 0 or self.threads < 1 or self.cpus < 0 or self.gpus < 0:
            raise InputError(
                "workers.max, cpus and gpus cannot be negative, and threads must be at least 1"
            )
        if self.max and not 1 <= self.min <= self.max:
            raise InputError(
                f"workers.min must be between 1 and workers.max = {self.max}, got {self.min}"
            )


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint each `every_steps` outer steps, of which the last `keep` stay.

    They lie under the output, or in `uri`: a folder or anything pyarrow knows, such as
    s3://bucket/run.
    """

    __pydantic_config__ = {"extra": "forbid"}

    every_steps: int = 500
    keep: int = 2
    uri: str | None = None

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise InputError("checkpoint.every_steps and checkpoint.keep must be at least 1")
        _refuse_secret("checkpoint.uri", self.uri, "give storage keys in the environment")


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """MLflow. `uri` is a server or store (default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db
    here), or "none".

    `experiment` is by default the family and its data, such as "fewshot omniglot". Metrics are
    logged each `every_steps` outer steps.
    """

    __pydantic_config__ = {"extra": "forbid"}

    uri: str | None = None
    experiment: str | None = None
    every_steps: int = 1

    def __post_init__(self) -> None:
        if self.every_steps < 1:
            raise InputError(f"tracking.every_steps must be at least 1, got {self.every_steps}")
        if self.experiment is not None and not self.experiment.strip():
            raise InputError(
                "tracking.experiment is empty",
                remedy=("give a name, or leave it out to get one for the family"),
            )
        _refuse_secret(
            "tracking.uri", self.uri, "give it in MLFLOW_TRACKING_URI or MLFLOW_TRACKING_PASSWORD"
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class RunConfig(Recipe):
    """A recipe file. `output` is the run's folder (default: runs/NAME/DATE-TIME)."""

    workers: Workers = Workers()
    checkpoint: Checkpoint = Checkpoint()
    tracking: Tracking = Tracking()
    output: str | None = None

    def recipe(self) -> Recipe:
        """What is learnt, without where and how: what workers and bundles get."""
        return Recipe(
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)}
        )
