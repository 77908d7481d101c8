"""Normalisation statistics are what their names say, on both compute paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import context
from torch import nn

from metatrain.algorithms import MAML
from metatrain.core import ComputePath, InputError, Meta, Norm, Task
from metatrain.evaluate import scores
from metatrain.metrics import accuracy, cross_entropy, mean_squared_error
from metatrain.models import MLP, Conv4
from metatrain.models.normalisation import BatchStatistics
from metatrain.problems.supervised import Supervised


def problem(
    norm: tuple[Norm, ...], path: ComputePath = "reference", model: Conv4 | MLP | None = None
) -> Supervised:
    return Supervised(
        model=model or Conv4(filters=4, pool="stride"),
        inputs=(1, 28, 28),
        outputs=3,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        norm=norm,
        path=path,
    )


def setup(bound: Supervised) -> tuple[dict[str, torch.Tensor], Task]:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(2, 2, 6, 1, 28, 28, generator=g, dtype=torch.float64)
    y = torch.arange(3).repeat_interleave(2).expand(2, 6)
    params = bound.init(torch.Generator().manual_seed(0))
    return {k: p.double().expand(2, *p.shape) for k, p in params.items()}, Task(x[0], y, x[1], y)


@pytest.mark.parametrize("path", ["reference", "batched"])
def test_support_plus_one_is_one_forward_pass_per_query_example(path: ComputePath) -> None:
    bound = problem(("support+1",), path)
    params, task = setup(bound)
    found = bound.predict(params, task, context())
    transductive = problem(("transductive",))
    for t in range(2):
        one = {name: p[t : t + 1] for name, p in params.items()}
        for q in range(6):
            x = torch.cat([task.support_x[t], task.query_x[t, q : q + 1]])[None]
            expected = transductive.predict(one, Task(x, x, x, x), context())[0, -1]
            torch.testing.assert_close(found[t, q], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ["reference", "batched"])
def test_support_statistics_make_query_predictions_independent_of_each_other(
    path: ComputePath,
) -> None:
    bound = problem(("support",), path)
    params, task = setup(bound)
    everyone = bound.predict(params, task, context())
    alone = bound.predict(params, task._replace(query_x=task.query_x[:, 2:3]), context())
    torch.testing.assert_close(everyone[:, 2:3], alone, rtol=1e-9, atol=1e-12)
    # and on the support set itself they are what adaptation saw
    same = bound.predict(params, task._replace(query_x=task.support_x), context())
    as_adapted = task._replace(query_x=task.support_x)
    adapted = problem(("transductive",)).predict(params, as_adapted, context())
    torch.testing.assert_close(same, adapted, rtol=1e-9, atol=1e-12)


def test_transductive_statistics_are_those_of_the_query_set() -> None:
    bound = problem(("transductive",))
    params, task = setup(bound)
    found = bound.predict(params, task, context())
    by_query = task._replace(support_x=task.query_x, query_x=task.query_x[:, 1:])
    expected = problem(("support",)).predict(params, by_query, context())
    torch.testing.assert_close(found[:, 1:], expected, rtol=1e-9, atol=1e-12)
    others = bound.predict(params, task._replace(support_x=task.query_x), context())
    assert torch.equal(found, others)
    fewer = bound.predict(params, by_query, context())
    assert (fewer - found[:, 1:]).abs().max() > 1e-3


def test_a_problem_predicts_with_each_of_its_norms_and_learns_with_the_first() -> None:
    bound = problem(("transductive", "support+1"))
    params, task = setup(bound)
    learned = bound.query(params, task, context())
    assert set(learned) == {"loss", "accuracy"}
    for norm in ("transductive", "support+1"):
        found = bound.judge(bound.predict(params, task, context(), norm), task)
        alone = problem((norm,)).query(params, task, context())
        assert torch.equal(found["loss"], alone["loss"])
        assert torch.equal(found["accuracy"], alone["accuracy"])
        assert torch.equal(found["loss"], learned["loss"]) == (norm == "transductive")


class Standardised:
    """A network that gives its one input as its normalisation leaves it."""

    name = "standardised"

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        net = nn.Sequential()
        net.add_module("body", BatchStatistics(1, eps=1e-9))
        net.add_module("head", nn.Linear(1, 1))
        return net


@pytest.mark.parametrize(
    ("norm", "mean", "variance"),
    [
        ("transductive", [6.0] * 4, [20.0] * 4),  # of 0, 4, 8 and 12
        ("support", [1.0] * 4, [1.0] * 4),  # of 0 and 2
        # of 0 and 2, and of one of 0, 4, 8 and 12
        ("support+1", [2 / 3, 2.0, 10 / 3, 14 / 3], [8 / 9, 8 / 3, 104 / 9, 248 / 9]),
        ("running", [2.0] * 4, [4.0] * 4),  # what training tracked
    ],
)
def test_each_norm_scores_a_constructed_task_as_by_hand(
    norm: Norm, mean: list[float], variance: list[float]
) -> None:
    query = torch.tensor([0.0, 4.0, 8.0, 12.0])
    support = torch.tensor([0.0, 2.0])
    task = Task(*(x.view(1, -1, 1) for x in (support, 0 * support, query, 0 * query)))
    bound = Supervised(
        model=Standardised(),
        inputs=(1,),
        outputs=1,
        loss=mean_squared_error,
        metrics={"mse": mean_squared_error},
        norm=(norm,),
        path="reference",
    )
    params = {"body.scale": torch.ones(1), "body.shift": torch.zeros(1)}
    params |= {"head.weight": torch.ones(1, 1), "head.bias": torch.zeros(1)}
    state = {"body.mean": torch.tensor([2.0]), "body.variance": torch.tensor([4.0])}
    meta = Meta(params, {}, state if norm == "running" else {})
    found = scores(bound, MAML(inner_lr=0.1), meta, task, context(work="score"))
    expected = (query - torch.tensor(mean)).square() / torch.tensor(variance)
    assert found.curves[norm]["mse"][0, 0].item() == pytest.approx(expected.mean().item())


def test_paths_agree() -> None:
    params, task = setup(problem(("transductive",)))
    predictions = [
        problem(("transductive",), path).predict(params, task, context())
        for path in ("reference", "batched")
    ]
    torch.testing.assert_close(*predictions, rtol=1e-10, atol=1e-12)


def test_no_statistics_where_the_model_has_none() -> None:
    assert problem(("transductive",), model=MLP(hidden=(4,))).norm == ("none",)
    assert problem(("none",), model=Conv4(norm="none")).norm == ("none",)
    with pytest.raises(InputError, match="norm is 'none' but the model normalises"):
        problem(("none",))


def test_init_is_a_function_of_its_generator_and_leaves_global_randomness_alone() -> None:
    bound = problem(("transductive",))
    before = torch.get_rng_state()
    first, second, other = (bound.init(torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert torch.equal(before, torch.get_rng_state())
