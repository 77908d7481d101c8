"""Matching networks: attention to the support set; with one shot they are prototypes by cosine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import context, drawn_images, exact, images
from torch.func import functional_call

from metatrain.algorithms import Matching, Prototypical
from metatrain.core import ComputePath, InputError, Meta
from metatrain.models import MLP, Conv4, heads
from metatrain.problems.functional import part
from metatrain.tasks import Sinusoid

WAYS = 3


def bound(head: heads.Head, path: ComputePath = "reference") -> Any:
    return images(Conv4(filters=16, pool="stride", head=head), path, WAYS)


def start(algorithm: Any, problem: Any) -> Meta:
    return exact(algorithm.init(problem, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("path", ["reference", "batched", "fused"])
def test_probabilities_and_gradient_are_the_papers_equations(path: ComputePath) -> None:
    problem, task = bound(heads.Attention(), path), drawn_images(shots=2)
    meta = start(Matching(), problem)
    update = Matching().update(problem, meta, task, context())
    leaves = {name: p.clone().requires_grad_() for name, p in meta.model.items()}
    body = bound(heads.Attention()).module.get_submodule("body")
    losses = []
    for t in range(2):
        support, query = (
            functional_call(body, part(leaves, "body."), (x[t],))
            for x in (task.support_x, task.query_x)
        )
        cosine = F.cosine_similarity(query[:, None], support, dim=-1)
        attention = (leaves["head.scale"] * cosine).softmax(-1)
        probability = attention @ F.one_hot(task.support_y[t], WAYS).double()
        losses.append(F.nll_loss(probability.log(), task.query_y[t]))
    expected = torch.stack(losses).mean()
    expected.backward()
    assert float(update.metrics["loss_after"]) == pytest.approx(expected.item(), rel=1e-10)
    assert float(update.metrics["accuracy_before"]) == pytest.approx(1 / WAYS)
    assert update.direction.model.keys() == leaves.keys()
    for name, leaf in leaves.items():
        torch.testing.assert_close(update.direction.model[name], leaf.grad, rtol=1e-8, atol=1e-12)


def test_with_one_shot_they_are_prototypical_networks_with_cosines() -> None:
    task, found = drawn_images(shots=1), []
    for algorithm, head in ((Matching(), heads.Attention()), (Prototypical(), heads.Cosine())):
        problem = bound(head)
        *_, phi = algorithm.adapt(problem, start(algorithm, problem), task, context())
        found.append(problem.predict(phi, task, context()).softmax(-1))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_what_they_cannot_learn_is_one_sentence() -> None:
    generator = torch.Generator()
    with pytest.raises(InputError) as error:
        Matching().init(bound(heads.Linear()), generator)
    assert error.value.remedy.endswith("model.head.name attention")
    numbers = Sinusoid().bind(MLP(head=heads.Attention()), ("none",), "reference")
    with pytest.raises(InputError) as error:
        Matching().init(numbers, generator)
    assert error.value.remedy == "choose another algorithm"
