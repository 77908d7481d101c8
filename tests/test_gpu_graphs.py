"""Which updates become a CUDA graph, of a user's own code as well, and what a failure leaves."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import SINUSOID, config
from pretended_cases import agree, maml, small
from pretended_gpu import DEFAULT, Gpu
from torch import Tensor, nn

from cluster.pools.local_pool import LocalPool
from cluster.workers import cuda
from cluster.workers.plan import Plan
from cluster.workers.worker import Worker
from metatrain.algorithms import inner_loop
from metatrain.core import Context, InputError, Meta, Ticket, Update
from metatrain.start import TRAINING, prepare
from metatrain.tasks import Sinusoid


class Gridded(nn.Module):
    """A layer with a constant of its own, which a module takes with it when it is moved."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, 8))
        self.body, self.head = nn.Linear(inputs, 8), nn.Linear(8, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.body(x)) * self.grid)
        return found


@dataclass(frozen=True, kw_only=True)
class Grid:
    name: str = "test_gpu_graphs:Grid"

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        return Gridded(inputs[0], outputs)


@dataclass(frozen=True, kw_only=True)
class Own:
    """First-order MAML of the user's that does what `kind` says besides."""

    name: str = "test_gpu_graphs:Own"
    kind: str = ""

    def init(self, problem: Any, generator: torch.Generator) -> Meta:
        return Meta(problem.init(generator), {}, {})

    def adapt(self, problem: Any, meta: Meta, task: Any, context: Context) -> Iterator[Any]:
        rate: Any = 0.01
        generator = context.generator
        if self.kind == "reads":  # what no tracer sees
            rate *= max(task[0].flatten().tolist())
        if self.kind == "annealed":  # by the outer step, as MAML++ does
            rate /= 1 + context.ticket.step
        if self.kind == "noisy later" and context.ticket.step > 0:
            rate *= 1 + float(torch.rand((), generator=generator))
        if self.kind == "noisy":
            rate = torch.rand((), generator=generator).to(task[0].device)
        if self.kind == "noisy, on the host":
            rate = torch.rand(3, generator=generator)[torch.arange(3)].numpy().max().item()
        if self.kind == "noisy, in place":
            rate = torch.empty(()).uniform_(generator=generator).to(task[0].device)

        def loss(phi: Any) -> Tensor:
            found: Tensor = problem.support_loss(phi, task, context)
            return found

        rates = [dict.fromkeys(meta.model, rate)]
        start = inner_loop.start(meta, task)
        yield from inner_loop.descend(loss, start, rates=rates, order=1, generator=generator)

    def update(self, problem: Any, meta: Meta, tasks: Any, context: Context) -> Update:
        found = inner_loop.mean_gradient(self.adapt, problem, meta, tasks, context)
        if self.kind == "looks":  # at a number
            seen = {"seen": float(found.metrics["loss_after"])}
            found = found._replace(metrics={**found.metrics, **seen})
        if self.kind == "counts":  # on the host
            counted = {"counted": torch.tensor(3.0)}
            found = found._replace(metrics={**found.metrics, **counted})
        if self.kind == "synchronises":  # which is found in a capture only
            waits_unseen()
        return found


def waits_unseen() -> None:
    if Gpu.capturing is not None:
        torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Varying(Sinusoid):
    """Sinusoids with as many shots as the ticket's draw says."""

    name: str = "test_gpu_graphs:Varying"  # type: ignore[assignment]
    most: int = 2

    def sample(self, generator: torch.Generator, count: int, split: Any) -> Any:
        shots = 1 + int(torch.randint(self.most, (), generator=generator))
        return Sinusoid(shots=shots, queries=5).sample(generator, count, split)


def own(kind: str) -> dict[str, Any]:
    return small(SINUSOID, algorithm={"name": "test_gpu_graphs:Own", "kind": kind})


def varying(most: int) -> dict[str, Any]:
    family = {"name": "test_gpu_graphs:Varying", "shots": 5, "queries": 5, "most": most}
    return small(SINUSOID, family=family, algorithm=maml(inner_lr=0.01))


def test_constants_of_a_users_network_lie_where_its_inputs_do(gpu: type[Gpu]) -> None:
    agree(small(SINUSOID, model={"name": "test_gpu_graphs:Grid"}))
    assert gpu.replays == 5


def test_a_network_that_takes_one_task_after_the_other_is_replayed_too(gpu: type[Gpu]) -> None:
    agree(small(SINUSOID), path="reference")
    assert gpu.replays == 5


@pytest.mark.parametrize(
    ("kind", "replays"),
    [
        ("annealed", 0),
        ("noisy later", 0),
        ("noisy", 5),
        ("noisy, on the host", 0),
        ("noisy, in place", 0),
    ],
)
def test_what_a_ticket_decides_is_not_frozen_into_a_graph(
    kind: str, replays: int, gpu: type[Gpu]
) -> None:
    agree(own(kind))
    assert gpu.replays == replays
    assert not gpu.baked


def test_metrics_may_be_numbers_of_the_host(gpu: type[Gpu]) -> None:
    agree(own("counts"), steps=3)
    assert gpu.replays == 2


def test_tasks_of_each_shape_have_a_graph_and_are_not_too_many(
    gpu: type[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "MOST_GRAPHS", 2)
    agree(varying(3), steps=14)
    assert len(gpu.captures) == 2
    assert 2 < gpu.replays < 12


def test_updates_of_each_phase_have_a_graph_and_a_memory_of_their_own(gpu: type[Gpu]) -> None:
    """A memory whose graphs are all gone takes no other."""
    algorithm = {"name": "maml_plus_plus", "inner_lr": 0.01, "inner_steps": 2}
    algorithm |= {"multi_step_epochs": 2, "first_order_epochs": 1}
    agree(small(SINUSOID, algorithm=algorithm | {"epoch_steps": 3}), steps=9)
    assert gpu.replays == 6
    assert len({id(capture["pool"]) for capture in gpu.captures}) == 3
    assert len({id(capture["stream"]) for capture in gpu.captures}) == 1


@pytest.mark.parametrize(("kind", "captures"), [("looks", 0), ("synchronises", 1)])
def test_an_update_that_cannot_be_captured_leaves_the_process_sound(
    kind: str, captures: int, gpu: type[Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    """A wait that torch knows is found before a capture; after another one, all goes on."""
    agree(own(kind))
    assert len(gpu.captures) == captures
    assert gpu.stuck == 0
    assert gpu.replays == 0
    assert not gpu.strict
    assert torch.cuda.current_stream() is DEFAULT
    assert caplog.text.count("updates cannot be recorded as a CUDA graph and are slower") == 1
    agree(small(SINUSOID), steps=3)
    assert gpu.replays == 2


@pytest.mark.ray
def test_what_the_host_reads_of_a_task_is_not_compiled_into_an_update(
    gpu: type[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler stands aside."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, given: graph)
    agree(own("reads"), steps=4, compiles=True)
    assert gpu.replays == 0


def test_too_little_memory_for_a_graph_is_no_end(
    gpu: type[Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", full)
    agree(small(SINUSOID), steps=3)


def test_too_little_memory_for_a_data_set_names_it(gpu: type[Gpu]) -> None:
    class Large(Sinusoid):
        def resident(self, device: torch.device) -> Sinusoid:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    prepared = prepare(config(small(SINUSOID)).recipe())
    training = prepared.settings[TRAINING]
    prepared.settings[TRAINING] = training._replace(family=Large(shots=5, queries=5))
    worker = Worker(prepared, Plan("batched", "cuda", 1))
    with pytest.raises(InputError, match="memory of the GPU is not enough for the data set"):
        worker.compute(Ticket("update", "train", 0, 0))


def test_a_family_that_ends_the_process_is_named_though_it_is_asked_ahead(gpu: type[Gpu]) -> None:
    class Leaving(Sinusoid):
        def sample(self, generator: torch.Generator, count: int, split: Any) -> Any:
            if drawn:
                sys.exit("enough")
            drawn.append(count)
            return super().sample(generator, count, split)

    drawn: list[int] = []
    prepared = prepare(config(small(SINUSOID)).recipe())
    training = prepared.settings[TRAINING]
    prepared.settings[TRAINING] = training._replace(family=Leaving(shots=5, queries=5))
    pool = LocalPool(prepared, Plan("batched", "cuda", 1))
    for step in range(2):
        pool.request(Ticket("update", "train", step, 0))
    assert pool.next(1.0) is not None
    with pytest.raises(InputError, match="a class of yours ended the process"):
        pool.next(1.0)


def test_graphs_of_a_worker_have_one_stream_and_one_memory(gpu: type[Gpu]) -> None:
    """Graphs of different workers have none in common, which would die with the first of them."""
    prepared = prepare(config(small(SINUSOID)).recipe())
    for _ in range(2):
        worker = Worker(prepared, Plan("batched", "cuda", 1))
        for step, part in ((0, 0), (1, 0), (0, 1), (1, 1)):
            worker.compute(Ticket("update", "train", step, part))
    each = Counter((id(capture["stream"]), id(capture["pool"])) for capture in gpu.captures)
    assert [*each.values()] == [2, 2]
    assert id(None) not in {stream for stream, _ in each} | {pool for _, pool in each}
