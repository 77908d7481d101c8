"""A ridge head in closed form: R2-D2 (Bertinetto et al. 2019, arXiv 1805.08136)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from metatrain.algorithms import inner_loop
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import TRAINING_ONLY, Context, Meta, Params, Problem, Update, labelled
from metatrain.models.heads import BIAS, WEIGHT


@dataclass(frozen=True, kw_only=True)
class Ridge:
    """Classify by ridge regression from features to one-hot classes, solved for each task.

        W = argmin_W |X W - Y|^2 + lambda |W|^2                           (section 3.2)
          = (X^T X + lambda I)^-1 X^T Y = X^T (X X^T + lambda I)^-1 Y     (Woodbury)
        logits = alpha f(x) W + beta

    X has a row for each support example: its features and a 1, whose weights are the bias. lambda,
    alpha and beta are learned with the body. They are in `Meta.algorithm` as log_lambda, log_alpha
    and beta; a softmax does not see beta, which shifts all classes alike.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["ridge"] = "ridge"
    initial_lambda: float = bounded(1.0, above=0, most=RATE, metadata=TRAINING_ONLY)
    """Where lambda, the weight of the penalty, starts."""
    initial_alpha: float = bounded(10.0, above=0, most=RATE, metadata=TRAINING_ONLY)
    """Where alpha, the factor of the logits, starts."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_without(problem, generator, (WEIGHT, BIAS), "linear")
        start = {
            "log_lambda": torch.tensor(self.initial_lambda).log(),
            "log_alpha": torch.tensor(self.initial_alpha).log(),
            "beta": torch.tensor(0.0),
        }
        return Meta(model, start, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        """Before adaptation all classes are equally probable."""
        phi = inner_loop.start(meta, task)
        features, classes = labelled(problem).embed(phi, task, context)  # [T, S, F], [T, S, ways]
        strength, alpha = meta.algorithm["log_lambda"].exp(), meta.algorithm["log_alpha"].exp()
        w = alpha * regression(pad(features, (0, 1), value=1.0), classes, strength).mT
        head = {WEIGHT: w[..., :-1], BIAS: w[..., -1] + meta.algorithm["beta"]}
        yield phi | {name: torch.zeros_like(p) for name, p in head.items()}
        yield phi | head

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        return inner_loop.mean_gradient(self.adapt, problem, meta, tasks, context)


def regression(x: Tensor, y: Tensor, strength: Tensor) -> Tensor:
    """[T, F, C]: the W that minimises |x W - y|^2 + strength * |W|^2; x [T, S, F], y [T, S, C]."""
    examples, features = x.shape[1:]
    eye = torch.eye(min(examples, features), dtype=x.dtype, device=x.device)
    # Both are positive definite: there is nothing to check, for which a GPU would have to wait.
    if examples < features:
        return x.mT @ torch.linalg.solve_ex(x @ x.mT + strength * eye, y)[0]
    return torch.linalg.solve_ex(x.mT @ x + strength * eye, x.mT @ y)[0]
