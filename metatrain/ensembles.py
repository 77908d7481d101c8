"""Ensembles: several networks for each task, whose predictions an evaluation mixes.

A network without its peers, the single one, adapts as the evaluation says. Members' predictions
travel to the driver, which mixes them: see cluster/ensembles.py. Shapes: T tasks, K members.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import (
    Algorithm,
    Context,
    Demonstrated,
    InputError,
    Labelled,
    Member,
    Meta,
    Problem,
    Purpose,
    Setting,
    chunks,
    count,
    labelled,
)
from metatrain.models.heads import BIAS, SUPPORT, WEIGHT

MOST = 100  # members
ITERATIONS = 1000  # of the weights of a mixture: it stops to change long before


@dataclass(frozen=True, kw_only=True)
class Bagged:
    """Each member adapts to a bootstrap sample of the support set (Breiman 1996, Bagging).

    A class keeps its number of examples. With one of each, all members are the single network.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["bagged"] = "bagged"
    members: int = bounded(5, least=2, most=MOST)
    """Networks whose predictions are mixed."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def adapted(
        self, problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
    ) -> Iterator[Member]:
        return _bagged(self.members, problem, algorithm, meta, task, context)


@dataclass(frozen=True, kw_only=True)
class Convex:
    """Bagging whose weights, on the simplex, are those with the least loss on validation tasks.

    The first member is the single network, so that a fit may choose it.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["convex"] = "convex"
    members: int = bounded(5, least=2, most=MOST)
    """Networks whose predictions are mixed."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def adapted(
        self, problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
    ) -> Iterator[Member]:
        yield _adapted(problem, algorithm, meta, task, context)
        yield from _bagged(self.members - 1, problem, algorithm, meta, task, context)


@dataclass(frozen=True, kw_only=True)
class Snapshots:
    """The members start from the last checkpoints of the run (Huang et al. 2017, arXiv 1704.00109).

    The first one is the single network.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["snapshots"] = "snapshots"
    members: int = bounded(3, least=2, most=MOST)
    """Checkpoints, the last one among them."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def adapted(
        self, problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
    ) -> Iterator[Member]:
        """The member of these meta-parameters: the driver asks for the others in turn."""
        yield _adapted(problem, algorithm, meta, task, context)


@dataclass(frozen=True, kw_only=True)
class Boosted:
    """Prototypes that AdaBoost weights: SAMME (Zhu et al. 2009, algorithm 2) on the support set.

        c_k = sum_{i: y_i = k} w_i f(x_i) / sum_{i: y_i = k} w_i
        err = sum_i w_i [c(x_i) != y_i] / sum_i w_i
        alpha = log((1 - err) / err) + log(ways - 1)
        w_i <- w_i exp(alpha [c(x_i) != y_i])

    f is the adapted network's body, w_i is 1 at first, and c(x) the class of the nearest c_k. A
    member's share of the prediction is its alpha. The least err is half an example's, so that
    prototypes that make no mistake stay as they are.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["boosted"] = "boosted"
    members: int = bounded(5, least=2, most=MOST)
    """Rounds of boosting."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def adapted(
        self, problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
    ) -> Iterator[Member]:
        phi = _adapted(problem, algorithm, meta, task, context).params
        with torch.no_grad():
            features, classes = labelled(problem).embed(phi, task, context)  # [T,S,F], [T,S,ways]
        ways, examples = classes.shape[-1], classes.shape[1]
        w = torch.ones_like(classes[..., 0])  # [T, S]
        for _ in range(self.members):
            share = classes * (w[..., None] / (classes * w[..., None]).sum(1, keepdim=True))
            c = share.mT @ features  # [T, ways, F]
            head = {WEIGHT: 2 * c, BIAS: -c.square().sum(-1)}
            said = (features @ head[WEIGHT].mT + head[BIAS][:, None]).argmax(-1)
            wrong = (said != classes.argmax(-1)).to(w)
            err = ((w * wrong).sum(1) / w.sum(1)).clamp(min=0.5 / examples)
            alpha = (((1 - err) / err).log() + torch.tensor(ways - 1.0).log()).clamp(min=0)
            yield Member(phi | head, task, alpha.clamp(min=torch.finfo(w.dtype).tiny))
            w = w * (alpha[:, None] * wrong).exp()


BuiltIn = Annotated[Bagged | Snapshots | Boosted | Convex, Field(discriminator="name")]


def purpose_of_fit(purpose: Purpose) -> Purpose:
    """The purpose of the validation tasks that fit the weights of an evaluation's ensemble."""
    return Purpose("validate", f"ensemble weights of {purpose.variant}".removesuffix(" of "))


def check_ensemble(setting: Setting, problem: Problem, key: str) -> None:
    """Refuse an ensemble that does not fit the problem; `key` is the evaluation's."""
    ensemble = setting.ensemble
    if ensemble is None:
        return
    key = f"{key}.ensemble"
    outputs, numbers = (getattr(problem, name, 0) for name in ("outputs", "feedback"))
    acts = isinstance(problem, Demonstrated)  # what is measured are episodes
    if not isinstance(problem, Labelled) or acts or outputs != numbers:  # of a density, for one
        raise InputError(
            f"{key} mixes classes or numbers, and these tasks have other predictions",
            remedy="leave it out",
        )
    if setting.attack is not None:
        raise InputError(
            f"{key}: an attack moves examples against each member, and not against the mixture",
            remedy=f"leave out {key} or the attack",
        )
    if isinstance(ensemble, Boosted | Convex) and not problem.classes:
        raise InputError(
            f"{key}.name",
            got=ensemble.name,
            expected="bagged or snapshots, as these tasks have no classes",
        )
    held = problem.init(torch.Generator())
    if isinstance(ensemble, Boosted) and (not {WEIGHT, BIAS} <= held.keys() or SUPPORT in held):
        raise InputError(
            f"{key} boosted computes a linear head, and the network has another one",
            remedy="choose bagged or snapshots, or set model.head.name to linear",
        )


def predictions(
    setting: Setting, problem: Problem, meta: Meta, tasks: Any, context: Context
) -> dict[Any, dict[str, Tensor]]:
    """Of each norm the members' `predictions` [T, K, Q, *out], and their `weights` [T, K]."""
    assert setting.ensemble is not None
    groups = []
    for task in chunks(problem, tasks):
        found: dict[Any, list[Tensor]] = {norm: [] for norm in problem.norm}
        weights = []
        for member in setting.ensemble.adapted(problem, setting.algorithm, meta, task, context):
            weights.append(member.weight)
            for norm, predicted in found.items():
                with torch.no_grad():
                    predicted.append(problem.predict(member.params, member.task, context, norm))
        groups.append((found, torch.stack(weights, 1)))
    return {
        norm: {
            "predictions": torch.cat([torch.stack(found[norm], 1) for found, _ in groups]),
            "weights": torch.cat([weights for _, weights in groups]),
        }
        for norm in problem.norm
    }


def mixture(members: Mapping[str, Tensor], weights: Tensor | None, *, classes: bool) -> Tensor:
    """[T, Q, *out] the members' weighted mean; of classes the logarithm of mean probabilities.

    weights: [K] in place of each task's own.
    """
    predicted = members["predictions"]
    own = members["weights"] if weights is None else weights.expand_as(members["weights"])
    share = (own / own.sum(1, keepdim=True)).to(predicted)
    share = share.view(*share.shape, *[1] * (predicted.dim() - 2))
    if not classes:
        return (share * predicted).sum(1)
    return (predicted.log_softmax(-1) + share.log()).logsumexp(1)


def right(members: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """[T * Q, K] the probability that each member gives to the class of each query example.

    labels: [T, Q].
    """
    predicted = members["predictions"]
    at = labels[:, None, :, None].expand(*predicted.shape[:3], 1)
    return predicted.double().softmax(-1).gather(-1, at)[..., 0].transpose(1, 2).flatten(0, 1)


def fitted(probabilities: Tensor) -> Tensor:
    """[K] the weights on the simplex with the least mean of -log sum_k w_k p_k.

    The loss is convex. No step of expectation maximisation, which these are, raises it.

    probabilities: [N, K].
    """
    p = probabilities[probabilities.isfinite().all(1)].clamp(min=1e-30)
    weights = torch.full_like(p[0], 1 / p.shape[1])
    for _ in range(ITERATIONS):
        weights = (p * weights / (p @ weights)[:, None]).mean(0)
    return weights / weights.sum()


def _bagged(
    count: int, problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
) -> Iterator[Member]:
    """So many networks, each adapted to a bootstrap sample of the support set."""
    for _ in range(count):
        sample = bootstrap(problem, task, context.generator)
        yield _adapted(problem, algorithm, meta, sample, context)


def bootstrap(problem: Problem, task: Any, generator: torch.Generator) -> Any:
    """The tasks with as many support examples, drawn with replacement, of classes in each class."""
    y = task.support_y
    tasks, examples = y.shape[:2]
    if not examples:
        return task
    same = torch.ones(tasks, examples, examples)
    if labelled(problem).classes:
        same = (y[:, :, None] == y[:, None, :]).float().cpu()
    drawn = torch.multinomial(same.flatten(0, 1), 1, generator=generator).view(tasks, examples)
    rows, drawn = torch.arange(tasks, device=y.device)[:, None], drawn.to(y.device)
    return task._replace(support_x=task.support_x[rows, drawn], support_y=y[rows, drawn])


def _adapted(
    problem: Problem, algorithm: Algorithm, meta: Meta, task: Any, context: Context
) -> Member:
    """The member that an algorithm's last inner step gives."""
    (params,) = deque(algorithm.adapt(problem, meta, task, context), maxlen=1)
    one = torch.ones(count(task), device=task.support_y.device)
    return Member(params, task, one)
