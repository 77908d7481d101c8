"""Functions of a Gaussian process, whose posterior is known (Müller et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from metatrain.bounds import bounded, check_bounds
from metatrain.core import (
    Adapt,
    ComputePath,
    Context,
    InputError,
    Model,
    Norm,
    Split,
    Task,
    Units,
)
from metatrain.measures import Measure, mean, of_points
from metatrain.metrics import NLL, Metric
from metatrain.problems.bar_distribution import Bars
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated, check_shots, drawn_shots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NODES = 32  # length scales of a quadrature
LEAST_NOISE = 1e-4  # its variance; less would leave a covariance singular


@dataclass(frozen=True, kw_only=True)
class GaussianProcess(Generated):
    """y = f(x) + e with f ~ GP(0, k), k(x, x') = exp(-(x - x')^2 / 2 l^2), x ~ U[0, 1].

    Each task has a length scale l of its own, uniform in `length_scales`, and e ~ N(0,
    noise_variance). A network predicts the probabilities of `buckets`, and learns by the density
    that they give the targets. The baseline `posterior` is the exact density, which no predictor
    surpasses on average: that of the known posteriors, averaged over p(l | support set). All splits
    draw from the same distribution; the ticket keeps their tasks apart.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = NLL

    name: Literal["gaussian_process"] = "gaussian_process"
    shots: tuple[int, int] = bounded((0, 20), least=0, most=100)
    """Least and most support points of a task; those of a ticket have as many."""
    queries: int = bounded(20, least=1, most=500)
    """Query points of a task."""
    length_scales: tuple[float, float] = bounded((0.1, 0.6), above=0, most=1000)
    """Least and most length scale of a task."""
    noise_variance: float = bounded(0.01, least=LEAST_NOISE, most=1000)
    """Variance of the noise; that of a function is 1."""
    buckets: int = bounded(100, least=4, most=10_000)
    """Buckets of the density; each has the same mass of N(0, 1 + noise_variance)."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_shots(self.shots)
        if self.length_scales[0] > self.length_scales[1]:
            got = list(self.length_scales)
            raise InputError("length_scales", got=got, expected="[least, most]")

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """support [T, S, 1], query [T, queries, 1], float32."""
        shots = drawn_shots(generator, self.shots)
        scale = torch.empty(count, 1, 1, dtype=torch.float64)
        scale.uniform_(*self.length_scales, generator=generator)
        x = torch.rand(count, shots + self.queries, 1, generator=generator)
        drawn = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        y = (torch.linalg.cholesky(self._noisy(covariance(x, x, scale))) @ drawn).float()
        return Task(x[:, :shots], y[:, :shots], x[:, shots:], y[:, shots:])

    def posterior(self, task: Task) -> Tensor:
        """[T] mean of -log p(y | x, support set), each query point by itself."""
        device = task.query_x.device
        scale, log_weight = (part.to(device) for part in quadrature(*self.length_scales))
        x, y, new = task.support_x[:, None], task.support_y[:, None].double(), task.query_x[:, None]
        factor = torch.linalg.cholesky(self._noisy(covariance(x, x, scale)))  # [T, NODES, S, S]
        whitened = torch.linalg.solve_triangular(factor, y, upper=False)
        evidence = -whitened.square().sum((-2, -1)) / 2 - factor.diagonal(0, -2, -1).log().sum(-1)
        across = torch.linalg.solve_triangular(factor, covariance(x, new, scale), upper=False)
        variance = 1 + self.noise_variance - across.square().sum(-2)  # [T, NODES, Q]
        error = task.query_y.double().mT - (across.mT @ whitened)[..., 0]
        log_density = -(error.square() / variance + (2 * math.pi * variance).log()) / 2
        weight = (evidence + log_weight).log_softmax(-1)[..., None]  # of each l, p(l | support set)
        return -(weight + log_density).logsumexp(1).mean(1)

    def units(self, columns: int) -> Units:
        return Units(0.5, 12**-0.5, target_deviation=math.sqrt(1 + self.noise_variance))

    def bars(self) -> Bars:
        """How outputs are densities."""
        return Bars(self.buckets, math.sqrt(1 + self.noise_variance))

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        bars = self.bars()

        def excess(prediction: Tensor, task: Task) -> Tensor:
            return bars.nll(prediction, task.query_y) - self.posterior(task)

        return Supervised(
            model=model,
            inputs=(1,),
            outputs=self.buckets,
            feedback=1,
            loss=bars.nll,
            metrics={"nll": bars.nll},
            norm=norm,
            path=path,
            baselines={"posterior": self.posterior},
            measures=of_points(bars.mean) | {"excess": Measure(excess, mean)},
            point=bars.mean,
        )

    def picture(self, problem: Supervised, adapt: Adapt, context: Context) -> Figure:
        """Three functions and the means that are predicted for them, before and after reading."""
        from metatrain import figures

        smooth = replace(self, queries=400, noise_variance=LEAST_NOISE)
        task = smooth.sample(context.generator, 3, context.ticket.split)
        noise = torch.randn(task.support_y.shape, generator=context.generator)
        rest = math.sqrt(self.noise_variance - LEAST_NOISE)
        task = task._replace(support_y=task.support_y + rest * noise)
        order = task.query_x.argsort(1)
        task = task._replace(
            query_x=task.query_x.gather(1, order), query_y=task.query_y.gather(1, order)
        )
        return figures.fits(
            task,
            [
                (step, problem.point(problem.predict(params, task, context)))
                for step, params in adapt(task)
            ],
            f"Functions of a Gaussian process, read from {task.support_x.shape[1]} points",
        )

    def _noisy(self, covariance: Tensor) -> Tensor:
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return covariance + self.noise_variance * eye


def covariance(x: Tensor, other: Tensor, scale: Tensor) -> Tensor:
    """[..., N, M] of points [..., N, 1] and [..., M, 1], in double precision."""
    return (-((x.double() - other.double().mT) / scale).square() / 2).exp()


def quadrature(least: float, most: float) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre: length scales [NODES, 1, 1], and the logarithms of their weights [NODES]."""
    import numpy as np

    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(NODES))
    return ((least + most + (most - least) * nodes) / 2)[:, None, None], (weights / 2).log()
