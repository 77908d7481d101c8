"""What a GPU would refuse or get wrong, found without one: replays are what is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, REPTILE, SINUSOID, config, context, drawn_images, exact, images
from pretended_cases import SCORED, maml, small
from pretended_gpu import Gpu, unmarked
from torch import Tensor

from cluster import run
from cluster.config import Workers
from cluster.dry_run import GB, Cost, Estimate, estimate
from cluster.pools.ray_worker import RayWorker
from cluster.workers.plan import Plan, choose_plan, device_of
from cluster.workers.worker import Worker
from metatrain import pretraining, schema
from metatrain.algorithms import inner_loop
from metatrain.core import InputError, Meta, Ticket, Update, to_device
from metatrain.learner import Learner
from metatrain.models import Conv4
from metatrain.problems import supervised
from metatrain.problems.supervised import Supervised
from metatrain.start import prepare

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
# Never replayed: networks that are drawn from the seed itself, a replay by the ticket's number.
SEEDED = {"meta-knowledge", "r2d2", "learned-optimizer", "learned-optimizer-evolution"}


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
        found = Estimate(plan, "", 1, ticket, ticket, 1.0, 1.0, 1, 1, None)
        assert memory in "\n".join(found.lines(config(small(SINUSOID))))


@pytest.mark.ray
def test_a_dry_run_estimates_it(gpu: type[Gpu]) -> None:
    settings = config(small(SINUSOID, workers={"max": 0, "gpus": 1}))
    text = "\n".join(estimate(settings, prepare(settings.recipe())).lines(settings))
    assert "2.00 GB a worker" in text
    assert "warning: 1 workers need 2.0 GB and 1.0 GB are free" in text


def test_scores_by_support_and_one_are_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each query example has a copy of parameters and support set; so few are computed at once."""
    problem = images(Conv4(filters=4), "batched", norm="support+1")
    task, calls, forward = drawn_images(), [], Supervised._forward

    def counted(self: Any, params: Any, x: Tensor, *rest: Any) -> Tensor:
        calls.append(x.shape[0] * x.shape[1])
        return forward(self, params, x, *rest)

    monkeypatch.setattr(Supervised, "_forward", counted)
    meta = exact(Meta(problem.init(torch.Generator().manual_seed(0)), {}, {}))
    found = []
    for at_once in (supervised.AT_ONCE, 30):
        monkeypatch.setattr(supervised, "AT_ONCE", at_once)
        with torch.no_grad():
            found.append(problem.predict(inner_loop.start(meta, task), task, context()))
    assert calls == [2 * 6 * 7, *[2 * 2 * 7] * 3]
    assert torch.allclose(found[0], found[1], atol=1e-12)


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


@pytest.mark.ray
def test_an_update_is_copied_once_on_its_way_through_ray(gpu: type[Gpu]) -> None:
    """A worker of Ray has no more kernels than one in process, whose update is kept."""
    recipe = config(small(SINUSOID)).recipe()
    prepared, plan = prepare(recipe), Plan("batched", "cuda", 1)
    kept, sent = Worker(prepared, plan), RayWorker(schema.dump(recipe), plan)
    flat = kept.layout.flatten(prepared.meta).numpy()
    kept.load(0, torch.from_numpy(flat))
    for step in range(4):
        ticket, before = Ticket("update", "train", step, 0), gpu.kernels
        kept.compute(ticket)
        between = gpu.kernels
        sent.compute(ticket, 0, flat)
    assert gpu.replays == 6
    assert gpu.kernels - between <= between - before


@pytest.mark.ray
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
