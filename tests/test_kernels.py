"""The kernels for a CPU equal their reference, are built once, and where they cannot be, runs go on
without them.
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from cases import GLYPHS, config
from services import command

from cluster.pools import ray_worker
from cluster.workers.plan import Plan, choose_plan
from cluster.workers.worker import Worker
from metatrain import schema
from metatrain.core import InputError
from metatrain.data.sources import import_data
from metatrain.ops import build
from metatrain.ops.block import FEW, KERNELS, Shape, block, reference
from metatrain.problems import network
from metatrain.start import prepare

FUSED = GLYPHS | {"model": {"name": "conv4", "filters": 16}}


def both(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    shape: Shape,
    images_too: bool = True,
    residual: torch.Tensor | None = None,
) -> list[list[torch.Tensor]]:
    """The output and all first and second derivatives: of the kernels, and of the reference.

    Images of few channels whose gradient nobody wants, those of a first layer, have kernels of
    their own.
    """
    g = torch.Generator().manual_seed(3)
    cotangent = torch.randn(
        reference(x, weight, scale, shift, shape).shape, generator=g, dtype=torch.double
    ).to(x)
    found = []
    for function in (block, reference):
        leaves = [
            t.clone().requires_grad_(t is not x or images_too) for t in (x, weight, scale, shift)
        ]
        added = None if residual is None else residual.clone().requires_grad_()
        upstream = cotangent.clone().requires_grad_()
        y = function(*leaves, shape, added)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        asked = wanted if added is None else [*wanted, added]
        first = torch.autograd.grad(y, asked, upstream, create_graph=True)
        g = torch.Generator().manual_seed(4)
        along = [torch.randn(t.shape, generator=g, dtype=torch.double).to(x.dtype) for t in first]
        second = torch.autograd.grad(
            first, [*wanted[:-1], upstream], along
        )  # no derivative depends on the shift
        found.append([t.detach() for t in (y, *first, *second)])
    return found


def tensors(images: int, narrow: int, wide: int, height: int, width: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = [(images, narrow, height, width), (wide, narrow, 3, 3), (wide,), (wide,)]
    return [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes]


SIZES = [  # images, channels in and out, height, width
    (3, 1, 16, 9, 8),
    (2, 1, 64, 28, 28),
    (3, 3, 48, 7, 7),
    (4, 2, 32, 6, 5),
    (2, 4, 16, 5, 5),
    (2, 16, 64, 5, 4),
    (4, 32, 32, 2, 3),
    (30, 16, 16, 13, 12),
    (2, 64, 64, 2, 2),
]


@pytest.mark.parametrize("images_too", [True, False])
@pytest.mark.parametrize(("stride", "pool"), [(1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize(("images", "narrow", "wide", "height", "width"), SIZES)
def test_output_and_both_derivatives_equal_the_reference(
    images: int,
    narrow: int,
    wide: int,
    height: int,
    width: int,
    stride: int,
    pool: int,
    images_too: bool,
) -> None:
    """Odd sizes, few images and many (which PyTorch convolves), any factor's sign."""
    found, expected = both(
        *tensors(images, narrow, wide, height, width), Shape(stride, pool, 1e-3), images_too
    )
    for here, there in zip(found, expected, strict=True):
        assert (here - there).norm() <= 1e-10 * (there.norm() + 1e-8)


@pytest.mark.parametrize(("stride", "pool"), [(1, 2), (2, 1), (1, 1)])
@pytest.mark.parametrize(("images", "narrow", "wide", "height", "width"), SIZES[2::3])
def test_with_a_residual_output_and_both_derivatives_equal_the_reference(
    images: int, narrow: int, wide: int, height: int, width: int, stride: int, pool: int
) -> None:
    given, shape = tensors(images, narrow, wide, height, width), Shape(stride, pool, 1e-3)
    g = torch.Generator().manual_seed(5)
    size = [(side - 1) // stride + 1 for side in (height, width)]
    residual = torch.randn(images, wide, *size, generator=g, dtype=torch.float64)
    found, expected = both(*given, shape, residual=residual)
    for here, there in zip(found, expected, strict=True):
        assert (here - there).norm() <= 1e-10 * (there.norm() + 1e-8)


@pytest.mark.parametrize("images_too", [True, False])
@pytest.mark.parametrize(("narrow", "wide"), [(1, 64), (64, 64), (16, 48)])
def test_float32_is_the_same_function(narrow: int, wide: int, images_too: bool) -> None:
    """It goes through the channels in larger parts."""
    given = tensors(3, narrow, wide, 9, 8)
    for shape in (Shape(1, 2, 1e-3), Shape(2, 1, 1e-3)):
        single, double = (
            both(*(t.to(kind) for t in given), shape, images_too)[0]
            for kind in (torch.float, torch.double)
        )
        for here, there in zip(single, double, strict=True):
            assert (here - there).norm() <= 1e-4 * there.norm()


def test_both_kinds_of_convolution_are_among_those() -> None:
    pixels = [images * height * width for images, narrow, _, height, width in SIZES if narrow == 16]
    assert min(pixels) < FEW < max(pixels)


@pytest.mark.parametrize(("stride", "pool"), [(1, 2), (2, 1)])
def test_equal_pixels_and_zeros_choose_as_the_reference_does(stride: int, pool: int) -> None:
    """Of equal ones the first wins, and ReLU passes nothing at zero: blank images, and shifts of
    zero.
    """
    x, weight, scale, _ = tensors(2, 16, 16, 8, 8)
    x[0], x[1, :, 4:] = 1, 0
    found, expected = both(
        x, weight, scale, torch.zeros(16, dtype=torch.float64), Shape(stride, pool, 1e-3)
    )
    for here, there in zip(found, expected, strict=True):
        assert (here - there).norm() <= 1e-10 * (there.norm() + 1e-8)


def test_the_same_bits_on_each_call() -> None:
    given = [t.float() for t in tensors(3, 16, 32, 9, 9)]
    first, second = (both(*given, Shape(1, 2, 1e-3))[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_third_derivative_is_refused() -> None:
    leaves = [t.requires_grad_() for t in tensors(2, 16, 16, 4, 4)]
    y = block(*leaves, Shape(1, 2, 1e-3))
    (first,) = torch.autograd.grad((y**2).sum(), leaves[1], create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaves[1], create_graph=True)
    with pytest.raises(RuntimeError, match="this is the third time"):
        torch.autograd.grad(second.sum(), leaves[1])


@pytest.mark.parametrize("narrow", [1, 16])
def test_what_is_not_a_number_stays_so(narrow: int) -> None:
    """A diverged inner loop must not look like one that predicts by chance."""
    x, weight, scale, shift = tensors(2, narrow, 16, 8, 8)
    for spoiled, value in ((x, float("nan")), (weight, float("inf"))):
        given = [
            torch.full_like(t, value) if t is spoiled else t for t in (x, weight, scale, shift)
        ]
        for shape in (Shape(1, 2, 1e-3), Shape(2, 1, 1e-3)):
            found = block(*given, shape)
            assert torch.equal(found.isnan(), reference(*given, shape).isnan())
            assert found.isnan().any()


def test_what_does_not_fit_is_refused_before_memory_is_read() -> None:
    x, weight, scale, shift = tensors(2, 16, 16, 8, 8)
    wrong = [
        (x[:0], weight, scale, shift),
        (x[:, :8], weight, scale, shift),
        (x, weight[:8], scale[:8], shift[:8]),
        (x, weight, scale, shift.float()),
        (x, weight, scale[:8], shift),
        (x.float(), weight, scale, shift),
    ]
    for given in wrong:
        with pytest.raises(RuntimeError, match="does not fit"):
            block(*given, Shape(1, 2, 1e-3))


def compiler(folder: Path, body: str) -> Path:
    path = folder / "c++"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.mark.ray
def test_of_processes_that_start_at_once_one_builds(tmp_path: Path) -> None:
    log = tmp_path / "log"
    cxx = compiler(tmp_path, f'echo "$@" >> {log}\nexec c++ "$@" -O0')
    code = "from metatrain.ops import block, build; [build.library(name) for name in block.KERNELS]"
    env = os.environ | {"CXX": str(cxx), "METATRAIN_CACHE": str(tmp_path / "cache")}
    running = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(log.read_text().splitlines()) == 3
    left = sorted(path.name.split("-")[0] for path in (tmp_path / "cache" / ".compiled").iterdir())
    assert left == sorted([*KERNELS, *(f"{name}.lock" for name in KERNELS)])


@pytest.mark.parametrize("planted", ["link", "pipe", "open", "junk link"])
def test_only_a_library_that_nobody_else_can_write_is_loaded(
    planted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole, folder = Path(build.library("convolution")._name), tmp_path / "cache" / ".compiled"
    folder.mkdir(parents=True, mode=0o700)
    built = folder / whole.name
    if planted == "link":
        built.symlink_to(whole)
    elif planted == "junk link":
        built.symlink_to("/no/such/place")
    elif planted == "pipe":
        os.mkfifo(built)
    else:
        built.write_bytes(b"somebody else's code")
        built.chmod(0o777)
    cxx = compiler(tmp_path, f'while [ "$1" != -o ]; do shift; done; exec cp {whole} "$2"')
    without(monkeypatch, METATRAIN_CACHE=str(tmp_path / "cache"), CXX=str(cxx))
    build.library("convolution")
    state = built.lstat()
    assert stat.S_IMODE(state.st_mode) == 0o755
    assert state.st_size == whole.stat().st_size
    build.library.cache_clear()


@pytest.mark.parametrize("planted", ["link", "pipe", "folder"])
def test_a_lock_or_folder_that_was_planted_is_refused_and_written_to_by_nobody(
    planted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, victim = tmp_path / "cache" / ".compiled", tmp_path / "victim"
    folder.mkdir(parents=True, mode=0o700)
    victim.write_text("mine")
    lock = folder / "convolution.lock"
    if planted == "link":
        lock.symlink_to(victim)
    elif planted == "pipe":
        os.mkfifo(lock)
    else:
        folder.chmod(0o777)
    without(monkeypatch, METATRAIN_CACHE=str(tmp_path / "cache"))
    with pytest.raises(build.KernelsUnavailable, match=r"others can write|cannot be built"):
        build.library("convolution")
    assert victim.read_text() == "mine"
    assert not list(folder.glob("*.so"))
    build.library.cache_clear()


def test_what_is_built_needs_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    build.library("convolution")
    without(monkeypatch, CXX="/no/such/compiler")
    assert build.library("convolution") is not None


def without(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    build.library.cache_clear()
    network._kept.cache_clear()  # networks that kernels compute
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"PATH": "/nowhere", "CXX": ""},
            "there is no C\\+\\+ compiler: install g\\+\\+ or clang, or name one in CXX",
        ),
        ({"CXX": "/bin/false"}, "/bin/false does not build"),
        ({"CXX": "/no/such/compiler"}, "/no/such/compiler does not build .*No such file"),
        ({"CXX": "'g++"}, "cannot be built and loaded .No closing quotation"),
    ],
)
def test_without_a_compiler_the_reference_runs_and_a_worker_that_should_not_refuses(
    variables: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without(monkeypatch, METATRAIN_CACHE=str(tmp_path), **variables)
    recipe = config(FUSED, family__shape=[1, 28, 28]).recipe()
    plan, reason = choose_plan(prepare(recipe), gpus=0, threads=1)
    assert plan.path == "reference"
    assert "about half the time, cannot be used" in reason
    with pytest.raises(
        InputError, match=f"the compute path 'fused' that the driver chose .*{sentence}"
    ):
        Worker(prepare(recipe), Plan("fused", "cpu", 1))
    refusal = ray_worker.RayWorker(schema.dump(recipe), Plan("fused", "cpu", 1)).refusal
    assert refusal is not None
    assert "that the driver chose" in refusal
    build.library.cache_clear()


@pytest.mark.parametrize("model", [{"filters": 24}, {"filters": 16, "norm": "none"}])
def test_networks_that_the_kernels_are_not_for_take_the_reference(model: dict[str, object]) -> None:
    recipe = config(GLYPHS, model={"name": "conv4"} | model).recipe()
    plan, reason = choose_plan(prepare(recipe), 0, 1)
    assert plan.path == "reference"
    assert "filters in multiples of 16" in reason


@pytest.mark.ray  # takes seconds
def test_the_log_says_which_path_and_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(FUSED | {"outer": GLYPHS["outer"] | {"steps": 1}}))
    import_data("glyphs")
    empty = tmp_path / "cache"
    empty.mkdir()
    (empty / "glyphs").symlink_to(Path(os.environ["METATRAIN_CACHE"]) / "glyphs")
    none = {"CXX": "/bin/false", "METATRAIN_CACHE": str(empty)}
    for variables, said in (
        ({}, "compute path fused"),
        (none, "compute path reference: .*half the time"),
    ):
        without(monkeypatch, **variables)
        done = command(
            "train",
            str(recipe),
            "--set",
            f"output={tmp_path / said[13:18]}",
            "--set",
            "evaluation.tasks=2",
        )
        assert done.returncode == 0
        assert len(re.findall(said, done.stderr)) == 1, done.stderr
    build.library.cache_clear()
