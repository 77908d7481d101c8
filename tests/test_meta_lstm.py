"""Meta-LSTM: the paper's equations, exact gradients, and gradient descent as a special case."""

from __future__ import annotations

import math

import pytest
import torch
from cases import context, exact
from gradients import assert_meta_gradient
from torch import Tensor, nn

from metatrain.algorithms import MAML, MetaLSTM
from metatrain.algorithms.coordinates import lstm, lstm_weights, preprocessed
from metatrain.core import Meta, Task
from metatrain.models import MLP
from metatrain.problems.supervised import Supervised
from metatrain.tasks import Sinusoid

FAMILY = Sinusoid(shots=4, queries=3)


def bound(algorithm: MetaLSTM | MAML) -> tuple[Supervised, Meta]:
    problem = FAMILY.bind(MLP(hidden=(5,)), ("none",), "batched")
    return problem, exact(algorithm.init(problem, torch.Generator().manual_seed(0)))


def drawn() -> Task:
    task = FAMILY.sample(torch.Generator().manual_seed(1), 3, "train")
    return Task(*(leaf.double() for leaf in task))


def test_numbers_of_any_size_are_seen_by_their_logarithm_and_sign() -> None:
    least = math.exp(-10)
    found = preprocessed(torch.tensor([1.0, -(math.e**5), least / 2, 0.0, -least / 4]).double())
    expected = torch.tensor([[0, 1], [0.5, -1], [-1, 0.5], [-1, 0], [-1, -0.25]]).double()
    torch.testing.assert_close(found, expected)


def test_the_lstm_is_that_of_torch() -> None:
    weights, theirs = lstm_weights(3, 4, torch.Generator().manual_seed(0)), nn.LSTMCell(3, 4)
    weight, bias = weights["lstm.weight"], weights["lstm.bias"]
    theirs.load_state_dict(
        {
            "weight_ih": weight[:, :3],
            "weight_hh": weight[:, 3:],
            "bias_ih": bias,
            "bias_hh": 0 * bias,
        }
    )
    x, h, c = torch.randn(6, 3), torch.randn(6, 4), torch.randn(6, 4)
    for found, expected in zip(lstm(weights, x, h, c), theirs(x, (h, c)), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("first_order", [True, False])
def test_gates_that_are_held_at_1_and_the_rate_are_gradient_descent(first_order: bool) -> None:
    rate, task = 0.05, drawn()
    ours = MetaLSTM(inner_steps=3, units=2, first_order=first_order)
    problem, meta = bound(ours)
    zero = torch.zeros(4).double()
    gates: dict[str, Tensor] = {
        "forget.weight": zero,
        "forget.bias": torch.tensor(100.0).double(),  # whose sigmoid is 1
        "input.weight": zero,
        "input.bias": torch.tensor(rate, dtype=torch.float64).logit(),
    }
    meta = meta._replace(algorithm=meta.algorithm | gates)
    maml = MAML(inner_lr=rate, inner_steps=3, first_order=first_order)
    plain = meta._replace(algorithm={})
    paths = ours.adapt(problem, meta, task, context()), maml.adapt(problem, plain, task, context())
    for found, expected in zip(*paths, strict=True):
        for name, p in expected.items():
            torch.testing.assert_close(found[name], p, rtol=1e-12, atol=1e-14)
    update = ours.update(problem, meta, task, context())
    expected = maml.update(problem, plain, task, context()).direction.model
    for name, p in expected.items():
        torch.testing.assert_close(update.direction.model[name], p, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("part", ["model", "algorithm"])
def test_the_gradient_through_the_learned_optimizer_agrees_with_finite_differences(
    part: str,
) -> None:
    algorithm = MetaLSTM(inner_steps=2, units=3, first_order=False)
    problem, meta = bound(algorithm)
    assert_meta_gradient(algorithm, problem, meta, drawn(), part, h=1e-5)


def test_of_first_order_the_optimizers_gradient_is_exact_for_one_step() -> None:
    """The inner gradient at the start does not depend on the optimizer."""
    algorithm = MetaLSTM(inner_steps=1, units=3)
    problem, meta = bound(algorithm)
    found = assert_meta_gradient(algorithm, problem, meta, drawn(), "algorithm", h=1e-5)
    assert all(bool(p.any()) for name, p in found.items() if name != "input.weight")


def test_gates_start_as_in_the_paper_and_the_order_of_examples_changes_nothing() -> None:
    algorithm, task = MetaLSTM(inner_steps=2), drawn()
    problem, meta = bound(algorithm)
    assert 0.98 < meta.algorithm["forget.bias"].sigmoid() < 1
    assert 0.006 < meta.algorithm["input.bias"].sigmoid() < 0.02
    turned = task._replace(support_x=task.support_x.flip(1), support_y=task.support_y.flip(1))
    *_, one = algorithm.adapt(problem, meta, task, context())
    *_, other = algorithm.adapt(problem, meta, turned, context())
    for name, p in one.items():
        torch.testing.assert_close(other[name], p, rtol=1e-10, atol=1e-12)
