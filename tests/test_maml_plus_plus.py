"""MAML++: MAML to the bit without its extras, exact meta-gradients with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import GLYPHS, config, context, drawn_images, exact, images
from gradients import assert_meta_gradient
from test_maml import NETS

from metatrain.algorithms import IMAML, MAML, MAMLPlusPlus
from metatrain.core import ComputePath, Context, InputError, Meta, Norm, Params, Ticket, Update
from metatrain.start import prepare

PLAIN: dict[str, Any] = {"inner_lr": 0.4, "learns_rates": False, "multi_step_epochs": 0}


def start(algorithm: Any, problem: Any) -> Meta:
    """Where it starts, with differences between the steps."""
    meta = exact(algorithm.init(problem, torch.Generator().manual_seed(0)))
    g = torch.Generator().manual_seed(3)
    for p in meta.algorithm.values():
        p.add_(torch.randn(p.shape, generator=g, dtype=p.dtype), alpha=0.05)
    return meta


@pytest.mark.parametrize("path", ["batched", "reference"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_without_its_extras_it_is_maml_to_the_bit(
    path: ComputePath, first_order: bool, recompute: bool
) -> None:
    problem, task = images(NETS["maml"], path), drawn_images(3)
    maml = MAML(inner_lr=0.4, inner_steps=3, first_order=first_order, recompute=recompute)
    plain = MAMLPlusPlus(
        **PLAIN, inner_steps=3, first_order_epochs=int(first_order), recompute=recompute
    )
    meta = maml.init(problem, torch.Generator().manual_seed(0))
    assert plain.init(problem, torch.Generator().manual_seed(0)).flat().keys() == meta.flat().keys()
    expected, found = (each.update(problem, exact(meta), task, context()) for each in (maml, plain))
    assert all(
        torch.equal(p, found.direction.model[n]) for n, p in expected.direction.model.items()
    )
    assert {k: float(v) for k, v in found.metrics.items()} == {
        k: float(v) for k, v in expected.metrics.items()
    }
    for phi, other in zip(
        maml.adapt(problem, exact(meta), task, context()),
        plain.adapt(problem, exact(meta), task, context()),
        strict=True,
    ):
        assert all(torch.equal(p, other[name]) for name, p in phi.items())


def test_the_weights_of_the_losses_anneal_to_the_last_step_and_orders_to_the_second() -> None:
    algorithm = MAMLPlusPlus(
        inner_lr=0.1, inner_steps=4, epoch_steps=10, multi_step_epochs=5, first_order_epochs=3
    )
    weights, order = algorithm.phase(0)
    assert weights == (0.0, 0.25, 0.25, 0.25, 0.25)
    assert order == 1
    assert algorithm.phase(9) == algorithm.phase(0) != algorithm.phase(10)
    weights, order = algorithm.phase(40)
    assert weights == pytest.approx((0.0, 0.05, 0.05, 0.05, 0.85))
    assert order == 2
    assert algorithm.phase(50) == algorithm.phase(99) == (None, 2)


def at(step: int) -> Context:
    return context()._replace(ticket=Ticket("update", "train", step, 0))


@pytest.mark.parametrize("part", ["model", "algorithm"])
@pytest.mark.parametrize("norm", ["transductive", "support"])
def test_the_meta_gradient_agrees_with_finite_differences(part: str, norm: Norm) -> None:
    """Of theta, of the rates, and of the values that normalisations have at each step."""
    problem, task = images(NETS["reptile"], "batched", norm=norm), drawn_images(2)
    algorithm = MAMLPlusPlus(
        inner_lr=0.3, inner_steps=2, per_step=("*.norm.*",), multi_step_epochs=0
    )
    gradient = assert_meta_gradient(
        algorithm, problem, start(algorithm, problem), task, part, h=1e-7
    )
    assert all(g.abs().max() > 0 for g in gradient.values())
    if part == "algorithm":
        assert {name for name in gradient if name.startswith("step.")} == {
            f"step.{k}.body.{i}.norm.{own}"
            for k in (1, 2)
            for i in range(4)
            for own in ("scale", "shift")
        }
        assert not any("norm" in name for name in gradient if name.startswith("rate."))


def test_with_equal_weights_the_loss_is_the_mean_over_the_steps_after_adaptation() -> None:
    problem, task = images(NETS["maml"], "batched"), drawn_images(2)
    algorithm = MAMLPlusPlus(inner_lr=0.3, inner_steps=3, multi_step_epochs=1)
    meta = start(algorithm, problem)
    # `every_step` of the helper is the mean over all steps but the one before adaptation here.
    assert_meta_gradient(
        algorithm,
        problem,
        meta,
        task,
        adapt=lambda moved: list(algorithm.adapt(problem, moved, task, context()))[1:],
        every_step=True,
        h=1e-7,
    )


def test_each_step_has_its_own_values_and_they_do_not_adapt() -> None:
    problem, task = images(NETS["maml"], "batched"), drawn_images(2)
    algorithm = MAMLPlusPlus(inner_lr=0.3, inner_steps=2, per_step=("*.norm.*",))
    meta = start(algorithm, problem)
    name = "body.0.norm.shift"
    for k, phi in enumerate(algorithm.adapt(problem, meta, task, context())):
        later = meta.algorithm[f"step.{k}.{name}"] if k else 0.0
        assert torch.equal(phi[name], (meta.model[name] + later).expand(2, -1))


@pytest.mark.parametrize("path", ["batched", "fused"])
def test_each_step_has_its_own_running_statistics(path: ComputePath) -> None:
    """They move towards those of the adapted network, and predictions use them."""
    model = {**GLYPHS["model"], "filters": 16 if path == "fused" else 4}
    tree = config(
        GLYPHS,
        norm="running",
        model=model,
        algorithm={"name": "maml_plus_plus", "inner_lr": 0.4, "inner_steps": 2}
        | {"per_step": ["*.norm.*"]},
    )
    prepared = prepare(tree.recipe())
    problem, meta, algorithm = (
        prepared.bind(next(iter(prepared.settings)), path),
        prepared.meta,
        prepared.recipe.algorithm,
    )
    setting = next(iter(prepared.settings.values()))
    task = setting.family.sample(torch.Generator().manual_seed(1), 2, "train")
    moved = algorithm.update(problem, meta, task, at(0)).direction.state
    assert moved.keys() == meta.state.keys()
    name = "body.2.norm.mean"
    keys = [name, f"own.1.{name}", f"own.2.{name}"]
    for key, phi in zip(keys, algorithm.adapt(problem, meta, task, at(0)), strict=True):
        expected = 0.9 * meta.state[key] + 0.1 * problem.statistics(phi, task)[name]
        torch.testing.assert_close(moved[key], expected)
    assert not torch.allclose(moved[keys[1]], moved[keys[2]], rtol=1e-3)
    score = context(work="score")
    for key, phi in zip(
        keys, algorithm.adapt(problem, meta._replace(state=moved), task, score), strict=True
    ):
        assert torch.equal(phi[name][0], moved[key])


@pytest.mark.parametrize(
    "algorithm",
    [
        MAMLPlusPlus(inner_lr=0.3, inner_steps=2, per_step=("*.norm.*",)),
        IMAML(inner_lr=0.1, inner_steps=3, cg_steps=2),
    ],
)
def test_neither_the_order_of_the_support_set_nor_that_of_the_classes_matters(
    algorithm: Any,
) -> None:
    problem, task = images(NETS["maml"], "batched"), drawn_images(2)
    meta = start(algorithm, problem)
    expected = algorithm.update(problem, meta, task, context()).direction.model
    order, classes = torch.tensor([5, 0, 3, 1, 4, 2]), torch.tensor([2, 0, 1])  # old -> new

    def renamed(params: Params, back: bool = False) -> Params:
        """With the rows of the head where the classes are now, or where they were."""
        rows = classes if back else classes.argsort()
        return {n: p[rows] if n.startswith("head.") else p for n, p in params.items()}

    moved = task._replace(
        support_x=task.support_x[:, order],
        support_y=classes[task.support_y[:, order]],
        query_y=classes[task.query_y],
    )
    own = meta._replace(model=renamed(meta.model))
    found = renamed(algorithm.update(problem, own, moved, context()).direction.model, back=True)
    for name, p in expected.items():
        torch.testing.assert_close(found[name], p, rtol=1e-9, atol=1e-12)


def test_what_never_adapts_is_refused() -> None:
    problem = images(NETS["maml"], "batched")
    with pytest.raises(InputError) as error:
        MAMLPlusPlus(inner_lr=0.1, per_step=("*",)).init(problem, torch.Generator())
    assert (error.value.what, error.value.got) == ("per_step", ["*"])
    with pytest.raises(InputError) as error:
        MAMLPlusPlus(inner_lr=0.1, per_step=("*.nrom.*",)).init(problem, torch.Generator())
    assert (error.value.what, error.value.got) == ("a pattern of per_step", "*.nrom.*")


def test_an_update_of_a_step_is_that_of_its_phase() -> None:
    problem, task = images(NETS["maml"], "batched"), drawn_images(2)
    algorithm = MAMLPlusPlus(inner_lr=0.3, inner_steps=2, epoch_steps=10, multi_step_epochs=2)
    meta = start(algorithm, problem)

    def update(step: int) -> Update:
        return algorithm.update(problem, meta, task, at(step))

    first, same, later = (update(step).direction.model["head.bias"] for step in (0, 9, 10))
    assert torch.equal(first, same)
    assert not torch.allclose(first, later)
