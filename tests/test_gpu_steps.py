"""What an outer step costs on a GPU, counted on one that is pretended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, config, context, images
from pretended_gpu import CUDA, Gpu, kernels, pretended, tensors, unmarked
from torch.utils._python_dispatch import TorchDispatchMode

from cluster import loop
from cluster.collector import Interrupted, Requests
from cluster.config import Workers
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Contribution, Snapshot
from cluster.workers.compiled import traced
from cluster.workers.plan import Plan
from metatrain.algorithms import MAML
from metatrain.core import InputError, Meta, Task, Ticket, generator_for, to_device
from metatrain.data import sources
from metatrain.learner import Learner
from metatrain.models import Conv4
from metatrain.start import TRAINING, prepare
from metatrain.tasks import FewShot
from metatrain.tasks.augment import Augment


@pytest.fixture
def glyphs() -> FewShot:
    """A family whose images are drawn before a GPU is pretended."""
    assert FewShot().store.sizes.numel()
    return FewShot()


@pytest.fixture
def gpu() -> Iterator[type[Gpu]]:
    torch.set_num_threads(1)
    with pretended() as found:
        yield found
    sources.on_device.cache_clear()


SLOW = pytest.mark.ray


@SLOW
@pytest.mark.parametrize("turns", ["per-task", "classes", "none"])
def test_a_gpu_draws_the_tasks_of_a_cpu_without_a_wait(
    turns: Any, glyphs: FewShot, gpu: type[Gpu]
) -> None:
    family = replace(glyphs, shots=2, imbalance=1, queries=3, augment=Augment(turns=turns))
    there = family.resident(CUDA)
    for step in range(2):
        ticket = Ticket("update", "train", step, 0)
        gpu.waits.clear()
        found = there.sample(generator_for(0, ticket, "tasks"), 3, "train")
        with unmarked():
            expected = family.sample(generator_for(0, ticket, "tasks"), 3, "train")
            for mine, theirs in zip(found, expected, strict=True):
                assert torch.equal(mine, theirs)
        assert step == 0 or not gpu.waits


PLAIN = Plan("batched", "cuda", 1)


def stepped(
    tree: dict[str, Any], gpu: type[Gpu], steps: int, plan: Plan = PLAIN
) -> tuple[Meta, list[int], list[int]]:
    """The parameters after outer steps in process, and the waits and kernels of each step."""
    recipe = config(tree).recipe()
    prepared = prepare(recipe)
    pool = LocalPool(prepared, plan)
    learner = Learner(to_device(prepared.meta, CUDA), recipe.outer)
    pool.publish(Snapshot(0, learner.meta()))
    waits, each = [], []
    for step in range(steps):
        gpu.waits.clear()
        before = gpu.kernels
        tickets = prepared.settings[TRAINING].tickets(step)
        for ticket in tickets:
            pool.request(ticket)
        found = [pool.next(1.0) for _ in tickets]
        learner.apply([c.result for c in found if isinstance(c, Contribution)])
        pool.publish(Snapshot(learner.version, learner.meta()))
        waits.append(sum(gpu.waits.values()))
        each.append(gpu.kernels - before)
    return learner.meta(), waits, each


def small(name: str) -> dict[str, Any]:
    outer = {"steps": 6, "tasks_per_step": 2, "tasks_per_ticket": 2, "lr": 0.01}
    tree = CASES[name] | {"outer": outer}
    return tree | ({"model": GLYPHS["model"] | {"filters": 4}} if "maml" in name else {})


@pytest.mark.parametrize(
    "case",
    ["sinusoid", *(pytest.param(x, marks=SLOW) for x in ("maml-conv4", "layer-step-rates"))],
)
def test_the_host_waits_once_an_outer_step(case: str, gpu: type[Gpu]) -> None:
    """For all numbers of the step, what an algorithm learns included."""
    _, waits, _ = stepped(small(case), gpu, 5)
    assert max(waits[3:]) == 1


@SLOW
def test_the_host_waits_twice_for_several_tickets(gpu: type[Gpu]) -> None:
    """Whether their mean is finite decides whether each has to be looked at."""
    tree = small("sinusoid")
    tree["outer"] = tree["outer"] | {"tasks_per_ticket": 1}
    _, waits, _ = stepped(tree, gpu, 5)
    assert max(waits[3:]) == 2


@pytest.mark.parametrize("stops_after", [None, 8])
def test_steps_are_reported_in_turn_and_before_they_are_saved(
    stops_after: int | None, gpu: type[Gpu]
) -> None:
    """Though a GPU is asked for the next ones before their numbers have come."""
    tree = small("sinusoid") | {"validation": {"every_steps": 5, "tasks": 2}}
    tree["outer"] = tree["outer"] | {"steps": 12}
    recipe = config(tree).recipe()
    prepared = prepare(recipe)
    pool = LocalPool(prepared, Plan("batched", "cuda", 1))
    learner = Learner(to_device(prepared.meta, CUDA), recipe.outer)
    said: list[tuple[str, int]] = []
    ahead: list[int] = []

    def on_step(step: int, metrics: dict[str, float]) -> None:
        said.append(("validated" if "val/mse_after" in metrics else "step", step))
        ahead.append(learner.version - step)

    requests = Requests(pool, lambda: learner.version == stops_after)
    hooks = loop.Hooks(on_step, lambda: said.append(("saved", learner.version)))
    with pytest.raises(Interrupted) if stops_after else nullcontext():
        loop.train(prepared, learner, pool, requests, hooks, save_every=4)
    end = stops_after or 12
    assert [step for what, step in said if what != "saved"] == list(range(end + 1))
    assert [step for what, step in said if what == "validated"] == [
        step for step in (0, 5, 10, 12) if step <= end
    ]
    saved = [at for at, (what, _) in enumerate(said) if what == "saved"]
    assert [said[at] for at in saved] == [("saved", step) for step in (4, 8, 12) if step <= end]
    assert all(said[at - 1][1] == said[at][1] for at in saved)
    assert max(ahead) > 0


@SLOW
def test_what_cannot_be_reported_keeps_no_other_step_from_it(gpu: type[Gpu]) -> None:
    """Nor from the checkpoint that is left: a resumed run has a line of each step before it."""
    tree = small("sinusoid")
    tree["outer"] = tree["outer"] | {"steps": 12}
    recipe = config(tree).recipe()
    prepared = prepare(recipe)
    pool = LocalPool(prepared, Plan("batched", "cuda", 1))
    learner = Learner(to_device(prepared.meta, CUDA), recipe.outer)
    said: list[int] = []
    saved: list[int] = []

    def on_step(step: int, metrics: dict[str, float]) -> None:
        if step in (3, 4):
            raise OSError("no space is left")
        said.append(step)

    hooks = loop.Hooks(on_step, lambda: saved.append(learner.version))
    with pytest.raises(OSError, match="no space"):
        loop.train(prepared, learner, pool, Requests(pool), hooks, save_every=100)
    assert saved == [learner.version]
    assert said == [step for step in range(1, learner.version + 1) if step not in (3, 4)]
    assert learner.version > 5


@SLOW
def test_tickets_of_a_step_are_drawn_ahead_and_are_the_same(gpu: type[Gpu]) -> None:
    tree = small("sinusoid")
    tree["outer"] = tree["outer"] | {"tasks_per_step": 5}
    meta, _, _ = stepped(tree, gpu, 4)
    recipe = config(tree).recipe()
    with unmarked():
        prepared = prepare(recipe)
        pool, learner = (
            LocalPool(prepared, Plan("batched", "cpu", 1)),
            Learner(prepared.meta, recipe.outer),
        )
        for step in range(4):
            pool.publish(Snapshot(step, learner.meta()))
            tickets = prepared.settings[TRAINING].tickets(step)
            for ticket in tickets:
                pool.request(ticket)
            learner.apply([pool.next(1.0).result for _ in tickets])
        for name, p in learner.meta().model.items():
            torch.testing.assert_close(meta.model[name], p, rtol=1e-5, atol=1e-7)


class Counted(TorchDispatchMode):
    """The kernels of what is computed on tensors without memory."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.kernels += kernels(func, tensors((args, kwargs)), tensors(found))
        return found


@SLOW
def test_an_update_of_the_papers_omniglot_recipe_is_less_than_900_kernels() -> None:
    """One copy for the patches of a convolution. With a copy for each of nine taps it was 1344."""
    model = Conv4(pool="stride", features="mean", norm_scale=False)
    algorithm = MAML(inner_lr=2.0, adapts=("*.conv.*", "head.*"))
    bound, there = images(model, "batched", 5), torch.device("meta")
    meta = to_device(algorithm.init(bound, torch.Generator()), there)
    x, y = (
        torch.empty(32, 5, 1, 28, 28, device=there),
        torch.empty(32, 5, dtype=torch.int64, device=there),
    )
    with Counted() as counted:
        algorithm.update(bound, meta, Task(x, y, x, y), context())
    assert 0 < counted.kernels < 900


@SLOW
def test_the_operations_that_are_compiled_are_those_of_the_update() -> None:
    """Second derivatives included, also of other tasks and other parameters."""
    recipe = config(small("layer-step-rates")).recipe()
    prepared = prepare(recipe)
    setting = prepared.settings[TRAINING]
    update = partial(setting.algorithm.update, prepared.bind(TRAINING, "batched"))
    tasks = [
        setting.family.sample(
            generator_for(seed, Ticket("update", "train", 0, 0), "tasks"), 2, "train"
        )
        for seed in (0, 1)
    ]
    graph, named = traced(update, prepared.meta, tasks[0], context())
    grown = {name: p * 1.1 for name, p in prepared.meta.model.items()}
    for meta in (prepared.meta, prepared.meta._replace(model=grown)):
        expected = update(meta, tasks[1], context())
        found = named(graph(*meta.flat().values(), *tasks[1]))
        assert found.tasks == expected.tasks
        assert found.metrics == expected.metrics
        for name, p in expected.direction.flat().items():
            assert torch.equal(found.direction.flat()[name], p), name


@SLOW
@pytest.mark.parametrize("works", [True, False])
def test_a_step_is_compiled_if_that_is_asked_for_and_possible(
    works: bool, gpu: type[Gpu], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The compiler stands aside here: it takes minutes. tests/test_gpu.py has it work."""
    compiled = []

    def aside(graph: Any, given: Any) -> Any:
        compiled.append(graph)
        if not works:
            raise RuntimeError("no compiler")
        return graph

    monkeypatch.setattr("torch._inductor.compile", aside)
    plain, _, of_plain = stepped(small("sinusoid"), gpu, 4)
    found, _, of_found = stepped(small("sinusoid"), gpu, 4, Plan("batched", "cuda", 1, True))
    assert len(compiled) == 1
    assert ("cannot be compiled" in caplog.text) == (not works)
    assert gpu.replays == 6
    assert of_found[-1] <= of_plain[-1]
    with unmarked():
        for name, p in plain.model.items():
            assert torch.equal(found.model[name], p)


@pytest.mark.parametrize("workers", [{"max": 0, "compile": True}, {"gpus": 1, "compile": True}])
def test_only_updates_on_a_gpu_in_process_are_compiled(workers: dict[str, Any]) -> None:
    """A Ray worker that compiles for minutes would be taken for one that hangs."""
    with pytest.raises(InputError) as error:
        Workers(**workers)
    assert error.value.what == "compile"
