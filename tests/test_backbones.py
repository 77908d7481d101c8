"""Networks of blocks: any widths, any normalisation, the same function on every path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import context, drawn_images, exact, images
from torch import nn

from metatrain.algorithms import MAML
from metatrain.core import ComputePath, InputError
from metatrain.models import Conv, Conv4
from metatrain.models.normalisation import ExampleStatistics
from metatrain.ops.build import KernelsUnavailable

CONVS: dict[str, Any] = {
    "halved once": Conv(filters=(16, 32, 16), halved=1, pool="stride", features="mean"),
    "group": Conv(filters=(16, 32), norm="group"),
    "layer": Conv4(filters=4, norm="layer", norm_scale=False),
}


def test_conv_of_four_equal_blocks_is_conv4() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (images(m).init(generator) for m in (Conv(filters=(8,) * 4), Conv4(filters=8)))
    assert one.keys() == other.keys()
    assert all(torch.equal(p, other[name]) for name, p in one.items())


@pytest.mark.parametrize("net", CONVS)
def test_blocks_of_any_width_and_norm_are_one_function_on_every_path(net: str) -> None:
    paths: list[ComputePath] = ["reference", "batched"]
    updates = []
    for path in [*paths, "fused"] if CONVS[net].norm == "batch" else paths:
        problem = images(CONVS[net], path)
        meta = exact(MAML(inner_lr=0.1).init(problem, torch.Generator().manual_seed(0)))
        update = MAML(inner_lr=0.1, inner_steps=2).update(problem, meta, drawn_images(), context())
        updates.append(update.direction.model)
    for other in updates[1:]:
        for name, p in updates[0].items():
            assert p.any(), name
            assert (other[name] - p).norm() <= 1e-9 * p.norm(), name


@pytest.mark.parametrize("groups", [1, 2])
def test_group_and_layer_normalisation_are_torchs(groups: int) -> None:
    x = torch.randn(3, 32, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = ExampleStatistics(32, groups).double()
    torch.testing.assert_close(layer(x), nn.GroupNorm(groups, 32).double()(x))
    if groups == 1:
        expected = nn.LayerNorm((32, 5, 5), elementwise_affine=False)(x)
        torch.testing.assert_close(layer(x), expected)


def test_what_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(InputError) as error:
        Conv(filters=(8, 8), norm="group").module((1, 28, 28), 2, 2)
    assert (error.value.got, error.value.expected) == (8, "a multiple of 16")
    with pytest.raises(InputError) as error:
        Conv(filters=(8,) * 5).module((1, 28, 28), 2, 2)
    assert error.value.expected == "at least [32, 32], which it halves 5 times"
    for wrong in ({"filters": ()}, {"filters": (8,) * 33}, {"filters": (8,), "halved": 2}):
        with pytest.raises(InputError):
            Conv(**wrong)
    with pytest.raises(KernelsUnavailable):
        images(CONVS["group"], "fused")
