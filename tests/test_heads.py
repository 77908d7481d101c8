"""Heads are components: any body takes any of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import GLYPHS, config, context
from torch import nn

from metatrain.algorithms.maml import MAML
from metatrain.algorithms.meta_sgd import MetaSGD
from metatrain.algorithms.prototypical import Prototypical
from metatrain.algorithms.reptile import Reptile
from metatrain.core import InputError
from metatrain.models import MLP, Conv, Conv4, MobileNet, ResNet12, ResNet18, heads
from metatrain.models.attention import AttentionLayer
from metatrain.models.memory import MemoryLayer
from metatrain.pretraining import with_linear_head

BODIES: dict[str, Any] = {
    "mlp": MLP(hidden=(6,)),
    "conv4": Conv4(filters=4, pool="stride"),
    "conv": Conv(filters=(4, 4, 8), halved=2),
    "resnet12": ResNet12(filters=(4, 4), features="flatten"),
    "resnet18": ResNet18(filters=(4, 4, 4, 4)),
    "mobilenet": MobileNet(width=0.1),
}
FEW = ("linear", "attention", "pairs", "memory")  # those that read it in other ways
SLOW = ("conv", "resnet12", "resnet18", "mobilenet")
HEADS: dict[str, heads.Head] = {
    "linear": heads.Linear(),
    "cosine": heads.Cosine(),
    "attention": heads.Attention(),
    "attention in context": heads.Attention(reads=2),
    "pairs": heads.Pairs(filters=4),
    "fast": heads.Fast(),
    "memory": heads.Memory(hidden=5),
    "mann": heads.MANN(hidden=5, slots=5, width=3, reads=2),
    "snail": heads.SNAIL(width=4, length=4),
    "transformer": heads.Transformer(width=4, depth=1, heads=2),
    "cells": heads.Cells(width=4, depth=1, heads=2),
}


def bound(body: str, head: str) -> Any:
    family = config(GLYPHS).family
    model = type(BODIES[body])(**{**vars(BODIES[body]), "head": HEADS[head]})
    return family.bind(model, ("transductive",), "reference" if body == "mlp" else "batched")


def test_weights_start_as_their_networks_say() -> None:
    for layer in MLP(hidden=(50,), init_std=0.5).module((1,), 1, 1).modules():
        if isinstance(layer, nn.Linear):
            assert 0.5 < layer.weight.abs().max() <= 1.0  # cut at two deviations
            assert not layer.bias.any()
    for layer in Conv4(filters=4, norm="none").module((1, 28, 28), 2, 2).modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = (6 / sum(nn.init._calculate_fan_in_and_fan_out(layer.weight))) ** 0.5
            assert 0.5 * bound < layer.weight.abs().max() <= bound  # Glorot-uniform
            assert not layer.bias.any()


def test_an_lstm_remembers_at_first() -> None:
    gates = MemoryLayer(3, 2, 1, "lstm", 5).features.bias.view(4, 5)  # input, forget, cell, output
    assert [bool((gate == 1).all()) for gate in gates] == [False, True, False, False]


@pytest.mark.parametrize(
    "body", [pytest.param(b, marks=[pytest.mark.ray] if b in SLOW else []) for b in BODIES]
)
def test_a_body_starts_alike_whatever_its_head_and_predicts_with_each(body: str) -> None:
    task = config(GLYPHS).family.sample(torch.Generator().manual_seed(0), 2, "train")
    started = []
    for head in FEW if body in SLOW else HEADS:
        problem = bound(body, head)
        params = problem.init(torch.Generator().manual_seed(3))
        each = {name: p.expand(2, *p.shape) for name, p in params.items()}
        assert problem.predict(each, task, context()).shape == (2, 5, 5)
        started.append({name: p for name, p in params.items() if name.startswith("body.")})
    for other in started[1:]:
        assert other.keys() == started[0].keys() != set()
        assert all(torch.equal(other[name], p) for name, p in started[0].items())


def test_attention_is_the_papers_equation_for_one_task_and_for_several() -> None:
    g = torch.Generator().manual_seed(0)
    x, support = (torch.randn(2, n, 7, generator=g, dtype=torch.float64) for n in (4, 6))
    targets = F.one_hot(torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]]), 3).double()
    attention = AttentionLayer(7, 3)
    params = {"support": support, "targets": targets, "scale": torch.tensor([3.0, 0.5]).double()}
    found = torch.func.functional_call(attention, params, (x,))
    for t in range(2):
        cosine = F.cosine_similarity(x[t][:, None], support[t], dim=-1)
        expected = (params["scale"][t] * cosine).softmax(-1) @ targets[t]
        torch.testing.assert_close(found[t].exp(), expected, rtol=1e-12, atol=1e-14)
        one = {name: p[t] for name, p in params.items()}
        alone = torch.func.functional_call(attention, one, (x[t],))
        torch.testing.assert_close(alone, found[t], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "algorithm", [MAML(inner_lr=0.1), MetaSGD(initial_lr=0.1), Reptile(inner_lr=0.1, inner_steps=1)]
)
def test_a_head_that_compares_is_refused_if_no_support_set_is_given_to_it(algorithm: Any) -> None:
    """It would say the same of each example, and learn nothing."""
    fitting = {
        "attention": "matching",
        "pairs": "relation",
        "fast": "meta_networks",
        "transformer": "in_context",
        "cells": "in_context",
    }
    for head, fits in fitting.items():
        with pytest.raises(InputError) as error:
            algorithm.init(bound("mlp", head), torch.Generator())
        assert error.value.remedy.endswith(f"algorithm.name to {fits}")


@pytest.mark.parametrize("head", HEADS)
def test_a_network_is_pre_trained_without_a_head_that_needs_a_task(head: str) -> None:
    model = MLP(head=HEADS[head])
    plain = head in ("linear", "cosine")
    assert with_linear_head(model) == (model if plain else MLP())


def test_prototypes_are_refused_a_head_with_fast_weights_that_they_would_leave_as_drawn() -> None:
    with pytest.raises(InputError) as error:
        Prototypical().init(bound("mlp", "fast"), torch.Generator())
    assert "head.name to linear or cosine" in error.value.remedy


@pytest.mark.parametrize(
    ("shape", "got", "remedy"),
    [
        ((2,), [2], "choose another model"),
        ((1, 15, 28), [15, 28], "give larger images, or set model.pool to stride"),
    ],
)
def test_conv4_refuses_what_is_no_image_or_too_small(
    shape: tuple[int, ...], got: list[int], remedy: str
) -> None:
    with pytest.raises(InputError) as error:
        Conv4().module(shape, 2, 2)
    assert (error.value.got, error.value.remedy) == (got, remedy)
