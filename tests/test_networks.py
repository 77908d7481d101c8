"""Networks of any kind: nothing of the caller's changes, threads do not meet, torch's layers are
taken as they are.
"""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import GLYPHS, SINUSOID, config, context
from safetensors.torch import save_file
from services import command
from torch import Tensor, nn

import metatrain
from cluster import run
from metatrain import bundle, schema
from metatrain.core import InputError, Meta, Norm, Task
from metatrain.isolation import isolated
from metatrain.metrics import accuracy, cross_entropy
from metatrain.models import MLP
from metatrain.models.conv import Conv4
from metatrain.models.normalisation import BatchStatistics, converted
from metatrain.problems.network import fresh
from metatrain.problems.supervised import Supervised
from metatrain.start import prepare
from metatrain.weights import warm


@dataclass(frozen=True, kw_only=True)
class Net:
    build: Any
    name: str = "tests:Net"
    weights: str | None = None

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        return self.build()


def images(norm: Norm, model: Any) -> Supervised:
    return Supervised(
        model=model,
        inputs=(1, 16, 16),
        outputs=3,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        norm=(norm,),
        path="reference",
        classes=True,
    )


def episode() -> Task:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 9, 1, 16, 16, generator=generator), torch.arange(3).repeat(2, 3)
    return Task(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])


def test_the_parameters_are_those_of_the_seed_and_no_random_number_of_the_callers_is_drawn() -> (
    None
):
    """A thread of the caller's that draws at the same time saw torch's global generator seeded with
    0.
    """

    def build() -> nn.Module:
        layers = [
            nn.Linear(3, 20),
            nn.Conv2d(1, 4, 3),
            nn.LSTM(3, 4),
            nn.Embedding(3, 4),
            nn.MultiheadAttention(8, 2),
        ]
        orthogonal = nn.Linear(9, 9)
        nn.init.orthogonal_(orthogonal.weight)
        nn.init.trunc_normal_(orthogonal.bias)
        drawn = nn.Linear(2, 2)
        drawn.weight = nn.Parameter(torch.randn(2, 40) + torch.rand(2, 40) * torch.randperm(40))
        return nn.ModuleList([*layers, orthogonal, drawn])

    torch.manual_seed(7)
    state = torch.random.get_rng_state()
    found = fresh(build, torch.Generator().manual_seed(123))
    images("transductive", Conv4(filters=4, pool="stride")).init(torch.Generator().manual_seed(3))
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    expected = dict(build().named_parameters())
    assert all(torch.equal(p, expected[name]) for name, p in found.items())


def test_training_and_inference_leave_the_callers_state_as_it_is(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    random.seed(1)
    np.random.seed(1)  # the global one: that is what is guarded
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    try:
        run.train(config(SINUSOID, output=str(tmp_path / "run"), outer__steps=2))
        metatrain.load(tmp_path / "run").adapt([0.1, 0.2], [1.0, 2.0]).predict([0.5])
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.random.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]
    finally:
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> metatrain.inference.Learned:  # type: ignore[name-defined]
    folder = tmp_path_factory.mktemp("networks") / "run"
    run.train(
        config(GLYPHS, model__filters=16, output=str(folder), outer__steps=1, evaluation__tasks=2)
    )
    return metatrain.load(folder)


def drawings(count: int) -> Tensor:
    return torch.randint(
        0,
        256,
        (count, 1, 28, 28),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(count),
    )


def test_threads_that_share_an_adapted_network_get_what_each_gets_alone(learned: Any) -> None:
    """Parameters are put into a module for the moment of a call: a second thread predicted with the
    first one's.
    """
    adapted = [
        learned.adapt(drawings(5), [0, 1, 2, 3, 4], norm="support+1"),
        learned.adapt(drawings(10), [*range(5)] * 2),
    ]
    queries = [drawings(20 + i) for i in range(4)]
    alone = [[one.predict(query).probabilities for query in queries] for one in adapted]
    start = threading.Barrier(4)

    def work(thread: int) -> bool:
        start.wait()
        same = []
        for i in range(6):
            one, query = (thread + i) % 2, (thread * i) % 4
            same.append(
                torch.equal(adapted[one].predict(queries[query]).probabilities, alone[one][query])
            )
            again = learned.adapt(drawings(5), [0, 1, 2, 3, 4], norm="support+1")
            same.append(
                all(torch.equal(p, adapted[0].after[name]) for name, p in again.after.items())
            )
        return all(same)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [True] * 4


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_bits_do_not_depend_on_the_callers_threads_or_modes(learned: Any, threads: int) -> None:
    """Services call in inference mode and with autocast, where gradient descent failed or lost
    digits.
    """
    support, labels, query = drawings(5), [0, 1, 2, 3, 4], drawings(7)
    expected = learned.adapt(support, labels).predict(query).probabilities
    torch.set_num_threads(threads)
    try:
        for mode in (
            torch.inference_mode(),
            torch.no_grad(),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            with mode:
                again = metatrain.load(learned.source)
                given = torch.stack(
                    [image.clone() for image in support]
                )  # an inference tensor, in that mode
                assert torch.equal(
                    again.adapt(given, labels).predict(query).probabilities, expected
                )
                assert torch.equal(
                    learned.adapt(given, labels).predict(query).probabilities, expected
                )
        assert torch.equal(again.adapt(support, labels).predict(query).probabilities, expected)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name", ["default_dtype", "default_device"])
def test_the_callers_defaults_do_not_matter(learned: Any, name: str) -> None:
    """With another default device the kernels read memory that was not there, and the process
    ended.
    """
    support, labels, query = drawings(5), [0, 1, 2, 3, 4], drawings(7)
    expected = learned.adapt(support, labels).predict(query).probabilities
    change, back = {
        "default_dtype": (
            lambda: torch.set_default_dtype(torch.float64),
            lambda: torch.set_default_dtype(torch.float32),
        ),
        "default_device": (
            lambda: torch.set_default_device("meta"),
            lambda: torch.set_default_device(None),
        ),
    }[name]
    change()
    try:
        again = metatrain.load(learned.source).adapt(support, labels).predict(query).probabilities
        run.train(config(SINUSOID, output=f"{name}", outer__steps=1))
        left = torch.get_default_dtype(), torch.get_default_device().type
    finally:
        back()
    assert torch.equal(again, expected)
    assert (
        left
        == {"default_dtype": (torch.float64, "cpu"), "default_device": (torch.float32, "meta")}[
            name
        ]
    )


def test_isolated_puts_everything_back_after_an_error() -> None:
    before = torch.get_num_threads(), torch.is_grad_enabled(), torch.backends.cudnn.allow_tf32

    def fail() -> None:
        with isolated(before[0] + 1):
            torch.backends.cudnn.allow_tf32 = not before[2]
            assert torch.get_num_threads() == before[0] + 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.backends.cudnn.allow_tf32,
    ) == before


class Torchs(nn.Module):
    """A network with torch's own batch normalisation, below its body and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4, eps=1e-2),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.between = nn.BatchNorm1d(16, affine=False)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


class Ours(Torchs):
    """The same by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.body[1] = BatchStatistics(4, eps=1e-2)
        self.between = BatchStatistics(16, scale=False, shift=False, eps=1e-5)


@pytest.mark.parametrize("norm", ["transductive", "support", "support+1", "running"])
def test_torchs_batch_normalisation_is_converted_for_every_norm(norm: Norm) -> None:
    problems = [images(norm, Net(build=build)) for build in (Torchs, Ours)]
    params = [
        problem.init(torch.Generator().manual_seed(1)) | problem.state() for problem in problems
    ]
    assert params[0].keys() == params[1].keys()
    found = []
    for problem, own in zip(problems, params, strict=True):
        expanded = {name: p.expand(2, *p.shape).clone().requires_grad_() for name, p in own.items()}
        result = problem.query(expanded, episode(), context())
        gradient = torch.autograd.grad(result["loss"].sum(), expanded["body.0.weight"])[0]
        tracked = problem.statistics(expanded, episode()) if norm == "running" else {}
        found.append([result["loss"], result["accuracy"], gradient, *tracked.values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_transductive_statistics_are_those_that_torch_takes_in_training() -> None:
    problem, net = images("transductive", Net(build=Torchs)), Torchs()
    params = {
        name.replace("body.1.weight", "body.1.scale").replace(
            "body.1.bias", "body.1.shift"
        ): p.detach()
        for name, p in net.named_parameters()
    }
    task = Task(*(leaf[:1] for leaf in episode()))
    expected = net.train()(task.query_x[0])
    torch.testing.assert_close(
        problem.predict({k: p[None] for k, p in params.items()}, task, context())[0], expected
    )


def test_layers_that_cannot_be_converted_are_refused() -> None:
    with pytest.raises(InputError, match="LazyBatchNorm2d does not know its number of channels"):
        converted(nn.Sequential(nn.Conv2d(1, 4, 3), nn.LazyBatchNorm2d()))
    with pytest.raises(
        InputError, match="Doubled keeps running statistics and is none of torch's own layers"
    ):
        converted(nn.Sequential(nn.Linear(4, 4), Doubled(4)))
    with pytest.raises(InputError, match="torch's dropout draws at random in the forward pass"):
        images(
            "transductive",
            Net(build=lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(256, 3))),
        )


class Doubled(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Tried(nn.Module):
    """A network that does something which is only known in its forward pass."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Flatten(), nn.Linear(256, 8)), nn.Linear(8, 3)
        self.act, self.count, self.drawn = act, 0, random.random()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self, self.body(x)))


def counting(net: Any, x: Tensor) -> Tensor:
    net.count += 1
    return x * net.count


def drawn_by_numpy() -> nn.Module:
    net = Tried(lambda net, x: x)
    nn.init.constant_(net.head.bias, np.random.rand())  # what is guarded
    return net


def with_buffer(noise: Any) -> nn.Module:
    net = Tried(lambda net, x: x + net.noise)
    net.register_buffer("noise", noise())
    return net


SECOND = "other outputs for the same examples the second time"


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: Tried(lambda net, x: torch.dropout(x, 0.5, True)),
            SECOND,
        ),
        (lambda: Tried(lambda net, x: x + torch.randn_like(x)), SECOND),
        (lambda: Tried(lambda net, x: x * random.random()), SECOND),
        (lambda: Tried(counting), SECOND),
        (lambda: Tried(lambda net, x: x * net.drawn), "other outputs if it is built a second time"),
        (drawn_by_numpy, "is built with other numbers the second time: draw them with torch"),
        (
            lambda: with_buffer(lambda: torch.tensor(np.random.rand(8))),
            "is built with other numbers the second time",
        ),
        (lambda: Tried(lambda net, x: x.detach().double()), "fails on examples of shape"),
        (lambda: Tried(lambda net, x: sys.exit(3)), "SystemExit: 3"),
        (lambda: Tried(lambda net, x: x).requires_grad_(False), "has no parameter that is trained"),
    ],
)
def test_a_network_that_gives_something_else_each_time_is_refused(
    build: Any, sentence: str
) -> None:
    """Its results would depend on the worker, on the order of tickets, and on who loads it."""
    with pytest.raises(InputError, match=sentence):
        images("none", Net(build=build)).try_out(episode())


def test_what_is_drawn_with_torch_is_the_same_wherever_a_network_is_built() -> None:
    assert images("none", Net(build=lambda: with_buffer(lambda: torch.randn(8)))).try_out(
        episode()
    ) == {"accuracy"}


def held() -> nn.Module:
    net = Torchs()
    net.body[1].running_mean.fill_(3.0)
    return net


def test_statistics_that_a_network_comes_with_are_used_or_refused() -> None:
    """Those of a pretrained network were dropped without a word."""
    with pytest.raises(
        InputError, match="comes with running statistics, which norm 'transductive' does not use"
    ):
        images("transductive", Net(build=held))
    with pytest.raises(InputError, match="comes with running statistics"):
        images("support", Net(build=lambda: Torchs().eval()))
    assert images("running", Net(build=held)).state()["body.1.mean"].tolist() == [3.0] * 4


def test_a_single_layer_may_be_the_network() -> None:
    assert isinstance(converted(nn.BatchNorm1d(3)), BatchStatistics)


def test_an_algorithm_that_needs_parts_names_the_one_that_is_missing() -> None:
    problem = images("none", Net(build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 3))))
    params = {
        name: p.expand(2, *p.shape)
        for name, p in problem.init(torch.Generator().manual_seed(0)).items()
    }
    with pytest.raises(InputError, match="the network Sequential has no part named 'body'"):
        problem.embed(params, episode(), context())


def weights_of(folder: Path, **changed: Tensor | None) -> str:
    """A file of MLP weights, with some changed or left out."""
    own = MLP(hidden=(16, 16)).module((1,), 1, 1).state_dict() | changed
    save_file(
        {name: p.contiguous() for name, p in own.items() if p is not None}, folder / "w.safetensors"
    )
    return str(folder / "w.safetensors")


def test_a_run_starts_from_given_weights_and_resumes_without_them(tmp_path: Path) -> None:
    torch.manual_seed(11)
    place = weights_of(tmp_path)
    settings = config(
        SINUSOID, model__weights=place, outer__lr=0.0, outer__steps=2, output=str(tmp_path / "run")
    )
    _, (score, *_) = run.train(settings)
    recipe, meta = bundle.load(str(tmp_path / "run" / "bundle"))
    data = (tmp_path / "w.safetensors").read_bytes()
    known = f"w.safetensors sha256 {hashlib.sha256(data).hexdigest()[:16]}"
    assert recipe.started_from == known
    assert f"), from {known}, seed 0; " in score.protocol
    assert place not in score.protocol
    torch.manual_seed(11)
    expected = MLP(hidden=(16, 16)).module((1,), 1, 1).state_dict()
    assert all(torch.equal(p, expected[name]) for name, p in meta.model.items())
    (tmp_path / "w.safetensors").unlink()
    _, (score, *_) = run.train(
        replace(settings, outer=replace(settings.outer, steps=3)), resume="auto"
    )
    assert f", from {known}, " in score.protocol
    weights_of(tmp_path, **{"head.bias": torch.ones(1)})
    with pytest.raises(InputError) as refused:
        run.train(replace(settings, started_from=known, output=str(tmp_path / "again")))
    assert known in str(refused.value.expected)
    recipe = tmp_path / "recipe.yaml"  # another --init than the recorded one is meant
    recipe.write_text(schema.as_yaml(replace(settings, started_from="other")))
    assert command("train", str(recipe), "--init", place, "--dry-run").returncode == 0
    assert metatrain.load(tmp_path / "run").adapt([0.0], [1.0]).predict([0.0]).values.shape == (1,)


def test_a_head_of_another_shape_starts_from_the_seed_and_all_else_must_fit(tmp_path: Path) -> None:
    def warmed(place: str) -> Any:
        recipe = config(SINUSOID, model__weights=place).recipe()
        return warm(recipe, prepare(recipe).meta).meta, prepare(recipe).meta

    wide = {"head.weight": torch.ones(7, 16), "head.bias": torch.ones(7)}
    found, start = warmed(weights_of(tmp_path, **wide))
    assert torch.equal(found.model["head.weight"], start.model["head.weight"])
    assert not torch.equal(found.model["body.0.weight"], start.model["body.0.weight"])
    for changed, sentence in (
        (
            {"body.0.weight": None},
            r"needs body.0.weight of shape \[16, 1\], and .*w.safetensors has none, but ",
        ),
        (
            {"body.0.weight": torch.ones(3, 1)},
            r"has one of shape \[3, 1\]: give weights of the same network",
        ),
        (
            {"body.0.bias": torch.full((16,), torch.nan)},
            "has one that is not of finite real numbers",
        ),
        (
            {"body.0.bias": torch.ones(16, dtype=torch.int64)},
            "has one that is not of finite real numbers",
        ),
        (
            {"head.bias": torch.full((1,), torch.nan)},
            "needs head.bias .* has one that is not of finite real numbers",
        ),
        ({"other": torch.ones(1)}, "has other, which the network does not have"),
    ):
        with pytest.raises(InputError, match=sentence):
            warmed(weights_of(tmp_path, **changed))
    (tmp_path / "junk").write_text("junk")
    for place, sentence in (
        ("nowhere", "there is no nowhere"),
        (str(tmp_path / "junk"), "is no safetensors file"),
        (str(tmp_path), "is a folder without a bundle"),
    ):
        with pytest.raises(InputError, match=f"model.weights: .*{sentence}"):
            warmed(place)


def test_weights_of_a_network_with_torchs_batch_normalisation_keep_their_names(
    tmp_path: Path,
) -> None:
    torch.manual_seed(3)
    net = Torchs()
    net.body[1].running_mean.fill_(0.25)
    nn.init.uniform_(net.body[1].weight)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    recipe = replace(
        config(GLYPHS).recipe(), model=Net(build=Torchs, weights=str(tmp_path / "w.safetensors"))
    )
    problem = images("running", recipe.model)
    meta = Meta(problem.init(torch.Generator().manual_seed(0)), {}, problem.state())
    found = warm(recipe, meta).meta
    assert torch.equal(found.model["body.1.scale"], net.body[1].weight)
    assert found.state["body.1.mean"].tolist() == [0.25] * 4
