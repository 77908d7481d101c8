"""Trials of several episodes in a row, and the random MDPs that are learned in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import SINUSOID, config, context, trained

from metatrain.core import InputError, Params
from metatrain.models import MLP, heads
from metatrain.problems.trials import Trials
from metatrain.tasks import MDP, CartPole, Navigation
from metatrain.tasks.mdp import Tables
from metatrain.tasks.navigation import Goals


def test_an_mdp_pays_and_moves_as_its_tables_say() -> None:
    """Means of 20,000 steps from one state by one action."""
    family = MDP(states=3, actions=2, episodes=20_000)
    task = family.sample(torch.Generator().manual_seed(0), 2, "train")
    torch.testing.assert_close(task.chances.sum(-1), torch.ones(2, 3, 2))
    state = torch.eye(3)[1].expand(2, 20_000, 3)
    action = torch.eye(2)[0].expand(2, 20_000, 2)
    following, seen, reward, ended = family.step(task, state, action, torch.Generator())
    assert torch.equal(following, seen)
    assert not ended.any()
    torch.testing.assert_close(reward.mean(1), task.rewards[:, 1, 0], atol=0.03, rtol=0)
    torch.testing.assert_close(reward.std(1), torch.ones(2), atol=0.03, rtol=0)
    torch.testing.assert_close(seen.mean(1), task.chances[:, 1, 0], atol=0.02, rtol=0)


def test_baselines_are_those_of_two_steps_by_hand() -> None:
    """The first state pays 1 or 0 and leads to the second by action 1, which pays 4 or 2."""
    rewards = torch.tensor([[[1.0, 0.0], [4.0, 2.0]]])
    chances = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    family = MDP(states=2, actions=2, horizon=2, trial=3)
    found = family.baselines(Tables(rewards, chances))
    assert found["optimal"].item() == 4.0  # 0, then 4
    assert found["random"].item() == pytest.approx(0.5 + (0.5 + 3.0) / 2)
    problem = family.bind(MLP(hidden=()), ("none",), "batched")
    assert problem.baselines(Tables(rewards, chances))["optimal"].item() == 12.0


def test_rewards_and_transitions_are_drawn_as_in_the_paper() -> None:
    """Means N(1, 1); a flat Dirichlet's entries have mean 1/S and variance (S-1)/(S^2 (S+1))."""
    task = MDP(states=4).sample(torch.Generator().manual_seed(0), 2000, "train")
    assert float(task.rewards.mean()) == pytest.approx(1, abs=0.02)
    assert float(task.rewards.std()) == pytest.approx(1, abs=0.02)
    assert float(task.chances.var()) == pytest.approx(3 / (16 * 5), rel=0.03)


def test_a_trial_begins_an_episode_again_and_tells_the_policy() -> None:
    """Walks of two steps, three to a trial: the place returns to the origin, marked by a 1."""
    walk = Navigation(horizon=2, episodes=1)
    trials, task = Trials(walk, 3), Goals(torch.tensor([[0.4, 0.4]]))
    generator = torch.Generator()
    state, seen = trials.start(task, generator)
    found = [seen]
    for _ in range(trials.horizon):
        state, seen, reward, ended = trials.step(task, state, torch.ones(1, 1, 2), generator)
        found.append(seen)
    places = torch.cat(found, 1)[0]
    expected = [[0, 0, 0], *[[0.1, 0.1, 0], [0, 0, 1]] * 3]
    torch.testing.assert_close(places, torch.tensor(expected))
    assert trials.horizon == 6
    assert ended.tolist() == [[True]]
    torch.testing.assert_close(reward, -torch.tensor([[0.2 * 2**0.5]]))  # of before it began again


def test_a_trial_ends_after_its_episodes_however_short_they_are() -> None:
    """Both episodes of the trial end at once: four steps may follow and have no rewards."""
    walk = Navigation(horizon=3, episodes=2)
    trials, task = Trials(walk, 2), Goals(torch.tensor([[0.1, 0.1]]))
    state, _ = trials.start(task, torch.Generator())
    action = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])  # there in a step, and never
    over = []
    for _ in range(trials.horizon):
        state, _, _, ended = trials.step(task, state, action, torch.Generator())
        over.append(ended[0].tolist())
    assert over[:2] == [[False, False], [True, False]]
    assert over[-1] == [True, True]
    assert [row[1] for row in over] == [False] * 5 + [True]


def test_a_trial_of_one_episode_is_the_episode() -> None:
    family = MDP(trial=1)
    problem = family.bind(MLP(hidden=()), ("none",), "batched")
    assert problem.environment is family
    assert MDP().bind(MLP(hidden=()), ("none",), "batched").environment.observations == 11


def test_a_memory_lasts_over_the_episodes_of_a_trial() -> None:
    """What is done in the second episode depends on a reward of the first one."""
    model = MLP(hidden=(), head=heads.Memory(cell="gru", hidden=8))
    problem = MDP(states=2, horizon=3, trial=2).bind(model, ("none",), "batched")
    init = problem.init(torch.Generator().manual_seed(0))
    params = {name: p[None] for name, p in init.items()}
    task = MDP(states=2).sample(torch.Generator().manual_seed(1), 1, "train")
    rollout = problem.rollout(params, task, torch.Generator().manual_seed(2))
    rewards = rollout.rewards.clone()
    rewards[..., 0] += 5
    before, after = (
        problem.outputs(params, each) for each in (rollout, rollout._replace(rewards=rewards))
    )
    assert torch.equal(before[:, :, 0], after[:, :, 0])
    assert (before[:, :, 3:] != after[:, :, 3:]).any(-1).all()


def test_wrong_sizes_of_an_mdp_are_one_sentence() -> None:
    for key in ("states", "actions", "trial", "horizon"):
        with pytest.raises(InputError) as error:
            MDP(**{key: 0})  # type: ignore[arg-type]
        assert (error.value.what, error.value.got) == (key, 0)


@pytest.mark.parametrize(
    ("family", "points"),
    [
        (MDP(states=2, horizon=2, trial=3), 3),
        (CartPole(horizon=4, episodes=1), 4),
        (CartPole(horizon=4, episodes=1, trial=2), 8),
    ],
)
def test_a_picture_shows_the_episodes_of_a_trial(family: MDP | CartPole, points: int) -> None:
    problem = family.bind(MLP(hidden=()), ("none",), "batched")
    init = problem.init(torch.Generator().manual_seed(0))

    def adapt(task: Any) -> list[tuple[int, Params]]:
        params = {name: p.expand(len(task[0]), *p.shape) for name, p in init.items()}
        return [(0, params), (1, params)]

    (axes,) = family.picture(problem, adapt, context(work="score")).axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == points]
    assert len(drawn) == (1 if isinstance(family, MDP) else 2)


@pytest.mark.ray  # takes seconds
def test_rl2_learns_an_mdp_within_a_trial() -> None:
    """MDPs of three states and actions, six episodes: more than a tenth above random actions."""
    head = {"name": "memory", "cell": "gru", "hidden": 32}
    sizes = {"states": 3, "actions": 3, "horizon": 5, "trial": 6, "episodes": 20}
    recipe = config(
        SINUSOID,
        family={"name": "mdp", "estimator": {"gae": 0.3}} | sizes,
        model={"name": "mlp", "hidden": [], "head": head},
        algorithm={"name": "recurrent"},
        outer={"steps": 80, "tasks_per_step": 20, "tasks_per_ticket": 20, "lr": 0.01},
        evaluation={"tasks": 100, "tasks_per_ticket": 100},
    ).recipe()
    found = trained(recipe)
    above = found.curves["none"]["return"][:, -1] / found.baselines["random"].mean()
    assert float(above.mean()) > 1.1
