"""Environments of gymnasium as a family: tasks and episodes that are functions of their seeds."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from cases import SHORT, SINUSOID, config

from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.core import InputError, Ticket, Update
from metatrain.models import MLP
from metatrain.start import prepare
from metatrain.tasks import Gymnasium

pytest.importorskip("gymnasium")


def test_a_ticket_computed_again_gives_the_same_update() -> None:
    """Other tickets used gymnasium's objects before."""
    family = {"name": "gymnasium", "environment": "CartPole-v1", "horizon": 12, "episodes": 2}
    recipe = config(
        SINUSOID,
        family=family | {"varied": {"gravity": [5, 15]}},
        algorithm={"name": "maml", "inner_lr": 0.1},
        outer=SHORT,
    ).recipe()
    found = []
    for others in ([], [Ticket("update", "train", 3, 0), Ticket("update", "train", 2, 1)]):
        worker = Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
        worker.load(0, worker.layout.flatten(prepare(recipe).meta))
        for other in others:
            worker.compute(other)
        update, _ = worker.compute(Ticket("update", "train", 0, 0))
        assert isinstance(update, Update)
        found.append(worker.layout.flatten(update.direction))
    assert torch.equal(*found)
    assert found[0].abs().max() > 0


def test_each_task_has_its_attributes_and_each_episode_its_seed() -> None:
    family = Gymnasium(environment="Pendulum-v1", varied={"m": (0.5, 2.0)}, episodes=2)
    family.check("train")
    task = family.sample(torch.Generator().manual_seed(0), 3, "train")
    assert ((task.attributes >= 0.5) & (task.attributes <= 2)).all()
    states = [family.start(task, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    masses = [env.unwrapped.m for env in states[0][0].environments]
    assert masses == pytest.approx(task.attributes[:, 0].repeat_interleave(2).tolist())
    seen = [observation for _, observation in states]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert len({tuple(row) for row in seen[0].flatten(0, 1).tolist()}) == 6


def test_an_action_is_clipped_and_stretched_to_the_environments_range() -> None:
    """Pendulum's torque is in [-2, 2]: its reward tells it, -0.001 of its square."""
    family = Gymnasium(environment="Pendulum-v1", episodes=1)
    task = family.sample(torch.Generator(), 3, "train")
    paid = []
    for number in (0.0, 0.5, 7.0):
        state, _ = family.start(task, torch.Generator().manual_seed(0))
        action = torch.full((3, 1, 1), number)
        paid.append(family.step(task, state, action, torch.Generator())[2])
    torch.testing.assert_close(paid[0] - paid[1], torch.full((3, 1), 0.001), atol=1e-5, rtol=0)
    torch.testing.assert_close(paid[0] - paid[2], torch.full((3, 1), 0.004), atol=1e-5, rtol=0)


def test_an_episode_that_ended_is_not_stepped_again() -> None:
    family = Gymnasium(environment="CartPole-v1", horizon=40, episodes=2)
    problem = family.bind(MLP(hidden=()), ("none",), "batched")
    params = {n: 0 * p[None] for n, p in problem.init(torch.Generator().manual_seed(0)).items()}
    params["head.bias"][0, 0] = 50.0  # always to the left
    task = family.sample(torch.Generator(), 1, "train")
    rollout = problem.rollout(params, task, torch.Generator().manual_seed(0))
    lengths = rollout.alive.sum(-1)
    assert (lengths < 15).all()
    assert torch.equal(rollout.rewards.sum(-1), lengths)


@pytest.mark.ray  # importing mujoco takes seconds
@pytest.mark.parametrize("goal", ["velocity", "direction"])
def test_half_cheetahs_are_paid_for_their_goal(goal: Any) -> None:
    """By the speed that they tell: how near it is to the task's, or how fast in its direction."""
    pytest.importorskip("mujoco")
    family = Gymnasium(environment="HalfCheetah-v5", goal=goal, episodes=1)
    family.check("train")
    task = family.sample(torch.Generator().manual_seed(0), 4, "train")
    state, _ = family.start(task, torch.Generator().manual_seed(0))
    before = [float(env.unwrapped.data.qpos[0]) for env in state.environments]
    _, _, reward, _ = family.step(task, state, torch.ones(4, 1, 6), torch.Generator())
    for i, env in enumerate(state.environments):
        speed = (float(env.unwrapped.data.qpos[0]) - before[i]) / env.unwrapped.dt
        wanted = float(task.goals[i])
        gain = -abs(speed - wanted) if goal == "velocity" else wanted * speed
        assert float(reward[i, 0]) == pytest.approx(gain - 0.1 * 6, abs=1e-4)
    goals = set(task.goals.tolist())
    assert goals <= {-1.0, 1.0} if goal == "direction" else all(0 <= g <= 2 for g in goals)


def test_what_cannot_be_played_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    for keys, what in (
        ({"environment": "Nope-v1"}, "gymnasium cannot make the environment 'Nope-v1'"),
        ({"environment": "CartPole-v1", "varied": {"zz": (1, 2)}}, "a name in varied"),
        ({"environment": "CartPole-v1", "varied": {"reset": (1, 2)}}, "a name in varied"),
        ({"environment": "CartPole-v1", "varied": {"np_random_seed": (1, 2)}}, "a name in varied"),
        ({"environment": "CartPole-v1", "varied": {"__class__": (1, 2)}}, "a name in varied"),
        ({"environment": "CartPole-v1", "varied": {"gravity": (2, 1)}}, "varied.gravity"),
        ({"environment": "os:CartPole-v1"}, "environment"),
        ({"environment": "CartPole-v1", "goal": "velocity"}, "CartPole-v1 does not tell its speed"),
    ):
        with pytest.raises(InputError) as error:
            Gymnasium(**keys).check("train")  # type: ignore[arg-type]
        assert error.value.what.startswith(what)
    massless = Gymnasium(environment="Pendulum-v1", varied={"m": (0.0, 0.0)}, episodes=1)
    task = massless.sample(torch.Generator(), 1, "train")
    state, _ = massless.start(task, torch.Generator())
    with pytest.raises(InputError, match=r"Pendulum-v1 fails .*ZeroDivisionError.*family\.varied"):
        massless.step(task, state, torch.ones(1, 1, 1), torch.Generator())
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.setattr("metatrain.tasks.gymnasium.find_spec", lambda _: None)
    family = Gymnasium(environment="Acrobot-v1")
    for asked in (lambda: family.check("train"), lambda: family.bind(MLP(), ("none",), "batched")):
        with pytest.raises(InputError, match=r"pip install 'ray-metatrain\[rl\]'"):
            asked()
