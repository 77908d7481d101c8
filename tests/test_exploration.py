"""Strategies of exploration: what they pull, what they reach, and what decides their numbers."""

from __future__ import annotations

import pytest
import torch

from metatrain.tasks import Bandit, exploration
from metatrain.tasks.bandit import Arms, regrets
from metatrain.tasks.exploration import Seen, epsilon_decreasing, played, thompson, ucb1


def seen(wins: list[float], pulls: list[float], t: int) -> Seen:
    return Seen(torch.tensor([wins]), torch.tensor([pulls]), t, torch.Generator().manual_seed(0))


def test_indices_by_hand() -> None:
    given = seen([3, 0], [4, 1], 6)
    assert given.means[0].tolist() == pytest.approx([4 / 6, 1 / 3])
    width = (2 * torch.log(torch.tensor(6.0))).sqrt()
    expected = [4 / 6 + 0.5 * float(width) / 5**0.5, 1 / 3 + 0.5 * float(width) / 2**0.5]
    assert ucb1(given, 0.5)[0].tolist() == pytest.approx(expected)
    assert epsilon_decreasing(given, 0.0)[0].tolist() == pytest.approx([4 / 6, 1 / 3])
    assert epsilon_decreasing(given, 6.0)[0].tolist() == [0, 0]  # always at random


def test_thompson_draws_from_what_it_believes() -> None:
    """Beta(4, 2) and Beta(1, 2) have means 4 / 6 and 1 / 3."""
    many = Seen(
        torch.tensor([3.0, 0.0]).expand(20_000, 2),
        torch.tensor([4.0, 1.0]).expand(20_000, 2),
        6,
        torch.Generator().manual_seed(0),
    )
    assert thompson(many, 0.0).mean(0).tolist() == pytest.approx([4 / 6, 1 / 3], abs=0.01)


def test_without_epsilon_the_arm_that_always_pays_is_kept() -> None:
    chances = torch.tensor([[0.0, 1.0, 0.0]]).expand(50, 3)
    found = played(exploration.epsilon_greedy, 0.0, chances, 5, torch.Generator().manual_seed(0))
    assert (found.diff(dim=1) >= 0).all()
    assert found[:, -1].min() == 1
    random = played(exploration.epsilon_greedy, 1.0, chances, 400, torch.Generator())
    assert float(random.mean()) == pytest.approx(1 / 3, abs=0.02)


def test_strategies_reach_what_the_paper_reports_of_them() -> None:
    """10 pulls of 5 arms (Duan et al. 2016, table 1): 6.6, 6.7 and 5.7; random 5.0."""
    chances = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0))
    found = exploration.strategies(chances, 10, 3)
    returns = {name: float(each.sum(1).mean()) for name, each in found.items()}
    paper = {"epsilon_greedy": 6.6, "epsilon_decreasing": 6.6, "ucb1": 6.7, "thompson": 5.7}
    assert returns == pytest.approx(paper, abs=0.25)
    again = exploration.strategies(chances.clone(), 10, 3)
    assert all(torch.equal(each, again[name]) for name, each in found.items())
    other = exploration.strategies(chances + 1e-6, 10, 3)
    assert not torch.equal(found["thompson"], other["thompson"])


def test_bandits_have_them_as_baselines_and_regret_is_what_is_lost_to_the_best_arm() -> None:
    task = Arms(torch.tensor([[0.2, 0.7]]))
    baselines = Bandit(arms=2, pulls=4, episodes=3).baselines(task)
    assert baselines.keys() == {"random", "best_arm", "thompson", *exploration.TUNED}
    assert all(0.8 - 1e-6 <= float(each) <= 2.8 + 1e-6 for each in baselines.values())
    actions = torch.nn.functional.one_hot(torch.tensor([[[0, 1]]]), 2).float()
    assert regrets(actions, task).flatten().tolist() == pytest.approx([0.5, 0.0])
