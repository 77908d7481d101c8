"""The keys of evaluations, after training, and of validations in training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from metatrain import corruptions, ensembles
from metatrain.bounds import EXAMPLES, SEED, STEPS, TASKS, bounded, check_bounds
from metatrain.core import Attack, InputError, Norm

AnyAttack = Annotated[Attack, Field(discriminator="name")]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Measure the trained parameters on a fixed list of tasks."""

    __pydantic_config__ = {"extra": "forbid"}

    tasks: int = bounded(600, least=2, most=TASKS)
    """Tasks of the evaluation."""
    seed: int = bounded(1, least=-SEED, most=SEED)
    """Seed that draws these tasks."""
    split: Literal["val", "test"] = "test"
    """`test` or `val`."""
    tasks_per_ticket: int = bounded(20, least=1, most=EXAMPLES)
    """Tasks that a worker computes at once."""
    norm: Norm | tuple[Norm, ...] = "transductive"
    """One norm or several; the first is the result."""
    family: dict[str, Any] = field(default_factory=dict)
    """Changed keys of the family, such as `{shots: 5}`."""
    algorithm: dict[str, Any] = field(default_factory=dict)
    """Changed keys of the algorithm, such as `{inner_steps: 10}`."""
    corruption: corruptions.BuiltIn | None = None
    """How images are corrupted: `noise`, `blur` or `occlusion`; `null`: not at all."""
    attack: AnyAttack | None = None
    """How images are attacked, after that: `fgsm` or `pgd`; `null`: not at all."""
    ensemble: ensembles.BuiltIn | None = None
    """Networks that predict together: `bagged`, `snapshots`, `boosted` or `convex`; `null`: one."""
    of: Literal["best", "last"] | None = None
    """Measured: `best` by validation, `last`, or `null`: `best` with a patience, else `last`."""

    def norms(self) -> tuple[Norm, ...]:
        """The norms, the result's first."""
        return (self.norm,) if isinstance(self.norm, str) else self.norm

    def __post_init__(self) -> None:
        norms = self.norms()
        if not norms or len(set(norms)) < len(norms):
            raise InputError("norm", got=list(norms), expected="one mode or more, each once")
        check_bounds(self)


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Measure the parameters on the val split during training.

    `norm`, `family` and `algorithm` default to the evaluation's, so a sweep ranks its trials by the
    same score as the result.
    """

    __pydantic_config__ = {"extra": "forbid"}

    every_steps: int = bounded(0, least=0, most=STEPS)
    """Outer steps between validations; 0: none."""
    tasks: int = bounded(100, least=1, most=TASKS)
    """Tasks of a validation."""
    seed: int = bounded(2, least=-SEED, most=SEED)
    """Seed that draws these tasks."""
    norm: Norm | None = None
    """Norm of the query examples; `null`: the evaluation's first."""
    family: dict[str, Any] | None = None
    """Changed keys of the family; `null`: the evaluation's."""
    algorithm: dict[str, Any] | None = None
    """Changed keys of the algorithm; `null`: the evaluation's."""
    patience: int = bounded(0, least=0, most=STEPS)
    """Validations without a better one until training ends; 0: it does not end early."""

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.patience and not self.every_steps:
            raise InputError(
                "patience",
                got=self.patience,
                expected="0 without validations",
                remedy="set validation.every_steps",
            )
