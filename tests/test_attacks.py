"""Adversarial meta-learning: attacks stay where they may be, ADML and adversarial querying are
their papers' equations, and an evaluation attacks and corrupts the examples that it names.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import GLYPHS, SINUSOID, config, context, drawn_images, exact, images
from torch import Tensor
from torch.func import functional_call

from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain import algorithms, evaluate, protocol
from metatrain.core import (
    FGSM,
    PGD,
    ComputePath,
    InputError,
    Meta,
    Norm,
    Params,
    Part,
    Purpose,
    Task,
    Ticket,
    Update,
)
from metatrain.corruptions import Blur, Noise, Occlusion
from metatrain.disturbed import disturbed
from metatrain.first_look import check_data
from metatrain.learner import Learner
from metatrain.metrics import accuracy, cross_entropy
from metatrain.models import MLP, Conv4
from metatrain.problems.supervised import Supervised
from metatrain.start import Prepared, prepare

ADML = algorithms.ADML
RATE, WAYS = 0.5, 3


def pixels() -> Supervised:
    """Three classes of images of 4 x 4 pixels, which are the floats that they are."""
    return Supervised(
        model=MLP(hidden=(6,)),
        inputs=(1, 4, 4),
        outputs=WAYS,
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        norm=("none",),
        path="reference",
        classes=True,
        pixels=True,
    )


def drawn(count: int = 2) -> Task:
    g = torch.Generator().manual_seed(1)
    x = torch.rand(2, count, 2 * WAYS, 1, 4, 4, generator=g, dtype=torch.float64)
    y = torch.arange(WAYS).repeat_interleave(2).expand(count, -1)
    return Task(x[0], y, x[1], y)


HOSTILE = {
    "rising": lambda x: 1e30 * x,
    "falling": lambda x: -1e-30 * x,
    "flat": lambda x: 0.0 * x,
    "infinite": lambda x: x / 0.0,
    "no number": lambda x: (x - x.detach()).sqrt() * 0.0,  # its slope is inf times 0
}


@pytest.mark.parametrize("loss", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("epsilon", [0.0, 8.0, 255.0])
@pytest.mark.parametrize("kind", [FGSM, PGD])
def test_an_attack_leaves_neither_its_ball_nor_0_to_1(kind: Any, epsilon: float, loss: Any) -> None:
    x = torch.rand(2, 5, 3, generator=torch.Generator().manual_seed(0))
    x[0, 0], x[0, 1], x[0, 2] = 0.0, 1.0, 1e-9
    moved = kind(epsilon=epsilon).move(x, lambda x: loss(x).flatten(1).sum(1), torch.Generator())
    assert moved.isfinite().all()
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert (moved - x).abs().max() <= epsilon / 255 + 1e-7  # a rounding of 1
    assert epsilon or torch.equal(moved, x)
    assert not moved.requires_grad


def test_a_step_goes_along_the_sign_of_the_gradient_and_several_go_on_from_a_random_start() -> None:
    x = torch.full((1, 1, 3), 0.5, dtype=torch.float64)
    slope = torch.tensor([2.0, -3.0, 0.0])
    ball = 51 / 255

    def loss(x: Tensor) -> Tensor:
        return (slope * x).flatten(1).sum(1)

    moved = FGSM(epsilon=51).move(x, loss, torch.Generator())
    torch.testing.assert_close(moved[0, 0] - 0.5, torch.tensor([ball, -ball, 0.0]).double())
    g = torch.Generator().manual_seed(3)
    start = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype) - 1
    moved = PGD(epsilon=51, steps=5).move(x, loss, g)  # steps of half the ball reach its edge
    expected = torch.tensor([ball, -ball, float(ball * start[0, 0, 2])]).double()
    torch.testing.assert_close(moved[0, 0] - 0.5, expected)


def glyphs(algorithm: dict[str, Any], **overrides: Any) -> Prepared:
    return prepare(config(GLYPHS | {"algorithm": algorithm}, **overrides).recipe())


def updated(algorithm: dict[str, Any], path: ComputePath) -> Update:
    """Of two episodes of glyphs, by a network for which there are kernels."""
    found = glyphs(algorithm, model__filters=16)
    setting = found.settings[Purpose("update")]
    tasks = setting.family.sample(torch.Generator().manual_seed(0), 2, "train")
    problem = found.bind(Purpose("update"), path)
    return setting.algorithm.update(problem, found.meta, tasks, context())


MAML = {"name": "maml", "inner_lr": 0.4, "inner_steps": 2, "adapts": ["*.conv.*", "head.*"]}


@pytest.mark.parametrize(
    ("attacked", "plain", "path"),
    [
        (MAML | {"name": "adml", "epsilon": 0}, MAML, "batched"),
        (MAML | {"name": "adml", "epsilon": 0}, MAML, "fused"),
        *(
            ({"name": "adversarial_querying", "epsilon": 0, "learner": plain}, plain, "batched")
            for plain in (MAML | {"first_order": True}, {"name": "prototypical"})
        ),
    ],
)
def test_without_a_distance_it_is_the_learner_to_the_bit(
    attacked: dict[str, Any], plain: dict[str, Any], path: ComputePath
) -> None:
    found, expected = updated(attacked, path), updated(plain, path)
    assert found.metrics.keys() == expected.metrics.keys()
    assert all(torch.equal(found.metrics[name], v) for name, v in expected.metrics.items())
    flat = expected.direction.flat()
    assert found.direction.flat().keys() == flat.keys()
    assert all(torch.equal(p, flat[name]) for name, p in found.direction.flat().items())


def predicted(problem: Supervised, phi: Params, x: Tensor) -> Tensor:
    return functional_call(problem.module, phi, (x,))


def signed(x: Tensor, loss: Any, ball: float) -> Tensor:
    """x + ball * sign(grad_x loss), in 0..1."""
    at = x.clone().requires_grad_()
    return (x + ball * torch.autograd.grad(loss(at), at)[0].sign()).clamp(0, 1)


def test_admls_direction_is_the_gradient_of_its_papers_losses() -> None:
    """Written with autograd, of tasks one by one; an adversarial example is a constant."""
    problem, tasks, ball = pixels(), drawn(), 16 / 255
    algorithm = ADML(inner_lr=RATE, epsilon=16)
    meta = exact(algorithm.init(problem, torch.Generator().manual_seed(0)))
    theta = {name: p.clone().requires_grad_() for name, p in meta.model.items()}

    def loss(phi: Params, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(predicted(problem, phi, x), y)

    def adapted(x: Tensor, y: Tensor) -> Params:
        slopes = torch.autograd.grad(loss(theta, x, y), [*theta.values()], create_graph=True)
        return {n: p - RATE * g for (n, p), g in zip(theta.items(), slopes, strict=True)}

    total = torch.zeros((), dtype=torch.float64)
    for x, y, query_x, query_y in zip(*tasks, strict=True):
        phi = adapted(x, y)
        phi_adv = adapted(signed(x, lambda at, y=y: loss(theta, at, y), ball), y)
        moved = signed(query_x, lambda at, phi=phi, y=query_y: loss(phi, at, y), ball)
        total = total + (loss(phi_adv, query_x, query_y) + loss(phi, moved, query_y)) / 2
    expected = torch.autograd.grad(total / 2, [*theta.values()])
    update = algorithm.update(problem, meta, tasks, context())
    for (name, p), g in zip(update.direction.model.items(), expected, strict=True):
        torch.testing.assert_close(p, g, msg=name)
    assert not torch.equal(expected[0], torch.zeros_like(expected[0]))


@pytest.mark.parametrize("learner", [algorithms.MAML(inner_lr=RATE), algorithms.Prototypical()])
def test_adversarial_querying_is_its_learner_on_queries_moved_against_what_adapted(
    learner: Any,
) -> None:
    problem, tasks = pixels(), drawn(1)
    attack = PGD(epsilon=16, steps=3)
    algorithm = algorithms.AdversarialQuerying(learner=learner, epsilon=16, steps=3)
    meta = exact(algorithm.init(problem, torch.Generator().manual_seed(0)))
    found = algorithm.update(problem, meta, tasks, context())

    here = context()
    before, *_, phi = learner.adapt(problem, meta, tasks, here)

    def against(params: Params) -> Tensor:
        def loss(x: Tensor) -> Tensor:
            return cross_entropy(problem.predict(params, tasks._replace(query_x=x), here), y)

        y = tasks.query_y
        return attack.move(tasks.query_x, loss, here.generator)

    against(before)  # what the metrics before adaptation draw
    moved = tasks._replace(query_x=against(phi))
    expected = learner.update(problem, meta, moved, context())
    for name, p in expected.direction.model.items():
        torch.testing.assert_close(found.direction.model[name], p, rtol=0, atol=1e-12)
    assert float(found.metrics["loss_after"]) == pytest.approx(
        float(expected.metrics["loss_after"])
    )
    clean = learner.update(problem, meta, tasks, context())
    assert found.metrics["loss_after"] > clean.metrics["loss_after"]


SCORE = Purpose("score")


def scored(prepared: Prepared) -> tuple[Supervised, Task, Any]:
    """The evaluation's problem and two of its tasks, disturbed, and its measurements."""
    setting = prepared.settings[SCORE]
    tasks = setting.family.sample(torch.Generator().manual_seed(0), 2, "test")
    given = prepared.bind(SCORE, "batched"), setting, prepared.meta, tasks
    problem, moved = disturbed(*given, context(work="score"))
    scores = evaluate.scores(
        problem, setting.algorithm, prepared.meta, moved, context(work="score")
    )
    return problem, moved, scores


@pytest.mark.parametrize(
    ("learner", "part"),
    [(MAML, "both"), ({"name": "prototypical"}, "query"), ({"name": "prototypical"}, "support")],
)
def test_an_evaluation_moves_the_part_that_it_names(learner: dict[str, Any], part: Part) -> None:
    attack = {"name": "fgsm", "epsilon": 32, "part": part}
    _, clean, expected = scored(glyphs(learner))
    problem, moved, found = scored(glyphs(learner, evaluation__attack=attack))
    floats = problem.in_floats(moved)[1]
    original = [x / 255 for x in (clean.support_x, clean.query_x)]
    distance = (floats.support_x - original[0]).abs().amax()
    assert torch.equal(floats.query_x, original[1]), "queries move as they are predicted"
    assert distance == 0 if part == "query" else 0 < distance <= 32 / 255 + 1e-6
    losses = [each.curves["transductive"]["loss"][:, -1].mean() for each in (expected, found)]
    assert losses[0] != losses[1] if part == "support" else losses[0] < losses[1]


@pytest.mark.parametrize("norm", ["transductive", "support", "support+1"])
def test_queries_move_against_the_prediction_by_the_norm_that_is_asked_for(norm: Norm) -> None:
    problem, tasks = images(Conv4(filters=4)), drawn_images()
    meta = exact(Meta(problem.init(torch.Generator().manual_seed(0)), {}, {}))
    phi = {name: p[None].expand(2, *p.shape) for name, p in meta.model.items()}
    attacked = problem.attack_queries(FGSM(epsilon=8))
    with torch.no_grad():
        clean, moved = (
            cross_entropy(each.predict(phi, tasks, context(), norm), tasks.query_y)
            for each in (problem, attacked)
        )
    assert (moved > clean).all()


IMAGES = torch.full((2, 3, 1, 8, 8), 0.5)


@pytest.mark.parametrize(
    ("name", "part"), [("noise", "query"), ("blur", "support"), ("occlusion", "both")]
)
def test_an_evaluation_corrupts_the_part_that_it_names(name: str, part: Part) -> None:
    _, clean, _ = scored(glyphs({"name": "prototypical"}))
    prepared = glyphs({"name": "prototypical"}, evaluation__corruption={"name": name, "part": part})
    problem, changed, found = scored(prepared)
    assert problem.to_float(changed.query_x) is changed.query_x
    same = [
        torch.equal(changed.support_x, clean.support_x / 255),
        torch.equal(changed.query_x, clean.query_x / 255),
    ]
    assert same == [part == "query", part == "support"]
    assert torch.equal(scored(prepared)[1].query_x, changed.query_x)
    assert found.baselines["nearest_neighbour_on_pixels"].isfinite().all()
    line = protocol.of_score(prepared, SCORE, 1)
    assert f", {prepared.settings[SCORE].corruption.describe()}, 30 tasks" in line


def test_noise_has_its_deviation_and_images_stay_in_0_to_1() -> None:
    big, g = torch.full((1, 50, 1, 20, 20), 0.5), torch.Generator().manual_seed(0)
    noise = Noise(deviation=0.1)(big, g) - 0.5
    assert abs(float(noise.std()) - 0.1) < 0.003
    assert abs(float(noise.mean())) < 0.003
    noisy = Noise(deviation=10)(big, g)
    assert (float(noisy.min()), float(noisy.max())) == (0, 1)


def test_a_blur_weighs_pixels_by_a_gaussian() -> None:
    dot = torch.zeros(1, 1, 1, 15, 15)
    dot[..., 7, 7] = 1
    away = (torch.arange(15) - 7.0).double()
    weights = (-away.square() / 2).exp() * (away.abs() <= 3)
    weights /= weights.sum()
    blurred = Blur(pixels=1)(dot, torch.Generator())[0, 0, 0].double()
    torch.testing.assert_close(blurred, weights.outer(weights), rtol=0, atol=1e-7)
    torch.testing.assert_close(Blur(pixels=2)(IMAGES, torch.Generator()), IMAGES)
    assert Blur(pixels=0)(dot, torch.Generator()) is dot


@pytest.mark.parametrize(("side", "zeros"), [(0.0, 0), (0.5, 16), (1.0, 64)])
def test_an_occlusion_is_a_square_at_a_place_of_each_image(side: float, zeros: int) -> None:
    images = torch.ones(4, 5, 2, 8, 8)
    hidden = Occlusion(side=side)(images, torch.Generator().manual_seed(0)) == 0
    assert (hidden.sum((-1, -2)) == zeros).all()
    assert torch.equal(hidden[:, :, 0], hidden[:, :, 1]), "all channels alike"
    rows, columns = hidden.any(-1).sum(-1), hidden.any(-2).sum(-1)
    assert (rows == round(8 * side)).all()
    assert (columns == round(8 * side)).all()
    assert (len({tuple(h.flatten().tolist()) for h in hidden[:, :, 0].flatten(0, 1)}) > 1) == (
        0 < side < 1
    )


def test_an_attack_is_in_the_protocol_and_validation_is_measured_under_it_too() -> None:
    attack = {"name": "pgd", "epsilon": 4, "steps": 3, "part": "both"}
    prepared = glyphs(
        MAML,
        evaluation__attack=attack,
        evaluations={"clean": {}, "noisy": {"corruption": {"name": "noise"}}},
    )
    assert ", pgd of 4/255 in 3 steps on both, 30 tasks" in protocol.of_score(prepared, SCORE, 1)
    lines = [protocol.of_score(prepared, Purpose("score", n), 1) for n in ("clean", "noisy")]
    assert "pgd" not in lines[0] + lines[1]
    assert "noise of deviation 0.1 on both" in lines[1]
    assert prepared.setting("validate").attack == prepared.setting("score").attack
    assert prepared.setting("update").attack is None


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"evaluation__attack": {"name": "fgsm"}}, "evaluation.attack"),
        ({"evaluations": {"x": {"corruption": {"name": "blur"}}}}, "evaluations.x.corruption"),
    ],
)
def test_tasks_without_pixels_refuse_attacks_and_corruptions(
    overrides: dict[str, Any], key: str
) -> None:
    with pytest.raises(InputError) as error:
        check_data(prepare(config(SINUSOID, **overrides).recipe()))
    assert error.value.what.startswith(f"{key}: attacks and corruptions change pixels")
    assert error.value.remedy == "leave it out, or choose tasks of images"


@pytest.mark.parametrize(
    "algorithm",
    [MAML | {"name": "adml", "epsilon": 8}, {"name": "adversarial_querying", "learner": MAML}],
)
def test_tasks_without_pixels_refuse_adversarial_training(algorithm: dict[str, Any]) -> None:
    with pytest.raises(InputError) as error:
        prepare(config(SINUSOID | {"algorithm": algorithm}).recipe())
    assert error.value.remedy == "choose another algorithm"


def test_pixels_outside_of_0_to_1_are_refused() -> None:
    task = drawn()._replace(query_x=2 * drawn().query_x)
    task = Task(*(leaf.float() if leaf.is_floating_point() else leaf for leaf in task))
    with pytest.raises(InputError) as error:
        pixels().check(task)
    assert error.value.what.startswith("query_x")


@pytest.mark.ray  # takes seconds
def test_under_attack_adml_is_above_maml_that_learned_from_the_same_tasks() -> None:
    found: dict[str, list[float]] = {}
    few = {"tasks": 200, "tasks_per_ticket": 200}
    for name, own in {"maml": {}, "adml": {"epsilon": 24}}.items():
        tree = GLYPHS | {
            "model": {"name": "mlp", "hidden": [64]},
            "algorithm": {"name": name, "inner_lr": 0.4} | own,
            "outer": {"steps": 150, "tasks_per_step": 16, "tasks_per_ticket": 16, "lr": 0.01},
            "evaluation": few,
            "evaluations": {"fgsm": few | {"attack": {"name": "fgsm", "epsilon": 24}}},
        }
        prepared = prepare(config(tree).recipe())
        worker = Worker(prepared, choose_plan(prepared, 0, 1)[0])
        learner = Learner(prepared.meta, prepared.recipe.outer)
        for step in range(150):
            worker.load(step, worker.layout.flatten(learner.meta()))
            learner.apply([worker.compute(Ticket("update", "train", step, 0))[0]])
        worker.load(150, worker.layout.flatten(learner.meta()))
        scores = [worker.compute(Ticket("score", "test", 0, 0, v))[0] for v in ("", "fgsm")]
        found[name] = [float(each.curves["none"]["accuracy"][:, -1].mean()) for each in scores]
    assert found["adml"][1] > found["maml"][1] + 0.05, found
    assert found["adml"][0] > found["maml"][0] - 0.05, found
