"""Every compute path is the same function: what a ticket costs depends on the path, and what it
learns does not.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import context, drawn_images, exact, images
from torch import Tensor, nn

from metatrain.algorithms import MAML, MetaSGD, Prototypical, Reptile
from metatrain.core import ComputePath, Meta, Norm, Params, Task, Update
from metatrain.models import Conv4, heads
from metatrain.problems.supervised import Supervised

NETS = {
    "max-pool": Conv4(filters=16),
    "strided": Conv4(filters=16, pool="stride", features="mean", norm_scale=False),
    "cosine": Conv4(filters=16, pool="stride", head=heads.Cosine()),
    "32 filters": Conv4(filters=32, pool="stride"),
}
ALGORITHMS: dict[str, Any] = {
    "second order": MAML(inner_lr=0.4, inner_steps=2),
    "second order, recomputed": MAML(inner_lr=0.4, inner_steps=2, recompute=True),
    "first order": MAML(inner_lr=0.4, inner_steps=2, first_order=True),
    "ANIL": MAML(inner_lr=0.4, inner_steps=2, adapts=("head.*",)),
    "learned rates": MetaSGD(initial_lr=0.1, inner_steps=2, rates="layer_step"),
    "learned rates, recomputed": MetaSGD(initial_lr=0.1, inner_steps=2, recompute=True),
    "Reptile": Reptile(inner_lr=0.1, inner_steps=3, inner_batch=3, inner_optimizer="sgd"),
    "Reptile with Adam": Reptile(inner_lr=0.001, inner_steps=2, inner_batch=3),
    "prototypes": Prototypical(),
}


def update(algorithm: Any, bound: Supervised, tasks: Task) -> Update:
    meta = exact(algorithm.init(bound, torch.Generator().manual_seed(0)))
    return algorithm.update(bound, meta, tasks, context())


def assert_equal(found: Update, expected: Update) -> None:
    assert found.tasks == expected.tasks
    for here, there in zip(found.direction, expected.direction, strict=True):
        assert here.keys() == there.keys()
        for name, p in there.items():
            assert (here[name] - p).norm() <= 1e-10 * p.norm(), name
    for name, value in expected.metrics.items():
        assert float(found.metrics[name]) == pytest.approx(float(value), rel=1e-10), name


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("net", NETS)
def test_all_paths_give_the_same_update(net: str, name: str) -> None:
    tasks, algorithm = drawn_images(2), ALGORITHMS[name]
    expected = update(algorithm, images(NETS[net], "reference"), tasks)
    for path in ("batched", "fused"):
        assert_equal(update(algorithm, images(NETS[net], path), tasks), expected)


@pytest.mark.parametrize("ways", [2, 5, 20])
@pytest.mark.parametrize("name", ["second order", "second order, recomputed", "first order"])
@pytest.mark.parametrize("net", ["max-pool", "strided"])
def test_from_2_to_20_ways(net: str, name: str, ways: int) -> None:
    tasks, algorithm = drawn_images(1, ways), ALGORITHMS[name]
    expected = update(algorithm, images(NETS[net], "reference", ways), tasks)
    for path in ("batched", "fused"):
        assert_equal(update(algorithm, images(NETS[net], path, ways), tasks), expected)


@pytest.mark.parametrize("path", ["reference", "batched", "fused"])
@pytest.mark.parametrize("net", ["max-pool", "strided"])
@pytest.mark.parametrize(
    "name", ["second order", "second order, recomputed", "first order", "Reptile"]
)
def test_uneven_tickets_add_up_to_the_whole(name: str, net: str, path: ComputePath) -> None:
    """The mean over five tasks is that of two and of three, weighted; mini-batches go by the tasks'
    places, too.
    """
    tasks, algorithm = drawn_images(5), ALGORITHMS[name]
    if isinstance(algorithm, Reptile):
        algorithm = Reptile(
            inner_lr=0.1, inner_steps=3, inner_optimizer="sgd"
        )  # without draws that tickets decide
    bound = images(NETS[net], path)
    whole = update(algorithm, bound, tasks)
    parts = [
        update(algorithm, bound, Task(*(leaf[rows] for leaf in tasks)))
        for rows in (slice(0, 2), slice(2, 5))
    ]
    for name, p in whole.direction.model.items():
        added = sum(part.direction.model[name] * part.tasks / 5 for part in parts)
        assert (added - p).norm() <= 1e-10 * p.norm(), name


@pytest.mark.parametrize("norm", ["transductive", "support", "support+1", "running"])
@pytest.mark.parametrize("path", ["batched", "fused"])
def test_predictions_agree_whoever_the_statistics_are_of(path: ComputePath, norm: Norm) -> None:
    tasks, model = drawn_images(2), NETS["strided"]
    meta = MAML(inner_lr=0.4).init(
        images(model, "reference", norm=norm), torch.Generator().manual_seed(0)
    )
    params = {name: p.double() + 0.1 for name, p in (meta.model | meta.state).items()}
    phi = {name: torch.stack([p, 1.1 * p]) for name, p in params.items()}
    expected = images(model, "reference", norm=norm).predict(phi, tasks, context(work="score"))
    found = images(model, path, norm=norm).predict(phi, tasks, context(work="score"))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_running_statistics_are_seen_past_fused_kernels() -> None:
    tasks = drawn_images(2)
    found = [
        images(NETS["strided"], path, norm="running").statistics(
            {
                name: p.double().expand(2, *p.shape)
                for name, p in images(NETS["strided"], path).init(torch.Generator()).items()
            },
            tasks,
        )
        for path in ("reference", "fused")
    ]
    assert found[0].keys() == found[1].keys() != set()
    for name, p in found[0].items():
        torch.testing.assert_close(found[1][name], p, rtol=1e-10, atol=1e-14)


class Tied:
    """A user's network that uses one parameter under two names."""

    name = "tied"

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        class Net(nn.Module):
            takes_tasks = True

            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Identity()
                self.head = nn.Parameter(torch.ones(outputs))
                self.again = self.head

            def forward(self, x: Tensor) -> Tensor:
                scale = (
                    self.head * self.again
                    if self.head.dim() == 1
                    else (self.head * self.again)[:, None]
                )
                return scale * x.mean((-3, -2, -1))[..., None]

        return Net()


def test_a_parameter_of_two_names_adapts_under_both() -> None:
    tasks, algorithm = drawn_images(2), MAML(inner_lr=0.4)
    found = [update(algorithm, images(Tied(), path), tasks) for path in ("reference", "batched")]
    assert_equal(found[1], found[0])


# The traps of implementations that look right


class LibraryNorm:
    """A user's network that normalises by F.batch_norm itself."""

    name = "library"

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Conv2d(1, 6, 3, 2, bias=False)
                self.scale, self.shift = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))
                self.head = nn.Linear(6, outputs)

            def forward(self, x: Tensor) -> Tensor:
                x = F.batch_norm(self.body(x), None, None, self.scale, self.shift, True)
                return self.head((x**3).mean((2, 3)))

        return Net()


def test_batch_norm_under_vmap_is_right_in_second_order() -> None:
    """grad(vmap(grad)) of it is silently wrong by up to a percent; only the forward pass is ever
    vmapped here.
    """
    tasks, algorithm = drawn_images(3), MAML(inner_lr=0.4, inner_steps=2)
    found = [
        update(algorithm, images(LibraryNorm(), path), tasks) for path in ("reference", "batched")
    ]
    assert_equal(found[1], found[0])


def test_products_on_a_gpu_are_float32() -> None:
    """TF32, cuDNN's default, makes second-order gradients wrong by tens of percent."""
    from cluster.workers.cuda import exact_products

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    exact_products()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("path", ["reference", "batched", "fused"])
def test_float32_is_off_by_no_more_than_a_flipped_choice(path: ComputePath) -> None:
    """Where a ReLU or a maximum decides otherwise, exact implementations differ by percents:
    compare in float64.
    """
    tasks, bound, algorithm = (
        drawn_images(2),
        images(NETS["max-pool"], path),
        MAML(inner_lr=0.4, inner_steps=2),
    )
    meta = algorithm.init(bound, torch.Generator().manual_seed(0))
    single = Task(*(leaf.float() if leaf.is_floating_point() else leaf for leaf in tasks))
    found = algorithm.update(bound, meta, single, context()).direction.model
    expected = update(algorithm, bound, tasks).direction.model
    error, size = (
        torch.cat([p.flatten() for p in params.values()]).norm()
        for params in ({name: found[name] - p for name, p in expected.items()}, expected)
    )
    assert error < 0.05 * size


@pytest.mark.parametrize("path", ["reference", "batched", "fused"])
def test_an_error_in_a_forward_pass_leaves_the_network_as_it_was(path: ComputePath) -> None:
    """functional_call puts parameters into the module for a while."""
    bound = images(NETS["strided"], path)
    own = {name: p.data_ptr() for name, p in bound.module.named_parameters()}
    params: Params = {name: p[None] for name, p in bound.init(torch.Generator()).items()}
    wrong = drawn_images(1)._replace(query_x=torch.rand(1, 4, 3, 28, 28))
    with pytest.raises(RuntimeError):
        bound.predict(params, wrong, context(work="score"))
    assert {name: p.data_ptr() for name, p in bound.module.named_parameters()} == own


def test_betas_of_an_integer_and_a_fraction_are_taken() -> None:
    """Adam refuses (0, 0.999): YAML's 0 becomes 0.0, and so it is written in Reptile."""
    from cases import SINUSOID, config

    from metatrain.learner import Learner

    recipe = config(SINUSOID, outer__options={"betas": [0, 0.999]}).recipe()
    learner = Learner(Meta({"x": torch.ones(2)}, {}, {}), recipe.outer)
    learner.apply([Update(Meta({"x": torch.ones(2)}, {}, {}), 1, {})])
    assert learner.version == 1


def test_first_order_takes_the_query_gradient_at_the_adapted_parameters() -> None:
    """Leaving out create_graph in the support pass alone would still take it at theta's graph, or
    nowhere.
    """
    tasks, bound, algorithm = (
        drawn_images(2),
        images(NETS["strided"], "reference"),
        ALGORITHMS["first order"],
    )
    meta = algorithm.init(bound, torch.Generator().manual_seed(0))
    exact = Meta({name: p.double() for name, p in meta.model.items()}, {}, {})
    *_, phi = algorithm.adapt(bound, exact, tasks, context())
    leaves = {name: p.detach().requires_grad_() for name, p in phi.items()}
    loss = bound.query(leaves, tasks, context())["loss"].mean()
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    found = algorithm.update(bound, exact, tasks, context()).direction.model
    for name, g in expected.items():
        torch.testing.assert_close(found[name], g.sum(0), rtol=1e-10, atol=1e-14)
