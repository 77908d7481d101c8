"""Relation networks: with a fixed distance as their relation they are prototypical networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import context, drawn_images, exact, images
from gradients import assert_meta_gradient
from torch import Tensor, nn
from torch.func import functional_call

from metatrain.algorithms import Matching, Prototypical, Relation
from metatrain.algorithms.relation import squared_error
from metatrain.core import ComputePath, InputError, Meta, Norm
from metatrain.models import MLP, Conv, heads
from metatrain.models.relation import RelationLayer

WAYS = 3
MAPS = Conv(filters=(16, 16, 16), pool="stride", head=heads.Pairs(filters=16))


class Distance(nn.Module):
    """Minus the squared distance of a pair."""

    takes_tasks = True

    def forward(self, pairs: Tensor) -> Tensor:
        c, x = pairs.chunk(2, -1)
        return -(x - c).square().sum(-1, keepdim=True)


@dataclass(frozen=True)
class Fixed:
    """A head whose relation is that distance."""

    def module(self, linear: nn.Linear, feedback: int, shape: Any) -> nn.Module:
        return RelationLayer(linear.in_features, linear.out_features, Distance())


def start(algorithm: Any, problem: Any) -> Meta:
    return exact(algorithm.init(problem, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("path", ["reference", "batched"])
def test_with_a_fixed_distance_they_are_prototypical_networks(path: ComputePath) -> None:
    task, found = drawn_images(shots=2), []
    for algorithm, head in ((Matching(), Fixed()), (Prototypical(), heads.LINEAR)):
        problem = images(MLP(hidden=(6,), head=head), path)  # type: ignore[arg-type]
        meta = start(algorithm, problem)
        adapt = Relation().adapt if head != heads.LINEAR else Prototypical().adapt
        *_, phi = adapt(problem, meta, task, context())
        logits = problem.predict(phi, task, context()).softmax(-1)
        found.append((logits, algorithm.update(problem, meta, task, context()).direction.model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ["reference", "batched", "fused"])
def test_loss_and_gradient_are_the_papers_equations(path: ComputePath) -> None:
    problem, task = images(MAPS, path), drawn_images(shots=2)
    meta = start(Relation(), problem)
    update = Relation().update(problem, meta, task, context())
    leaves = {name: p.clone().requires_grad_() for name, p in meta.model.items()}
    module = images(MAPS).module
    body, scores = module.get_submodule("body"), module.get_submodule("head.scores")
    of = {
        part: {n.removeprefix(part): p for n, p in leaves.items() if n.startswith(part)}
        for part in ("body.", "head.scores.")
    }
    losses = []
    for t in range(2):
        support, query = (
            functional_call(body, of["body."], (x[t],)).view(-1, 16, 4, 4)
            for x in (task.support_x, task.query_x)
        )
        c = torch.stack([support[task.support_y[t] == k].mean(0) for k in range(WAYS)])
        pairs = torch.stack([torch.cat([ck, x]) for x in query for ck in c])
        r = functional_call(scores, of["head.scores."], (pairs.flatten(1),)).view(-1, WAYS)
        wanted = torch.zeros(len(r), WAYS).double()
        wanted[range(len(r)), task.query_y[t]] = 1
        losses.append((torch.sigmoid(r) - wanted).pow(2).mean())
    expected = torch.stack(losses).mean()
    expected.backward()
    assert float(update.metrics["loss_after"]) == pytest.approx(expected.item(), rel=1e-9)
    assert float(update.metrics["accuracy_before"]) == pytest.approx(1 / WAYS)
    for name, leaf in leaves.items():
        torch.testing.assert_close(update.direction.model[name], leaf.grad, rtol=1e-7, atol=1e-11)


def test_the_meta_gradient_agrees_with_finite_differences() -> None:
    problem = images(MLP(hidden=(5,), head=heads.Pairs(hidden=4))).with_loss(squared_error)
    assert_meta_gradient(Relation(), problem, start(Relation(), problem), drawn_images())


@pytest.mark.parametrize("norm", ["transductive", "support", "support+1", "running"])
def test_classes_keep_their_scores_in_any_order_and_alone_if_the_norm_says_so(norm: Norm) -> None:
    problem, task = images(MAPS, norm=norm), drawn_images(shots=2)
    meta = start(Relation(), problem)
    when = context(work="score")

    def scores(of: Any) -> Tensor:
        *_, phi = Relation().adapt(problem, meta, of, when)
        return problem.predict(phi, of, when)

    expected, names = scores(task), torch.tensor([2, 0, 1])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    renamed = task._replace(
        support_x=task.support_x[:, order], support_y=names[task.support_y[:, order]]
    )
    torch.testing.assert_close(scores(renamed)[..., names], expected, rtol=1e-9, atol=1e-9)
    if norm != "transductive":
        alone = scores(task._replace(query_x=task.query_x[:, 1:2]))
        torch.testing.assert_close(alone, expected[:, 1:2], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algorithm", [Relation(), Matching()])
def test_running_statistics_of_the_head_are_those_of_pairs(algorithm: Any) -> None:
    problem, task = images(MAPS, norm="running"), drawn_images(shots=2)
    meta = start(algorithm, problem)
    update = algorithm.update(problem, meta, task, context())
    seen: list[Tensor] = []
    norm = problem.module.get_submodule("head.scores.blocks.0.norm")
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    *_, phi = algorithm.adapt(problem, meta, task, context())
    whole = task._replace(query_x=torch.cat([task.support_x, task.query_x], 1))
    problem.predict(phi, whole, context())
    hook.remove()
    assert seen[0].shape[0] == 12 * WAYS
    mean = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    name = "head.scores.blocks.0.norm.mean"
    torch.testing.assert_close(update.direction.state[name], 0.1 * mean)


def test_what_they_cannot_learn_is_one_sentence() -> None:
    for head in (heads.Linear(), heads.Attention()):
        with pytest.raises(InputError) as error:
            Relation().init(images(MLP(head=head)), torch.Generator())
        assert error.value.remedy.endswith("model.head.name pairs")
