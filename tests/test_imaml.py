"""iMAML: the implicit gradient in closed form, by unrolling, by finite differences."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from cases import CASES, config, context, drawn_images, exact, images
from gradients import assert_meta_gradient
from test_maml import NETS, Quadratic
from torch import Tensor

from metatrain.algorithms import IMAML, conjugate_gradients, inner_loop
from metatrain.core import ComputePath, Context, InputError, Meta, Params, Problem, Task
from metatrain.models import MLP
from metatrain.start import prepare
from metatrain.tasks import Sinusoid


@pytest.mark.parametrize("path", ["batched", "reference"])
def test_the_gradient_of_a_quadratic_is_its_closed_form(path: ComputePath) -> None:
    """phi = (a c + lambda theta) / (a + lambda), and its derivative is lambda / (a + lambda)."""
    a = torch.tensor([[0.5], [2.0]], dtype=torch.float64)
    c = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    theta = torch.tensor([0.7], dtype=torch.float64)
    problem = Quadratic()
    problem.path = path
    algorithm = IMAML(inner_lr=0.2, inner_steps=60, proximity=1.5)
    meta, tasks = Meta({"x": theta}, {}, {}), Task(a, c, a, c)
    *_, phi = algorithm.adapt(problem, meta, tasks, context())  # type: ignore[arg-type]
    best = (a * c + 1.5 * theta) / (a + 1.5)
    torch.testing.assert_close(phi["x"], best, rtol=1e-6, atol=0)
    update = algorithm.update(problem, meta, tasks, context())  # type: ignore[arg-type]
    expected = (1.5 / (a + 1.5) * a * (best - c)).mean(0)
    torch.testing.assert_close(update.direction.model["x"], expected, rtol=1e-6, atol=0)
    assert update.tasks == 2
    damped = IMAML(inner_lr=0.2, inner_steps=60, proximity=1.5, damping=2.5)
    update = damped.update(problem, meta, tasks, context())  # type: ignore[arg-type]
    expected = (4.0 / (a + 4.0) * a * (best - c)).mean(0)
    torch.testing.assert_close(update.direction.model["x"], expected, rtol=1e-6, atol=0)


def sinusoids() -> tuple[Any, Meta, Task]:
    family = Sinusoid(shots=6, queries=5)
    problem = family.bind(MLP(hidden=(7,)), ("none",), "batched")
    tasks = family.sample(torch.Generator().manual_seed(1), 3, "train")
    meta = exact(Meta(problem.init(torch.Generator().manual_seed(0)), {}, {}))
    return problem, meta, Task(*(leaf.double() for leaf in tasks))


def unrolled(
    algorithm: IMAML, problem: Problem, meta: Meta, task: Any, context: Context, order: Any = 2
) -> Any:
    """The same descent with its graph."""

    def loss(phi: Params) -> Tensor:
        apart = [(phi[n] - start[n]).square().flatten(1).sum(1) for n in meta.model]
        return problem.support_loss(phi, task, context) + algorithm.proximity / 2 * sum(apart)

    start = inner_loop.start(meta, task)
    return inner_loop.descend(
        loss,
        start,
        rates=[dict.fromkeys(meta.model, algorithm.inner_lr)] * algorithm.inner_steps,
        order=order,
        generator=context.generator,
    )


def test_the_gradient_is_that_of_unrolling_a_long_descent() -> None:
    problem, meta, tasks = sinusoids()
    algorithm = IMAML(inner_lr=0.02, inner_steps=60, proximity=10.0, cg_steps=10)
    found = algorithm.update(problem, meta, tasks, context()).direction.model
    expected = inner_loop.mean_gradient(
        partial(unrolled, algorithm), problem, meta, tasks, context()
    ).direction.model
    one, other = (torch.cat([p[n].flatten() for n in expected]) for p in (found, expected))
    assert torch.cosine_similarity(one, other, dim=0) > 0.99
    first = problem.query(inner_loop.start(meta, tasks), tasks, context())["loss"].mean()
    *_, phi = algorithm.adapt(problem, meta, tasks, context())
    assert problem.query(phi, tasks, context())["loss"].mean() < first


def test_the_gradient_agrees_with_finite_differences_where_the_descent_has_ended() -> None:
    problem, meta, tasks = sinusoids()
    algorithm = IMAML(inner_lr=0.02, inner_steps=100, proximity=10.0, cg_steps=40)
    assert_meta_gradient(algorithm, problem, meta, tasks)


@pytest.mark.parametrize("path", ["reference", "fused"])
def test_every_path_of_a_convolutional_network_gives_the_same(path: ComputePath) -> None:
    task = drawn_images(2)
    algorithm = IMAML(inner_lr=0.1, inner_steps=2, cg_steps=2)
    model = NETS["reptile"].__class__(filters=16, pool="stride", features="flatten")
    meta = exact(algorithm.init(images(model), torch.Generator().manual_seed(0)))
    expected, found = (
        algorithm.update(images(model, each), meta, task, context()).direction.model
        for each in ("batched", path)
    )
    for name, p in expected.items():
        assert (found[name] - p).norm() <= 1e-9 * p.norm(), name


class Counted(Quadratic):
    """Counts the tensors that are held when the query set is predicted for good."""

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        if params["x"].requires_grad:  # and not before adaptation
            gc.collect()
            self.leaf = params["x"].is_leaf
            self.held = sum(isinstance(each, Tensor) for each in gc.get_objects())
        return super().query(params, task, context)


@pytest.mark.ray
def test_memory_does_not_grow_with_the_inner_steps() -> None:
    problem, meta = Counted(), Meta({"x": torch.tensor([0.7])}, {}, {})
    a = torch.tensor([[0.5], [2.0]])
    held = []
    for steps in (3, 3, 30):  # the first one warms up
        algorithm = IMAML(inner_lr=0.1, inner_steps=steps)
        algorithm.update(problem, meta, Task(a, a, a, a), context())  # type: ignore[arg-type]
        held.append(problem.held)
    assert problem.leaf, "nothing of the graph is kept"
    assert held[1] == held[2]


class Watched(Quadratic):
    """Counts whose adapted parameters are held when the query set of another is predicted."""

    path: ComputePath = "reference"  # task by task

    def __init__(self) -> None:
        self.adapted: list[weakref.ref[Tensor]] = []
        self.held: list[int] = []

    def query(self, params: Params, task: Any, context: Context) -> dict[str, Tensor]:
        if params["x"].requires_grad:
            self.held.append(sum(each() is not None for each in self.adapted))
            self.adapted.append(weakref.ref(params["x"]))
        return super().query(params, task, context)


def test_memory_does_not_grow_with_the_tasks_of_a_ticket() -> None:
    problem, meta = Watched(), Meta({"x": torch.tensor([0.7])}, {}, {})
    a = torch.arange(1.0, 6.0)[:, None]
    IMAML(inner_lr=0.1, inner_steps=2).update(problem, meta, Task(a, a, a, a), context())  # type: ignore[arg-type]
    assert len(problem.held) == 5
    assert max(problem.held) <= 1, "that of the task before"


def test_conjugate_gradients_solve_for_each_task() -> None:
    g = torch.Generator().manual_seed(0)
    root = torch.randn(3, 5, 5, generator=g, dtype=torch.float64)
    matrix = root @ root.mT + torch.eye(5, dtype=torch.float64)
    b = torch.randn(3, 5, generator=g, dtype=torch.float64)

    def product(v: Any) -> list[Tensor]:
        whole = torch.cat([part.flatten(1) for part in v], 1)
        found = (matrix @ whole[..., None])[..., 0]
        return [found[:, :4].view(3, 2, 2), found[:, 4:]]

    parts = [b[:, :4].view(3, 2, 2), b[:, 4:]]
    found = conjugate_gradients.solve(product, parts, 20)  # more than it takes
    whole = torch.cat([part.flatten(1) for part in found], 1)
    torch.testing.assert_close(whole, torch.linalg.solve(matrix, b))
    down = conjugate_gradients.solve(lambda v: [-part for part in v], parts, 3)
    assert all(part.abs().max() == 0 for part in down)


def test_episodes_are_refused() -> None:
    algorithm = {"name": "imaml", "inner_lr": 0.1, "inner_steps": 2}
    recipe = config(CASES["maml-navigation"], algorithm=algorithm).recipe()
    with pytest.raises(InputError, match="labelled examples"):
        prepare(recipe)
