"""What a GPU would refuse or get wrong, found without one: replays are what is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, REPTILE, SINUSOID, config
from pretended_gpu import DEFAULT, Gpu, pretended, unmarked
from torch import Tensor, nn

from cluster import run
from cluster.config import Workers
from cluster.dry_run import GB, Cost, Estimate, estimate
from cluster.pools.ray_worker import RayWorker
from cluster.workers import cuda
from cluster.workers.plan import Plan, choose_plan, device_of
from cluster.workers.worker import Worker
from metatrain import pretraining, schema
from metatrain.algorithms import inner_loop
from metatrain.core import Context, InputError, Meta, Ticket, Update, to_device
from metatrain.learner import Learner
from metatrain.start import TRAINING, prepare
from metatrain.tasks import Sinusoid, fewshot

SMALL = {"steps": 4, "tasks_per_step": 3, "tasks_per_ticket": 2, "lr": 0.003}
SCORED = {"tasks": 3, "tasks_per_ticket": 2}


@pytest.fixture
def gpu() -> Iterator[type[Gpu]]:
    torch.set_num_threads(1)
    with pretended() as found:
        yield found
    fewshot._resident.cache_clear()


def small(tree: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A case of two tickets a step, the second of one task, with a small network."""
    outer = {k: v for k, v in tree["outer"].items() if k in ("optimizer", "groups")}
    scored = {k: v for k, v in tree["evaluation"].items() if not k.startswith("tasks")}
    tree = tree | {"outer": SMALL | outer, "evaluation": SCORED | scored}
    if tree["model"]["name"] == "conv4":
        tree["model"] = tree["model"] | {"filters": 4}
    if "epoch_steps" in tree["algorithm"]:  # all steps are of one phase
        tree["algorithm"] = tree["algorithm"] | {"epoch_steps": 100}
    return tree | changes


def maml(**options: Any) -> dict[str, Any]:
    return {"name": "maml", "inner_lr": 0.1, **options}


NET = GLYPHS["model"] | {"filters": 4}
REPLAYED: dict[str, dict[str, Any]] = {
    name: small(tree) for name, tree in CASES.items() if name != "maml-conv4-fused"
} | {
    "recomputed": small(GLYPHS, algorithm=maml(inner_steps=2, recompute=True)),
    "max-pool, support+1": small(
        GLYPHS,
        model={"name": "conv4", "filters": 4},
        norm="support+1",
        evaluation=SCORED | {"norm": ["support", "support+1"]},
    ),
    "Reptile without batches": small(
        REPTILE, algorithm={"name": "reptile", "inner_lr": 0.001, "inner_steps": 2}
    ),
    "MAML of a memory": small(
        GLYPHS,
        model=NET | {"head": {"name": "memory", "cell": "gru", "hidden": 4}},
        algorithm=maml(),
    ),
}
FAST = {"sinusoid"}
SEEDED = {"meta-knowledge"}  # networks that are drawn from the seed itself: never replayed


def updates(recipe: Any, device: str) -> tuple[list[Update], Any]:
    """Three of two tasks and one of one, on two versions of the parameters; and a score."""
    prepared = prepare(recipe)
    worker, found = Worker(prepared, Plan("batched", device, 1)), []
    for step, part in enumerate((0, 0, 0, 1)):
        meta = prepared.meta
        grown = {name: p * (1 + 0.1 * (step // 2)) for name, p in meta.model.items()}
        worker.load(step // 2, worker.layout.flatten(meta._replace(model=grown)))
        found.append(worker.compute(Ticket("update", "train", step, part))[0])
    return found, worker.compute(Ticket("score", "test", 0, 0))[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.ray] * (case not in FAST)) for case in REPLAYED]
)
def test_replays_are_what_is_computed(case: str, gpu: type[Gpu]) -> None:
    """No tensor is in the wrong place, nothing waits in a capture or is baked into it."""
    recipe = config(REPLAYED[case]).recipe()
    found, scores = updates(recipe, "cuda")
    assert gpu.replays == (0 if case in SEEDED else 2)
    assert not gpu.baked
    with unmarked():
        expected, scored = updates(recipe, "cpu")
        for here, there in zip(found, expected, strict=True):
            for mine, theirs in zip(here.direction, there.direction, strict=True):
                assert all(torch.equal(mine[name], p) for name, p in theirs.items())
            assert here.metrics == there.metrics
        curves = scored.curves.items()
        for norm, curve in curves:
            assert all(torch.equal(scores.curves[norm][name], x) for name, x in curve.items())


@pytest.mark.ray
@pytest.mark.parametrize("case", ["sinusoid", "prototypical"])
def test_a_run_in_process_trains_saves_and_resumes(
    case: str, gpu: type[Gpu], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "leave", lambda *_: None)  # pictures take seconds
    ends = []
    for name, steps in (("whole", (4,)), ("halves", (2, 4))):
        for last in steps:
            tree = REPLAYED[case] | {
                "workers": {"max": 0, "gpus": 1},
                "validation": {"every_steps": 2, "tasks": 2},
                "output": str(tmp_path / name),
                "outer": REPLAYED[case]["outer"] | {"steps": last},
            }
            ends.append(run.train(config(tree), resume="auto")[1][0].mean)
    assert ends[0] == ends[2]


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
    name: str = "test_pretended_gpu:Grid"

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        return Gridded(inputs[0], outputs)


@dataclass(frozen=True, kw_only=True)
class Own:
    """First-order MAML of the user's that does what `kind` says besides."""

    name: str = "test_pretended_gpu:Own"
    kind: str = ""

    def init(self, problem: Any, generator: torch.Generator) -> Meta:
        return Meta(problem.init(generator), {}, {})

    def adapt(self, problem: Any, meta: Meta, task: Any, context: Context) -> Iterator[Any]:
        rate: Any = 0.01
        generator = context.generator
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
        if self.kind == "synchronises":  # which is found in a capture only
            waits_unseen()
        return found


def waits_unseen() -> None:
    if Gpu.capturing is not None:
        torch.cuda.synchronize()


@dataclass(frozen=True, kw_only=True)
class Varying(Sinusoid):
    """Sinusoids with as many shots as the ticket's draw says."""

    name: str = "test_pretended_gpu:Varying"  # type: ignore[assignment]
    most: int = 2

    def sample(self, generator: torch.Generator, count: int, split: Any) -> Any:
        shots = 1 + int(torch.randint(self.most, (), generator=generator))
        return Sinusoid(shots=shots, queries=5).sample(generator, count, split)


def own(kind: str) -> dict[str, Any]:
    return small(SINUSOID, algorithm={"name": "test_pretended_gpu:Own", "kind": kind})


def varying(most: int) -> dict[str, Any]:
    family = {"name": "test_pretended_gpu:Varying", "shots": 5, "queries": 5, "most": most}
    return small(SINUSOID, family=family, algorithm=maml(inner_lr=0.01))


def directions(tree: dict[str, Any], device: str, steps: int) -> list[Any]:
    prepared = prepare(config(tree).recipe())
    worker = Worker(prepared, Plan("batched", device, 1))
    worker.load(0, worker.layout.flatten(prepared.meta))
    tickets = [Ticket("update", "train", step, 0) for step in range(steps)]
    return [worker.compute(ticket)[0].direction for ticket in tickets]  # type: ignore[union-attr]


def agree(tree: dict[str, Any], steps: int = 6) -> None:
    """Assert that updates on both devices have the same bits."""
    found = directions(tree, "cuda", steps)
    with unmarked():
        for here, there in zip(found, directions(tree, "cpu", steps), strict=True):
            for name, p in there.model.items():
                assert torch.equal(here.model[name], p), name


def test_constants_of_a_users_network_lie_where_its_inputs_do(gpu: type[Gpu]) -> None:
    agree(small(SINUSOID, model={"name": "test_pretended_gpu:Grid"}))
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


def test_products_are_exact_and_in_one_order_whatever_flag_is_set(gpu: type[Gpu]) -> None:
    """For all that computes on a GPU, pre-training as well."""
    before = torch.backends.fp32_precision  # type: ignore[attr-defined]
    try:
        torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
        device_of(Plan("batched", "cuda", 1))
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"  # type: ignore[union-attr]
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"  # type: ignore[attr-defined]
        assert torch.backends.cudnn.deterministic
    finally:
        torch.backends.fp32_precision = before  # type: ignore[attr-defined]


@pytest.mark.parametrize("gpus", [1.5, 2])
def test_a_worker_takes_no_gpus_that_it_does_not_use(gpus: float) -> None:
    with pytest.raises(InputError, match="gpus"):
        Workers(gpus=gpus)


def test_a_gpu_that_is_not_used_is_told(gpu: type[Gpu]) -> None:
    prepared = prepare(config(small(SINUSOID)).recipe())
    for gpus, told in ((0, True), (1, False)):
        assert ("set workers.gpus to 1" in choose_plan(prepared, gpus, 1)[1]) is told


def test_to_build_a_network_reseeds_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    prepare(config(small(SINUSOID)).recipe())
    assert not seeded


def test_an_estimate_adds_what_a_gpu_holds_together() -> None:
    ticket = Cost(1.0, 10.0 * GB)
    for device, memory in (("cuda", "20.00 GB"), ("cpu", "10.00 GB")):
        plan = Plan("batched", device, 1)
        found = Estimate(plan, "", 1, ticket, ticket, 1.0, 1.0, 1, None)
        assert memory in "\n".join(found.lines(config(small(SINUSOID))))


@pytest.mark.ray
def test_a_dry_run_estimates_it(gpu: type[Gpu]) -> None:
    settings = config(small(SINUSOID, workers={"max": 0, "gpus": 1}))
    text = "\n".join(estimate(settings, prepare(settings.recipe())).lines(settings))
    assert "2.00 GB a worker" in text
    assert "warning: 1 workers need 2.0 GB and 1.0 GB are free" in text


def test_scores_by_support_and_one_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query example has a copy of parameters and support set; so few are computed at once."""
    from metatrain.problems import supervised

    tree = REPLAYED["max-pool, support+1"]
    prepared = prepare(config(tree).recipe())
    calls, forward = [], supervised.Supervised._forward

    def counted(self: Any, params: Any, x: Tensor, *rest: Any) -> Tensor:
        calls.append(x.shape[0] * x.shape[1])
        return forward(self, params, x, *rest)

    monkeypatch.setattr(supervised.Supervised, "_forward", counted)
    found = []
    for at_once in (supervised.AT_ONCE, 20):
        monkeypatch.setattr(supervised, "AT_ONCE", at_once)
        worker = Worker(prepared, Plan("batched", "cpu", 1))
        worker.load(0, worker.layout.flatten(prepared.meta))
        calls.clear()
        scores, _ = worker.compute(Ticket("score", "test", 0, 0))
        found.append((max(calls), scores.curves["support+1"]["loss"]))  # type: ignore[union-attr]
    assert [most for most, _ in found] == [60, 20]
    torch.testing.assert_close(found[0][1], found[1][1])


@pytest.mark.ray
def test_a_worker_of_ray_answers_alike_and_waits_twice(gpu: type[Gpu]) -> None:
    """For the metrics and for the direction; parameters and tasks go there without a wait."""
    recipe = config(small(SINUSOID)).recipe()
    answers: dict[str, list[Any]] = {}
    for device in ("cuda", "cpu"):
        worker = RayWorker(schema.dump(recipe), Plan("batched", device, 1))
        flat = worker._worker.layout.flatten(prepare(recipe).meta).cpu().numpy()
        answers[device] = []
        for step in range(4):
            gpu.waits.clear()
            flat.flags.writeable = False
            sent = worker.compute(
                Ticket("update", "train", step, 0), step, flat * (1 + step)
            ).result
            answers[device].append((sent.direction.tobytes(), sent.metrics))
        assert sum(gpu.waits.values()) <= (2 if device == "cuda" else 0), gpu.waits
    assert answers["cuda"] == answers["cpu"]


def test_pretraining_computes_there(gpu: type[Gpu]) -> None:
    tree = small(SINUSOID, pretraining={"steps": 3, "examples_per_step": 8, "examples_per_part": 4})
    prepared = prepare(config(tree).recipe())
    task = pretraining.supervision(prepared, "batched")
    found = []
    for device in (device_of(Plan("batched", "cuda", 1)), torch.device("cpu")):
        learner = Learner(to_device(task.meta, device), task.outer, 0)
        assert len(list(pretraining.learn(task, learner))) == 3
        found.append(to_device(learner.meta(), torch.device("cpu")).model)
    for name, p in found[0].items():
        torch.testing.assert_close(p, found[1][name], msg=name)
