"""A GPU computes what a CPU computes, and its replays what it computes without them.

    python -m pytest -q tests/test_gpu.py

It needs neither Ray nor MLflow nor an installed ray-metatrain. Tests of the device are skipped,
saying so, where torch sees none; the others hold benchmarks/gpu.py to what it says of itself.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, SINUSOID, config, exact
from safetensors.torch import load_file

from cluster import run
from cluster.workers.plan import Plan
from cluster.workers.worker import Worker
from metatrain.algorithms import MAML
from metatrain.core import (
    Context,
    Meta,
    Params,
    Scores,
    Ticket,
    Update,
    generator_for,
    to_device,
)
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe
from metatrain.start import TRAINING, Prepared, prepare

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@dataclass(frozen=True, kw_only=True)
class Looking(MAML):
    """MAML that looks at a number of its update, for which the host has to wait."""

    name: str = "test_gpu:Looking"

    def update(self, problem: Any, meta: Meta, tasks: Any, context: Context) -> Update:
        found = super().update(problem, meta, tasks, context)
        seen = float(found.metrics["loss_after"])
        return found._replace(metrics={**found.metrics, "seen": seen})


LOOKING = SINUSOID | {"algorithm": {"name": "test_gpu:Looking", "inner_lr": 0.01}}


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """The graphs that are replayed, in turn."""
    found: list[object] = []
    replay = torch.cuda.CUDAGraph.replay

    def noted(graph: torch.cuda.CUDAGraph) -> None:
        found.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", noted)
    return found


def in_doubles(recipe: Recipe, device: torch.device) -> Params:
    """An update of three tasks, in double precision."""
    prepared = prepare(recipe)
    setting, ticket = prepared.settings[TRAINING], Ticket("update", "train", 1, 0)
    problem, meta = prepared.bind(TRAINING, "batched"), prepared.meta
    tasks = setting.family.sample(generator_for(setting.seed, ticket, "tasks"), 3, "train")
    if isinstance(problem, Supervised):  # environments give floats
        meta, to_float = exact(meta), problem.to_float
        problem.to_float = lambda x: to_float(x).double()
        leaves = (leaf.double() if leaf.is_floating_point() else leaf for leaf in tasks)
        tasks = type(tasks)(*leaves)
    context = Context(ticket, generator_for(setting.seed, ticket, "adaptation"))
    found = setting.algorithm.update(
        problem, to_device(meta, device), to_device(tasks, device), context
    )
    return to_device(found.direction, CPU).flat()


def at(prepared: Prepared, version: int) -> Meta:
    """Meta-parameters of a version: those of the start, scaled."""
    scale = 1 + 0.1 * version
    return prepared.meta._replace(model={n: p * scale for n, p in prepared.meta.model.items()})


def computed(worker: Worker, prepared: Prepared, version: int, ticket: Ticket) -> Update:
    worker.load(version, worker.layout.flatten(at(prepared, version)))
    update, _ = worker.compute(ticket)
    assert isinstance(update, Update)
    return update


def bits(update: Update) -> dict[str, Any]:
    """All numbers of an update."""
    direction = to_device(update.direction, CPU).flat()
    metrics = {name: float(value) for name, value in update.metrics.items()}
    return {name: p.tolist() for name, p in direction.items()} | metrics


@on_gpu
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_gives_the_updates_of_a_cpu(case: str) -> None:
    """In doubles, where no activation falls to the other side of zero by rounding."""
    recipe = config(CASES[case]).recipe()
    expected, found = in_doubles(recipe, CPU), in_doubles(recipe, CUDA)
    played = next(iter(expected.values())).dtype == torch.float32
    tolerance = 1e-3 if played else 1e-9
    for name, p in expected.items():
        assert (found[name] - p).norm() <= tolerance * p.norm() + 1e-12, name


@on_gpu
@pytest.mark.parametrize("case", CASES)
def test_a_replay_gives_the_bits_of_what_it_repeats(case: str, replays: list[object]) -> None:
    """On two sizes of tickets and two versions; a later ticket leaves what an earlier one gave."""
    recipe = config(CASES[case]).recipe()
    prepared, plan = prepare(recipe), Plan("batched", "cuda", 1)
    last = recipe.outer.tickets() - 1
    tickets = [Ticket("update", "train", s, part) for s, part in enumerate((0, 0, 0, last, last))]
    worker = Worker(prepared, plan)
    found = [computed(worker, prepared, t.step // 2, t) for t in tickets]
    replayed = len(replays)
    expected = [computed(Worker(prepared, plan), prepared, t.step // 2, t) for t in tickets]
    for ticket, here, there in zip(tickets, found, expected, strict=True):
        assert bits(here) == bits(there), ticket
    assert len(replays) == replayed, "the first update of a worker is computed as it is"
    assert replayed or case in ("meta-knowledge", "r2d2"), "these read more than the others"


@on_gpu
def test_a_compiled_update_is_the_same_function() -> None:
    """It is built when it is recorded, at the second ticket of its size."""
    prepared = prepare(config(SINUSOID).recipe())
    plain, fused = (Worker(prepared, Plan("batched", "cuda", 1, c)) for c in (False, True))
    for step in range(3):
        ticket = Ticket("update", "train", step, 0)
        expected, found = (computed(w, prepared, step, ticket) for w in (plain, fused))
        for name, p in expected.direction.flat().items():
            assert (found.direction.flat()[name] - p).norm() <= 1e-4 * p.norm(), name


@on_gpu
@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_a_cpu(case: str) -> None:
    prepared = prepare(config(CASES[case]).recipe())
    found = []
    for device in ("cpu", "cuda"):
        worker = Worker(prepared, Plan("batched", device, 1))
        worker.load(0, worker.layout.flatten(prepared.meta))
        scores, _ = worker.compute(Ticket("score", "test", 0, 0))
        assert isinstance(scores, Scores)
        found.append(scores.curves)
    for norm, curves in found[0].items():
        mine = found[1][norm]["loss"]
        assert mine.device == CPU
        assert (curves["loss"] - mine).abs().max() < 1e-2


@on_gpu
@pytest.mark.parametrize("case", ["sinusoid", "maml-conv4", "meta-sgd", "reptile-conv4"])
def test_a_run_gives_the_same_bits_again_and_resumed(
    case: str, tmp_path: Path, replays: list[object]
) -> None:
    found = []
    for name, ends in (("once", (6,)), ("again", (6,)), ("resumed", (3, 6))):
        for steps in ends:
            settings = config(
                CASES[case],
                workers={"max": 0, "gpus": 1},
                outer__steps=steps,
                validation={"every_steps": 2, "tasks": 4},
                output=str(tmp_path / name),
            )
            run.train(settings, resume="auto")
        found.append(load_file(tmp_path / name / "bundle" / "meta.safetensors"))
    for other in found[1:]:
        assert all(torch.equal(p, other[name]) for name, p in found[0].items())
    assert replays


@on_gpu
def test_a_run_in_process_stays_on_the_device(tmp_path: Path) -> None:
    settings = config(SINUSOID, workers={"max": 0, "gpus": 1}, output=str(tmp_path / "run"))
    learner = run.prepare(settings).learner
    assert all(p.is_cuda for p in learner.meta().model.values())


@on_gpu
def test_an_update_that_waits_is_computed_and_the_device_stays_sound(
    replays: list[object],
) -> None:
    """A capture of it would fail; what follows in the process is recorded as ever."""
    for tree in (LOOKING, SINUSOID):
        prepared = prepare(config(tree).recipe())
        worker = Worker(prepared, Plan("batched", "cuda", 1))
        here = Worker(prepared, Plan("batched", "cpu", 1))
        for step in range(4):
            ticket = Ticket("update", "train", step, 0)
            mine, expected = (computed(w, prepared, 0, ticket) for w in (worker, here))
            for name, p in expected.direction.model.items():
                assert (mine.direction.model[name].cpu() - p).norm() < 1e-3 * p.norm(), name
        assert bool(replays) == (tree is SINUSOID)
        assert torch.cuda.current_stream() == torch.cuda.default_stream()
        assert not torch.cuda.is_current_stream_capturing()
        torch.cuda.empty_cache()  # asserts where a capture seems to be under way


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """benchmarks/gpu.py as it is started, with a workload that is measured at once."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import gpu

    given = ["gpu.py", "--device", "cpu", "--output", str(tmp_path / "out")]
    glyphs = ["--set", "family.data=glyphs", "--set", "family.splits=glyphs"]
    monkeypatch.setattr(sys, "argv", given + glyphs)
    monkeypatch.setattr(gpu.measure, "machine", lambda: "a machine")
    monkeypatch.setattr(gpu, "speeds", lambda *_: iter([["W1", *"123456"], ["O1", *"123456"]]))
    monkeypatch.setattr(gpu, "replays", lambda *_: iter([["O1", *"12345"]]))
    return gpu


def test_the_benchmark_looks_for_its_data_first(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv[:-4])  # omniglot, which was not imported here
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert "metatrain data import omniglot" in str(ended.value.code)
    assert not list(tmp_path.glob("out/*"))


def test_the_benchmark_keeps_what_it_has_measured_and_holds_the_device_no_longer(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(script.run, "train", broken)
    with pytest.raises(RuntimeError):
        script.main()
    (written,) = tmp_path.glob("out/gpu_speeds_*.md")
    assert "| O1 | 1 | 2 | 3 | 4 | 5 |" in written.read_text()
    assert all(t.daemon for t in threading.enumerate() if isinstance(t, threading.Timer))


def test_the_benchmark_learns_and_draws_its_accuracy(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(settings: Any, resume: str) -> Any:
        folder = tmp_path / "out" / "run"
        folder.mkdir()
        rows = [{"step": 0, "val/accuracy_after": 0.2}]
        rows += [{"step": 1, "system/tasks_per_s": 64.0, "system/driver_share": 0.5}]
        rows += [{"step": 2, "system/tasks_per_s": 64.0, "system/driver_share": 0.5}]
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        raise script.Interrupted("stopped after 2 steps")

    monkeypatch.setattr(script.run, "train", trained)
    script.main()
    (written,) = tmp_path.glob("out/gpu_run_*.md")
    assert "2 outer steps" in written.read_text()
    assert "2.0 steps/s" in written.read_text()
    assert (tmp_path / "out" / "accuracy.png").exists()


def test_the_benchmark_has_the_options_that_it_names(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    add = argparse.ArgumentParser.add_argument

    def noted(parser: Any, name: str, *rest: str, **options: Any) -> Any:
        given.append(name)
        return add(parser, name, *rest, **options)

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", noted)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        script.main()
    words = script.__doc__.replace("[", " ").replace("`", " ").split()
    assert {word for word in words if word.startswith("--")} <= {*given}


def test_the_name_of_a_machine_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import measure

    monkeypatch.setenv("PATH", "")
    assert measure.machine().endswith("no commit")
