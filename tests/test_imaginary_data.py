"""Made images in support sets: without any they are prototypical networks, and each of the three
networks descends its own loss.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, GLYPHS, config, context, drawn_images, exact, images
from torch import Tensor

from metatrain import inference
from metatrain.algorithms import ImaginaryData, Prototypical, image_maker
from metatrain.core import ComputePath, InputError, Meta, Params
from metatrain.models import MLP, Conv4
from metatrain.problems.supervised import Supervised
from metatrain.start import prepare

NET = MLP(hidden=(6,))


def pixels(*args: Any, **named: Any) -> Supervised:
    problem: Supervised = images(*args, **named)
    problem.pixels = True
    return problem


def start(problem: Supervised, algorithm: ImaginaryData) -> Meta:
    """Parameters whose generator is no longer the identity."""
    meta = exact(algorithm.init(problem, torch.Generator().manual_seed(0)))
    g = torch.Generator().manual_seed(3)
    moved = {n: p + 0.05 * torch.randn(p.shape, generator=g) for n, p in meta.algorithm.items()}
    return meta._replace(algorithm=moved)


def test_without_made_images_they_are_prototypical_networks_to_the_bit() -> None:
    problem = pixels(Conv4(filters=4, pool="stride"), norm="running")
    problem.to_float = lambda x: x.float() / 255
    g, drawn = torch.Generator().manual_seed(0), drawn_images()
    x = torch.randint(256, (2, *drawn.support_x.shape), generator=g, dtype=torch.uint8)
    tasks = drawn._replace(support_x=x[0], query_x=x[1])
    none = ImaginaryData(made=0)
    meta = none.init(problem, torch.Generator().manual_seed(0))
    base = Prototypical().init(problem, torch.Generator().manual_seed(0))
    found = none.update(problem, meta, tasks, context())
    expected = Prototypical().update(problem, base, tasks, context())
    assert found.metrics == expected.metrics
    for here, there in ((meta, base), (found.direction, expected.direction)):
        for part in ("model", "state"):
            for name, p in getattr(there, part).items():
                assert torch.equal(getattr(here, part)[name], p), name
    assert all(not p.any() for p in found.direction.algorithm.values())


def test_the_generator_starts_near_the_identity_and_each_pixel_has_a_slope() -> None:
    problem, x = pixels(NET), drawn_images().support_x.float()
    meta = ImaginaryData().init(problem, torch.Generator().manual_seed(0))
    black = x.round().requires_grad_()
    made = image_maker.make(meta.algorithm, black, torch.Generator())
    torch.testing.assert_close(made, black, atol=0.02, rtol=0)
    (slope,) = torch.autograd.grad(made.sum(), black)
    assert bool((slope > 0.01).all())


@pytest.mark.parametrize("sides", [(28, 28), (7, 9), (1, 1)])
def test_made_images_are_in_the_range_and_of_the_shape_of_real_ones(sides: Any) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 2, *sides, generator=g)
    weights = image_maker.fresh(2, 4, 3, g)
    wild = {name: 10 * torch.randn(p.shape, generator=g) for name, p in weights.items()}
    made, again = (image_maker.make(wild, x, g) for _ in range(2))
    assert made.shape == x.shape
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    assert sides == (1, 1) or not torch.equal(made, again)  # noise of its own


@pytest.mark.parametrize("path", ["batched", "fused"])
def test_each_network_descends_the_loss_that_is_written(path: ComputePath) -> None:
    algorithm = ImaginaryData(made=2, adversarial=0.3, noise=2, filters=3)
    problem, task = pixels(Conv4(filters=16, pool="stride"), path), drawn_images(shots=2)
    meta = start(problem, algorithm)
    update = algorithm.update(problem, meta, task, context())

    # The same losses, of leaves of each network by itself.
    g = context().generator  # an update draws from it in this order
    theta = leaves(meta.model)
    maker = leaves(meta.algorithm, image_maker.GENERATOR)
    judge = leaves(meta.algorithm, image_maker.DISCRIMINATOR)
    x, y = task.support_x, task.support_y
    made = image_maker.make(maker, torch.cat([x, x], 1), g)
    plain = pixels(Conv4(filters=16, pool="stride"))
    shared = {name: p.expand(2, *p.shape) for name, p in theta.items()}
    larger = task._replace(support_x=torch.cat([x, made], 1), support_y=y.repeat(1, 3))
    features, classes = plain.embed(shared, larger, context())
    centres = classes.mT @ features / classes.sum(1)[..., None]
    queries = plain.embed(shared, task._replace(support_x=task.query_x), context())[0]
    loss = F.cross_entropy(-torch.cdist(queries, centres).square().mT, task.query_y)
    made_once = image_maker.make(maker, x, g)
    others = same_class(task.query_x, y, task.query_y, g)
    share = torch.rand((2, 6, 1, 1, 1), generator=g).double()
    fooled = -image_maker.realness(judge, x, made_once).mean()
    told = image_maker.realness(judge, x, made_once.detach()).mean()
    told = told - image_maker.realness(judge, x, others).mean()
    between = (made_once + share * (others - made_once)).detach().requires_grad_()
    slope = torch.autograd.grad(
        image_maker.realness(judge, x, between).sum(), between, create_graph=True
    )[0]
    told = told + 10 * (slope.flatten(0, 1).flatten(1).norm(dim=1) - 1).square().mean()

    assert float(update.metrics["loss_after"]) == pytest.approx(loss.item(), rel=1e-6)
    assert_gradient(update.direction.model, loss, theta)
    assert_gradient(update.direction.algorithm, loss + 0.3 * fooled, maker)
    assert_gradient(update.direction.algorithm, told, judge)
    assert float(update.metrics["generator_loss"]) == pytest.approx(fooled.item())
    assert float(update.metrics["discriminator_loss"]) == pytest.approx(told.item())


def leaves(params: Params, prefix: str = "") -> Params:
    return {n: p.clone().requires_grad_() for n, p in params.items() if n.startswith(prefix)}


def same_class(query: Tensor, y: Tensor, query_y: Tensor, g: torch.Generator) -> Tensor:
    """For each support example the query example of its class that has drawn the highest number."""
    drawn = torch.rand(len(y), y.shape[1], query_y.shape[1], generator=g)
    best = [
        [max((q for q in range(len(of)) if of[q] == c), key=lambda q: draws[i, q]) for i, c in own]
        for own, of, draws in zip(map(enumerate, y), query_y, drawn, strict=True)
    ]
    return torch.stack([query[t, rows] for t, rows in enumerate(best)])


def assert_gradient(found: Params, loss: Tensor, of: Params) -> None:
    expected = torch.autograd.grad(loss, list(of.values()), retain_graph=True)
    for name, p in zip(of, expected, strict=True):
        torch.testing.assert_close(found[name], p, rtol=1e-6, atol=1e-9)


def test_running_statistics_are_of_made_images_as_well() -> None:
    problem, task = pixels(Conv4(filters=4, pool="stride"), norm="running"), drawn_images()
    algorithm = ImaginaryData(noise=2, filters=3)
    meta = exact(algorithm.init(problem, torch.Generator().manual_seed(0)))
    found = algorithm.update(problem, meta, task, context()).direction.state
    x = task.support_x
    twice = problem.statistics(
        {name: p.expand(2, *p.shape) for name, p in meta.model.items()},
        task._replace(support_x=torch.cat([x, torch.sigmoid(8 * x - 4)], 1)),
    )
    for name, p in meta.state.items():
        torch.testing.assert_close(found[name], torch.lerp(p, twice[name], 0.1))


def test_a_ticket_makes_the_same_images_again_and_another_one_others() -> None:
    algorithm = ImaginaryData(noise=2, filters=3)
    problem, task = pixels(NET), drawn_images()
    meta = start(problem, algorithm)

    def heads(seed: int) -> Tensor:
        *_, phi = algorithm.adapt(problem, meta, task, context(seed, "score"))
        return phi["head.weight"]

    assert torch.equal(heads(0), heads(0))
    assert not torch.equal(heads(0), heads(1))


def test_tasks_without_images_are_refused() -> None:
    rows = Supervised(
        model=NET, inputs=(4,), outputs=2, loss=F.cross_entropy, metrics={}, norm=("none",),
        path="reference", classes=True,
    )  # fmt: skip
    with pytest.raises(InputError) as error:
        ImaginaryData().init(rows, torch.Generator())
    assert error.value.what == "imaginary_data makes images in 0..1, and these tasks have none"
    assert error.value.remedy == "set algorithm.name to prototypical"


@pytest.mark.ray  # takes two seconds
@pytest.mark.usefixtures("pictures")
def test_a_picture_shows_what_is_made_below_what_it_is_made_of() -> None:
    recipe = config(CASES["imaginary-data"]).recipe()
    meta = prepare(recipe).meta
    bias = "generator.out.bias"
    for level in (-99.0, 99.0):
        changed = meta.algorithm | {bias: torch.full_like(meta.algorithm[bias], level)}
        figure = inference.illustrate_made(recipe, meta._replace(algorithm=changed))
        assert figure is not None
        shown = [axes.images[0].get_array() for axes in figure.axes]
        assert len(shown) == 5 * (1 + inference.learned.EACH)
        assert all(image.min() < image.max() for image in shown[:5])
        assert all((image == (255 if level > 0 else 0)).all() for image in shown[5:])
    other = config(GLYPHS).recipe()
    assert inference.illustrate_made(other, prepare(other).meta) is None
