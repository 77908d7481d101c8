"""Parameters that are generated from a support set: exact gradients, and plain descent or a plain
network as the start of training.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import context, drawn_images, exact, images
from gradients import assert_meta_gradient
from torch.nn.functional import cross_entropy

from metatrain.algorithms import MAML, GeneratedParameters, MetaNetworks
from metatrain.core import InputError, Meta
from metatrain.models import MLP, Conv4, heads
from metatrain.models.fast import FastLayer
from metatrain.tasks import GaussianProcess, Sinusoid

FAST = Conv4(filters=4, pool="stride", features="mean", head=heads.Fast())
NET = Conv4(filters=4, pool="stride", features="mean")


def started(algorithm: Any, problem: Any) -> Meta:
    return exact(algorithm.init(problem, torch.Generator().manual_seed(0)))


def moved(meta: Meta) -> Meta:
    """The same with other numbers of the algorithm's own, of which many start at zero."""
    g = torch.Generator().manual_seed(4)
    noise = {
        name: p + 0.1 * torch.randn(p.shape, generator=g, dtype=p.dtype)
        for name, p in meta.algorithm.items()
    }
    return meta._replace(algorithm=noise)


def test_generation_starts_as_maml_and_then_gives_each_task_parameters_of_its_own() -> None:
    problem, tasks = images(NET), drawn_images()
    ours = GeneratedParameters(inner_lr=0.1, inner_steps=2, units=3)
    meta = started(ours, problem)
    first, *rest = ours.adapt(problem, meta, tasks, context())
    maml = MAML(inner_lr=0.1, inner_steps=2)
    plain = maml.adapt(problem, meta._replace(algorithm={}), tasks, context())
    for found, expected in zip(rest, plain, strict=True):
        assert all(torch.equal(found[name], p) for name, p in expected.items())
    _, generated, *_ = ours.adapt(problem, moved(meta), tasks, context())
    changed = {name for name, p in generated.items() if not torch.equal(p, first[name])}
    assert changed == {"head.weight", "head.bias"}
    assert not torch.equal(*generated["head.weight"])


@pytest.mark.parametrize("part", ["model", "algorithm"])
def test_the_gradient_through_generation_agrees_with_finite_differences(part: str) -> None:
    family = Sinusoid(shots=4, queries=3)
    problem = family.bind(MLP(hidden=(5,)), ("none",), "batched")
    algorithm = GeneratedParameters(inner_lr=0.1, inner_steps=2, units=3, generates=("*",))
    task = family.sample(torch.Generator().manual_seed(1), 3, "train")
    tasks = type(task)(*(leaf.double() for leaf in task))
    assert_meta_gradient(algorithm, problem, moved(started(algorithm, problem)), tasks, part)


def test_targets_that_are_read_may_have_fewer_numbers_than_a_density_has_buckets() -> None:
    family = GaussianProcess(shots=(4, 4), queries=3, buckets=6)
    problem = family.bind(MLP(hidden=(5,)), ("none",), "batched")
    algorithm = GeneratedParameters(inner_lr=0.1, units=3)
    meta = algorithm.init(problem, torch.Generator().manual_seed(0))
    task = family.sample(torch.Generator().manual_seed(1), 3, "train")
    update = algorithm.update(problem, meta, task, context())
    assert all(bool(p.isfinite().all()) for p in update.direction.flat().values())


@pytest.mark.parametrize("part", ["model", "algorithm"])
def test_the_gradient_through_fast_weights_agrees_with_finite_differences(part: str) -> None:
    algorithm = MetaNetworks(units=3, examples=2, first_order=False)
    problem = images(FAST)
    meta = moved(started(algorithm, problem))
    assert_meta_gradient(algorithm, problem, meta, drawn_images(), part)


def test_of_first_order_the_gradient_of_what_makes_fast_weights_is_exact() -> None:
    algorithm, problem = MetaNetworks(units=3, examples=2), images(FAST)
    meta = moved(started(algorithm, problem))
    assert_meta_gradient(algorithm, problem, meta, drawn_images(), "algorithm")


def test_fast_weights_start_at_zero_beside_a_plain_network() -> None:
    algorithm, problem, tasks = MetaNetworks(units=3), images(FAST), drawn_images()
    meta = started(algorithm, problem)
    _, phi = algorithm.adapt(problem, meta, tasks, context())
    plain = images(NET)
    params = {
        name: p[None].expand(2, *p.shape) for name, p in meta.model.items() if name != "head.scale"
    }
    found, expected = (
        each.predict(values, tasks, context()) for each, values in ((problem, phi), (plain, params))
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_heads_fast_weights_come_from_the_gradient_of_each_example() -> None:
    """The perceptron as the identity on small gradients: W* is then each example's gradient."""
    algorithm, problem, tasks = MetaNetworks(units=1), images(FAST), drawn_images()
    meta = started(algorithm, problem)
    own = {
        "fast.in.weight": torch.tensor([[0.0, 1.0]]),
        "fast.in.bias": torch.tensor([2.0]),
        "fast.out.weight": torch.tensor([1.0]),
    }
    meta = meta._replace(algorithm=meta.algorithm | {n: p.double() for n, p in own.items()})
    _, phi = algorithm.adapt(problem, meta, tasks, context())
    features, _ = problem.embed(phi, tasks, context())
    for i in range(features.shape[1]):
        weight = meta.model["head.weight"].clone().requires_grad_()
        loss = cross_entropy(
            weight @ features[0, i] + meta.model["head.bias"], tasks.support_y[0, i]
        )
        (slope,) = torch.autograd.grad(loss, weight)
        torch.testing.assert_close(phi["head.fast"][0, i, :, :-1], 2 + slope.sign())


def test_a_fast_head_is_the_papers_sum_for_one_task_and_for_several() -> None:
    layer, (x, support) = FastLayer(7, 3), torch.randn(2, 2, 6, 7).double()
    fast, weight, bias = (torch.randn(2, *shape).double() for shape in ((6, 3, 8), (3, 7), (3,)))
    params = {"support": support, "fast": fast, "weight": weight, "bias": bias}
    params["scale"] = torch.tensor([3.0, 0.5]).double()
    found = torch.func.functional_call(layer, params, (x,))
    for t in range(2):
        for n in range(6):
            cosine = torch.cosine_similarity(x[t, n], support[t], dim=-1)
            mixed = torch.einsum("s,scf->cf", (params["scale"][t] * cosine).softmax(-1), fast[t])
            expected = (weight[t] + mixed[:, :-1]) @ x[t, n] + bias[t] + mixed[:, -1]
            torch.testing.assert_close(found[t, n], expected)
        one = {name: p[t] for name, p in params.items()}
        alone = torch.func.functional_call(layer, one, (x[t],))
        torch.testing.assert_close(alone, found[t])


@pytest.mark.parametrize(
    ("algorithm", "model", "remedy"),
    [
        (GeneratedParameters(inner_lr=0.1), Conv4(head=heads.Memory()), "head.name to linear"),
        (MetaNetworks(), Conv4(), "head.name fast"),
    ],
)
def test_a_network_without_such_a_head_is_refused(algorithm: Any, model: Any, remedy: str) -> None:
    with pytest.raises(InputError) as error:
        algorithm.init(images(model), torch.Generator())
    assert remedy in error.value.remedy
