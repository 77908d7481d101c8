"""Matching networks: attention to the support set; with one shot they are prototypes by cosine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import context, drawn_images, exact, images
from gradients import assert_meta_gradient
from torch import Tensor, nn
from torch.func import functional_call

from metatrain.algorithms import Matching, Prototypical
from metatrain.core import ComputePath, InputError, Meta, Task
from metatrain.models import MLP, Conv4, heads
from metatrain.models.attention import Cell, Context
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


def test_full_context_is_the_papers_equations_with_torchs_lstms() -> None:
    """And the same for several tasks at once as for one."""
    g = torch.Generator().manual_seed(0)
    x, support = (torch.randn(2, n, 5, generator=g, dtype=torch.float64) for n in (4, 6))
    targets = F.one_hot(torch.tensor([[0, 0, 1, 1, 2, 2]] * 2), 3).double()
    full = Context(5, 3).double()
    found = full(x[0], support[0], targets[0])
    both = nn.LSTM(5, 5, bidirectional=True, dtype=torch.float64)
    for cell, end in ((full.forwards, ""), (full.backwards, "_reverse")):
        copy_cell(cell, both, f"_l0{end}")
    ahead, back = both(support[0])[0].chunk(2, -1)
    expected = ahead + back + support[0]
    h = c = torch.zeros(4, 5, dtype=torch.float64)
    for _ in range(3):
        r = (h @ expected.T).softmax(-1) @ expected
        gates = full.query.features(x[0]) + full.query.recurrent(torch.cat([h, r], -1))
        i, f, o = (gates[:, 5 * k : 5 * k + 5].sigmoid() for k in (0, 1, 3))
        c = f * c + i * gates[:, 10:15].tanh()
        h = o * c.tanh() + x[0]
    torch.testing.assert_close(found, (h, expected), rtol=1e-12, atol=1e-14)
    params = {name: p.expand(2, *p.shape) for name, p in full.named_parameters()}
    at_once = functional_call(full, params, (x, support, targets))
    torch.testing.assert_close([part[0] for part in at_once], list(found))


def copy_cell(cell: Cell, lstm: nn.LSTM, end: str) -> None:
    """Give a torch LSTM the parameters of one of ours."""
    for name, linear in (("ih", cell.features), ("hh", cell.recurrent)):
        getattr(lstm, f"weight_{name}{end}").data = linear.weight.data
        getattr(lstm, f"bias_{name}{end}").data = linear.bias.data


def test_with_full_context_the_meta_gradient_agrees_with_finite_differences() -> None:
    problem = images(MLP(hidden=(4,), head=heads.Attention(reads=2)))
    assert_meta_gradient(Matching(), problem, start(Matching(), problem), drawn_images())


def test_with_full_context_every_query_is_alone_and_classes_may_come_in_any_order() -> None:
    problem, task = images(MLP(hidden=(4,), head=heads.Attention(reads=2))), drawn_images()
    meta = start(Matching(), problem)

    def predicted(of: Task) -> Tensor:
        *_, phi = Matching().adapt(problem, meta, of, context())
        return problem.predict(phi, of, context())

    expected = predicted(task)
    mixed = [0, 2, 4, 1, 3, 5]  # the classes in turn, each in its own order
    other = task._replace(support_x=task.support_x[:, mixed], support_y=task.support_y[:, mixed])
    torch.testing.assert_close(predicted(other), expected, rtol=1e-12, atol=1e-12)
    alone = predicted(task._replace(query_x=task.query_x[:, 2:3]))
    torch.testing.assert_close(alone, expected[:, 2:3], rtol=1e-12, atol=1e-12)
