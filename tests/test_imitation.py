"""A goal from demonstrations: what experts show, cloning, and GAIL from its written losses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, SINUSOID, config, context, exact, trained
from gradients import assert_meta_gradient
from torch import Tensor

import metatrain
from cluster import run
from metatrain.algorithms import GAIL, MAML
from metatrain.algorithms.gail import critic_loss, logits
from metatrain.core import InputError, Params, Task
from metatrain.first_look import check_data
from metatrain.inference import files
from metatrain.metrics import RETURN, mean_squared_error
from metatrain.models import MLP
from metatrain.problems.advantages import Estimator, advantages
from metatrain.problems.environment import Rollout
from metatrain.problems.imitation import Acted, Demonstrations, Imitator, demonstrated, expert_share
from metatrain.problems.supervised import Supervised
from metatrain.start import prepare
from metatrain.tasks import Imitation, Navigation, Pushing, Sinusoid
from metatrain.tasks.navigation import Goals

WALK = Imitation(
    environment=Navigation(horizon=12, episodes=3), demonstrations=2, queries=2, steps=5
)
ENVIRONMENTS = [Navigation(episodes=2), Pushing(episodes=2)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def bound(family: Imitation = WALK, model: Any = None) -> Imitator:
    return family.bind(model or MLP(hidden=(8,)), ("none",), "batched")


def drawn(family: Imitation = WALK, tasks: int = 3) -> Demonstrations:
    return family.sample(seeded(1), tasks, "train")


@pytest.mark.parametrize("env", ENVIRONMENTS, ids=["navigation", "pushing"])
def test_an_expert_reaches_every_goal_and_then_stays(env: Any) -> None:
    goals = env.sample(seeded(), 100, "train")
    rollout = demonstrated(env, goals, 40, 0.0, seeded(1))
    assert (rollout.alive[..., -1] == 0).all()
    far = (rollout.observations[:, :, -1, -2:] - goals.places[:, None]).abs()
    assert far.max() < 0.021
    if isinstance(env, Pushing):  # the last steps of navigation get ever closer
        assert (rollout.actions[:, :, -1] == 0).all()


def test_a_disc_moves_out_of_the_pushers_way_and_not_by_itself() -> None:
    env, task = Pushing(episodes=3), Goals(torch.tensor([[0.05, 0.0]]))
    apart, touching, beside = [-0.3, 0.0, 0.0, 0.0], [-0.12, 0.0, 0.0, 0.0], [0.0, 0.15, 0.0, 0.0]
    state = torch.tensor([[apart, touching, beside]])
    action = torch.tensor([[[1.0, 0.0], [7.0, 0.0], [0.0, -1.0]]])
    after, seen, reward, ended = env.step(task, state, action, seeded())
    expected = [[-0.2, 0.0, 0.0, 0.0], [-0.02, 0.0, 0.08, 0.0], [0.0, 0.05, 0.0, -0.05]]
    torch.testing.assert_close(after, torch.tensor([expected]))
    torch.testing.assert_close(reward, -torch.tensor([[0.05, 0.03, 0.005**0.5]]))
    assert ended.tolist() == [[False, False, False]]
    assert torch.equal(seen, after)
    state, _ = env.start(task, seeded())
    torch.testing.assert_close(state[..., :2].norm(dim=-1), torch.full((1, 3), 0.3))
    assert (state[..., 2:] == 0).all()


def test_a_demonstration_is_the_experts_actions_and_where_they_lead() -> None:
    task = drawn()
    assert {name: tuple(leaf.shape) for name, leaf in task._asdict().items()} == {
        "support_x": (3, 10, 2),
        "support_y": (3, 10, 2),
        "query_x": (3, 10, 2),
        "query_y": (3, 10, 2),
        "places": (3, 2),
    }
    for seen, taken in ((task.support_x, task.support_y), (task.query_x, task.query_y)):
        x, y = seen.unflatten(1, (2, 5)), taken.unflatten(1, (2, 5))
        assert (x[:, :, 0] == 0).all()
        torch.testing.assert_close(x[:, :, 1:], (x + 0.1 * y.clamp(-1, 1))[:, :, :-1])
        script = ((task.places[:, None, None] - x) / 0.1).clamp(-1, 1)
        assert 0.05 < float((y - script).std()) < 0.2
    assert not torch.equal(task.support_y, task.query_y)
    quiet = drawn(replace(WALK, noise=0.0))
    assert torch.equal(quiet.support_x[:, :5], quiet.query_x[:, 5:])


def test_cloning_by_maml_is_its_regression_of_actions_to_the_bit() -> None:
    """The goal that a task carries has no part in learning."""
    problem, task, maml = bound(), drawn(), MAML(inner_lr=0.1, inner_steps=2)
    plain = Supervised(
        model=MLP(hidden=(8,)),
        inputs=(2,),
        outputs=2,
        loss=mean_squared_error,
        metrics={"mse": mean_squared_error},
        norm=("none",),
        path="batched",
    )
    meta = maml.init(problem, seeded())
    found = maml.update(problem, meta, task, context())
    expected = maml.update(plain, meta, Task(*task[:4]), context())
    assert all(
        torch.equal(found.direction.model[n], p) for n, p in expected.direction.model.items()
    )
    assert found.metrics == expected.metrics


def test_the_share_of_the_experts_return_is_1_for_its_policy_and_0_for_none() -> None:
    """A linear layer is the expert of navigation, and zeros stand still."""
    problem, task = bound(model=MLP(hidden=())), drawn()
    layer = {
        "head.weight": -10 * torch.eye(2).expand(3, 2, 2),
        "head.bias": 10 * task.places,
    }
    for scale, share, baseline in ((1.0, 1.0, "expert"), (0.0, 0.0, "standing_still")):
        params = {name: scale * p for name, p in layer.items()}
        acted = problem.predict(params, task, context(work="score"))
        assert isinstance(acted, Acted)
        returns = problem.judge(acted, task)["return"]
        torch.testing.assert_close(returns, problem.baselines(task)[baseline])
        measure = problem.measures["expert_share"]
        assert measure.value is not None
        assert measure.value(measure.pool(acted, task)) == pytest.approx(share, abs=1e-4)
    short = replace(WALK, environment=Pushing(horizon=1, episodes=2))  # nobody reaches the disc
    others = bound(short).baselines(drawn(short))
    returns = torch.stack([others["expert"], others["standing_still"], others["expert"]], -1)
    assert math.isnan(expert_share(returns.double()))


def test_what_pushing_shows_and_pays_is_imitated_as_well() -> None:
    """Both places are seen; whoever does not touch the disc gets what its distance costs."""
    family = replace(WALK, environment=Pushing(horizon=30, episodes=4))
    problem, task = bound(family), drawn(family)
    problem.check(task)
    assert task.support_x.shape == (3, 10, 4)
    still = {n: torch.zeros(3, *p.shape) for n, p in problem.init(seeded()).items()}
    acted = problem.predict(still, task, context(work="score"))
    returns, others = problem.judge(acted, task)["return"], problem.baselines(task)
    torch.testing.assert_close(returns, others["standing_still"])
    assert (others["expert"] > 0.5 * others["standing_still"]).all()
    first = demonstrated(family.environment, task, 30, 0.0, seeded())
    again = demonstrated(family.environment, task, 30, 0.0, seeded())
    assert torch.equal(first.actions, again.actions)


def hand(params: Params, x: Tensor) -> Tensor:
    """A network of one hidden layer on [T, N, 2]."""
    hidden = torch.relu(x @ params["body.0.weight"].mT + params["body.0.bias"][:, None])
    return hidden @ params["head.weight"].mT + params["head.bias"][:, None]


def test_a_step_of_gail_is_that_of_the_papers_two_gradients() -> None:
    """Equation 17, then 18 with the new discriminator; each moves its own parameters only."""
    problem, task = bound(), drawn()
    gail = GAIL(inner_lr=0.05, inner_steps=1, critic_lr=0.5, units=6, deviation=0.4)
    meta = gail.init(problem, seeded())
    start, found = gail.adapt(problem, meta, task, context())
    acted = problem.play(start, task, context(), 0.4)
    assert acted.shape == (3, 3, 5, 4)  # episodes as long as the demonstrations
    omega = {n: p.expand(3, *p.shape).clone().requires_grad_() for n, p in meta.algorithm.items()}

    def chance(omega: Params, pairs: Tensor) -> Tensor:
        hidden = torch.tanh(pairs @ omega["critic.weight"].mT + omega["critic.bias"][:, None])
        return torch.sigmoid(hidden @ omega["score.weight"].mT + omega["score.bias"][:, None])

    shown = torch.cat([task.support_x, task.support_y], -1)
    rows = acted.flatten(1, 2)
    objective = chance(omega, rows).log().mean((1, 2)) + (1 - chance(omega, shown)).log().mean(
        (1, 2)
    )
    torch.testing.assert_close(critic_loss(acted, shown, omega), -objective)
    slopes = torch.autograd.grad(objective.sum(), list(omega.values()))
    omega = {n: p + 0.5 * slope for (n, p), slope in zip(omega.items(), slopes, strict=True)}
    cost = chance(omega, rows).log().view(3, 3, 5).detach()
    torch.testing.assert_close(torch.sigmoid(logits(omega, acted)).log(), cost)
    phi = {n: p.clone().requires_grad_() for n, p in start.items()}
    policy = torch.distributions.Normal(hand(phi, rows[..., :2]), 0.4)
    episodes = Rollout(*acted.split(2, -1), -cost, torch.ones(3, 3, 5))
    weight = advantages(episodes, 0.99).flatten(1)
    weight = weight / weight.square().mean(1, keepdim=True).sqrt() / 15
    loss = -(policy.log_prob(rows[..., 2:]).sum(-1) * weight).sum()
    slopes = torch.autograd.grad(loss, list(phi.values()))
    for (name, p), slope in zip(phi.items(), slopes, strict=True):
        torch.testing.assert_close(found[name], p - 0.05 * slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["model", "algorithm"])
def test_gails_meta_gradient_goes_through_both_players(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, with the policy's episodes held fixed, against finite differences."""
    problem, task = bound(), drawn(tasks=2)
    gail = GAIL(inner_lr=0.05, inner_steps=2, critic_lr=0.5, units=5)
    meta = gail.init(problem, seeded())
    fixed = problem.play(
        {n: p.expand(2, *p.shape) for n, p in meta.model.items()}, task, context(), 0.3
    ).double()
    monkeypatch.setattr(Imitator, "play", lambda *_: fixed)
    exactly = Demonstrations(*(leaf.double() for leaf in task))
    gradient = assert_meta_gradient(gail, problem, exact(meta), exactly, part, tolerance=1e-4)
    assert all(bool((g != 0).any()) for n, g in gradient.items() if n != "score.bias")


def test_a_bundle_adapts_to_pairs_without_a_goal() -> None:
    """Plain examples are predicted; no episode is played, as no goal is known."""
    problem, task = bound(), drawn()
    params = {n: p.expand(3, *p.shape) for n, p in problem.init(seeded()).items()}
    found = problem.predict(params, Task(*task[:4]), context(work="score"))
    assert found.shape == task.query_y.shape
    assert torch.equal(found, problem.predict(params, task, context(work="score")).actions)
    assert {*problem.try_out(task)} == {"mse", "return"}


@pytest.mark.ray  # takes seconds
def test_ten_demonstrations_give_most_of_the_experts_return() -> None:
    """90 % on the way from standing still to the expert, after 80 outer steps of 10 goals."""
    recipe = config(
        SINUSOID,
        family={"name": "imitation", "environment": {"name": "navigation", "episodes": 1}},
        model={"name": "mlp", "hidden": [40, 40]},
        algorithm={"name": "maml", "inner_lr": 0.1, "inner_steps": 5},
        outer={"steps": 80, "tasks_per_step": 10, "tasks_per_ticket": 10, "lr": 0.003},
        evaluation={"tasks": 100, "tasks_per_ticket": 100},
    ).recipe()
    found = trained(recipe)
    shares = [
        expert_share(torch.stack([returns, *found.baselines.values()], -1))
        for returns in found.curves["none"]["return"].mT
    ]
    assert found.baselines.keys() == {"standing_still", "expert"}
    assert abs(shares[0]) < 0.1
    assert shares[-1] > 0.9


@pytest.mark.ray  # takes seconds
@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_its_paths_and_adapts_to_a_file_of_pairs(tmp_path: Path) -> None:
    """An action has two numbers, and so two columns."""
    cloning = {"name": "maml", "inner_lr": 0.1}
    folder, (score,) = run.train(
        config(CASES["gail"], algorithm=cloning, output=str(tmp_path / "run"))
    )
    assert (folder / "figures" / "example.png").exists()
    assert score.metric == RETURN
    assert score.measures.keys() == {"expert_share"}
    few, new = tmp_path / "few.csv", tmp_path / "new.csv"
    few.write_text("x1,x2,a1,a2\n0,0,1,0\n0.1,0,1,1\n")
    new.write_text("x1,x2,a1,a2\n0.1,0,,\n0.1,0.2,1,1\n")
    learned = metatrain.load(folder)
    found = files.predict(learned, str(few), [str(new)], None)
    assert [row["target"] for row in found.rows] == [None, [1, 1]]
    assert all(len(row["prediction"]) == 2 for row in found.rows)
    new.write_text("x1,x2,a1,a2\n0.1,0,1,high\n")
    with pytest.raises(InputError, match="has targets that are no numbers"):
        files.predict(learned, str(few), [str(new)], None)


def test_what_cannot_be_imitated_is_one_sentence() -> None:
    with pytest.raises(InputError) as error:
        Imitation(noise=-0.1)
    assert (error.value.what, error.value.got) == ("noise", -0.1)
    gail, problem = GAIL(inner_lr=0.1), bound()
    with pytest.raises(InputError, match="acting in an environment, and these examples have none"):
        [*gail.adapt(problem, gail.init(problem, seeded()), Task(*drawn()[:4]), context())]
    with pytest.raises(InputError, match="gae alone") as error:
        Imitation(environment=Pushing(estimator=Estimator(gae=0.9, entropy=0.1)))
    assert error.value.what == "environment.estimator"
    sinusoid = Sinusoid().bind(MLP(), ("none",), "batched")
    with pytest.raises(InputError, match="these tasks have none") as error:
        GAIL(inner_lr=0.1).init(sinusoid, seeded())
    assert error.value.remedy == "set family.name to imitation, or choose another algorithm"
    bandit = SINUSOID | {"family": {"name": "imitation", "environment": {"name": "bandit"}}}
    with pytest.raises(InputError, match="navigation"):
        prepare(config(bandit).recipe())
    mixed = config(CASES["gail"], evaluation__ensemble={"name": "bagged"}).recipe()
    with pytest.raises(InputError, match="these tasks have other predictions"):
        check_data(prepare(mixed))
