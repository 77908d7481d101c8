"""Networks of blocks: any widths, any normalisation, the same function on every path."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from cases import context, drawn_images, exact, images
from safetensors.torch import save_file
from torch import nn

from metatrain.algorithms import MAML
from metatrain.core import ComputePath, InputError, Meta, Norm, Task
from metatrain.metrics import cross_entropy
from metatrain.models import MLP, Conv, Conv4, MobileNet, ResNet12, ResNet18
from metatrain.models.normalisation import ExampleStatistics
from metatrain.models.resnet import IMAGENET
from metatrain.ops.build import KernelsUnavailable
from metatrain.problems.supervised import Supervised
from metatrain.weights import merged, weights_at

NETS: dict[str, Any] = {
    "halved once": Conv(filters=(16, 32, 16), halved=1, pool="stride", features="mean"),
    "group": Conv(filters=(16, 32), norm="group"),
    "layer": Conv4(filters=4, norm="layer", norm_scale=False),
    "resnet12": ResNet12(filters=(16, 16)),
    "resnet12 by groups": ResNet12(filters=(16,), features="flatten", norm="group"),
    "resnet18": ResNet18(filters=(16, 16, 16, 16), stem="small"),
    "mobilenet": MobileNet(width=0.1, stem="small"),
    "resnet18, large stem": ResNet18(filters=(4, 4, 4, 4)),
}
SLOW = ("mobilenet", "resnet12", "resnet12 by groups", "resnet18")
BY_SET = ("support", "support+1")
FUSED = ("halved once", "resnet12", "resnet18")


def test_conv_of_four_equal_blocks_is_conv4() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (images(m).init(generator) for m in (Conv(filters=(8,) * 4), Conv4(filters=8)))
    assert one.keys() == other.keys()
    assert all(torch.equal(p, other[name]) for name, p in one.items())


@pytest.mark.parametrize(
    "net", [pytest.param(n, marks=[pytest.mark.ray] if n in SLOW else []) for n in NETS]
)
def test_any_network_is_one_function_on_every_path(net: str) -> None:
    paths: list[ComputePath] = ["reference", "batched"]
    updates = []
    for path in [*paths, "fused"] if net in FUSED else paths:
        problem = images(NETS[net], path)
        meta = exact(MAML(inner_lr=0.1).init(problem, torch.Generator().manual_seed(0)))
        update = MAML(inner_lr=0.1).update(problem, meta, drawn_images(shots=1), context())
        updates.append(update.direction.model)
    for other in updates[1:]:
        for name, p in updates[0].items():
            assert p.any(), name
            assert (other[name] - p).norm() <= 1e-8 * p.norm() + 1e-10, name


@pytest.mark.parametrize(
    "norm", ["transductive", "running", *(pytest.param(n, marks=pytest.mark.ray) for n in BY_SET)]
)
def test_predictions_of_a_residual_network_agree_whoever_the_statistics_are_of(norm: Norm) -> None:
    found = []
    for path in ("reference", "batched", "fused"):
        problem = images(NETS["resnet12"], path, norm=norm)
        params = problem.init(torch.Generator().manual_seed(0)) | problem.state()
        phi = {name: torch.stack([p, 1.1 * p]).double() for name, p in params.items()}
        found.append(problem.predict(phi, drawn_images(shots=1), context(work="score")))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[2], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.ray
@pytest.mark.parametrize("norm", ["transductive", "running"])
@pytest.mark.parametrize(
    ("build", "model"),
    [
        (torchvision.models.resnet18, ResNet18(colours="imagenet")),
        (partial(torchvision.models.mobilenet_v2, dropout=0.0), MobileNet(colours="imagenet")),
    ],
)
def test_weights_of_torchvision_give_the_outputs_of_torchvision(
    build: Any, model: Any, norm: Norm, tmp_path: Path
) -> None:
    """Its last layer too, if it has as many classes."""
    torch.manual_seed(0)
    theirs = build(num_classes=3)
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    problem = Supervised(
        model=model,
        inputs=(3, 32, 32),
        outputs=3,
        loss=cross_entropy,
        metrics={},
        norm=(norm,),
        path="reference",
        classes=True,
    )
    meta = Meta(problem.init(torch.Generator().manual_seed(0)), {}, problem.state())
    found = merged(meta, weights_at(str(tmp_path / "w.safetensors")).tensors, "w.safetensors")
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    y = torch.tensor([[0, 1, 2, 0]])
    task = Task(x[None], y, x[None], y)
    phi = {name: p[None] for name, p in (found.model | found.state).items()}
    theirs.train(norm == "transductive")
    outputs = problem.predict(phi, task, context(work="score"))
    torch.testing.assert_close(outputs[0], theirs((x - mean) / deviation), rtol=1e-4, atol=1e-5)


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
    with pytest.raises(InputError) as error:
        ResNet12().module((3, 8, 32), 2, 2)
    assert (error.value.got, error.value.expected) == ([8, 32], "at least [16, 16]")
    for wrong in ({"filters": ()}, {"filters": (8,) * 33}, {"filters": (8,), "halved": 2}):
        with pytest.raises(InputError):
            Conv(**wrong)
    with pytest.raises(KernelsUnavailable):
        images(NETS["group"], "fused")


def test_the_perceptron_of_textbooks_is_an_mlp() -> None:
    net = MLP(hidden=(128, 64)).module((1, 28, 28), 10, 10)
    assert [p.shape for p in net.parameters() if p.dim() == 2] == [(128, 784), (64, 128), (10, 64)]
