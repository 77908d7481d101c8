"""Bandits in context: pulls of others are read, and what is believed of the best arm decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, config, context, trained
from torch import Tensor

from cluster.closing import print_next
from cluster.results import how_to_load
from metatrain.algorithms import MAML, InContext
from metatrain.core import InputError, Params
from metatrain.inference import Learned, illustrate
from metatrain.models import MLP, heads
from metatrain.models.heads import SUPPORT, TARGETS
from metatrain.problems.decisions import Decided, Decisions, Histories
from metatrain.start import prepare
from metatrain.storage import Folder
from metatrain.tasks import BanditHistory
from metatrain.tasks.bandit_history import excess, posterior, regret

HEAD = heads.Transformer(width=8, depth=1, heads=2)


def drawn(family: BanditHistory, count: int = 3, seed: int = 0) -> Histories:
    return family.sample(torch.Generator().manual_seed(seed), count, "train")


def history(pulls: list[tuple[int, int]], arms: int) -> Histories:
    """One bandit, whose pulls are (arm, reward)."""
    x = torch.zeros(1, len(pulls), arms)
    for i, (arm, _) in enumerate(pulls):
        x[0, i, arm] = 1
    y = torch.tensor([reward for _, reward in pulls]).float().view(1, -1, 1)
    return Histories(x, y, torch.zeros(1, 1, arms), torch.zeros(1, 1).long(), torch.rand(1, arms))


class Knowing(Decisions):
    """A network that knows the posterior."""

    def _forward(self, params: Params, x: Tensor, statistics: Any = "batch") -> Tensor:
        unused = torch.zeros(len(x), 1)
        read = Histories(params[SUPPORT], params[TARGETS], x, unused, unused)
        return posterior(read).log()[:, None]


def test_pulls_are_of_arms_that_pay_and_one_of_them_is_best() -> None:
    task = drawn(BanditHistory(arms=3, shots=(200, 200)), 300)
    assert task.support_x.shape == (300, 200, 3)
    assert torch.equal(task.support_x.sum(-1), torch.ones(300, 200))
    assert torch.equal(task.query_y[:, 0], task.probabilities.argmax(1))
    assert not task.query_x.any()
    pulled, paid = task.support_x.sum(1), (task.support_x * task.support_y).sum(1)
    often = pulled > 100
    assert (paid / pulled - task.probabilities)[often].abs().max() < 0.15
    shares = pulled.amax(1) / 200
    assert shares.min() < 0.5  # of histories that try all arms
    assert shares.max() > 0.95  # and of those that have a favourite
    assert {int(drawn(BanditHistory(), 1, seed).support_x.shape[1]) for seed in range(99)} == {
        *range(11)
    }


@pytest.mark.parametrize(
    ("pulls", "expected"),
    [
        ([], [1 / 3, 1 / 3, 1 / 3]),
        # p ~ Beta(2, 1) has the density 2p, and is above two others with the integral of 2p p^2.
        ([(0, 1)], [1 / 2, 1 / 4, 1 / 4]),
        ([(1, 1), (1, 1)], [1 / 5, 3 / 5, 1 / 5]),
    ],
)
def test_the_posterior_is_that_by_hand(pulls: list[tuple[int, int]], expected: list[float]) -> None:
    assert posterior(history(pulls, 3))[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_the_posterior_is_calibrated_and_nothing_predicts_the_best_arm_better() -> None:
    task = drawn(BanditHistory(arms=4, shots=(20, 20)), 4000)
    found = posterior(task)
    assert found.sum(1).allclose(torch.ones(4000, dtype=torch.float64))
    chosen = found.gather(1, task.query_y)[:, 0]
    error = chosen - found.square().sum(1)
    assert abs(error.mean()) < 3 * error.std() / 4000**0.5
    for power in (0.8, 1.25):  # as sure, less and more
        other = Decided((power * found.log())[:, None], None)  # type: ignore[arg-type]
        above = excess(other, task)
        assert above.mean() > 1.96 * above.std() / 4000**0.5
    exact = Decided(found.log()[:, None], None)  # type: ignore[arg-type]
    assert excess(exact, task).abs().max() < 1e-9


def test_who_knows_the_posterior_is_as_good_as_thompson_sampling() -> None:
    family = BanditHistory(arms=3, pulls=15, shots=(0, 0))
    bound = family.bind(MLP(hidden=(), head=HEAD), ("none",), "batched")
    problem = Knowing(
        environment=family.bandit,
        model=MLP(hidden=(), head=HEAD),
        path="batched",
        measures=bound.measures,
    )
    meta = InContext().init(problem, torch.Generator().manual_seed(0))
    task = drawn(family, 3000)
    *_, params = InContext().adapt(problem, meta, task, context())
    decided = problem.predict(params, task, context(work="score"))
    thompson = family.bandit.baselines(task)["thompson"]
    best = family.bandit.baselines(task)["best_arm"]
    apart = best - regret(decided, task) - thompson
    assert abs(apart.mean()) < 3 * apart.std() / 3000**0.5
    paid = problem.judge(decided, task)["return"]
    assert float((paid - best + regret(decided, task)).mean()) == pytest.approx(0, abs=0.1)


def test_pulls_are_read_with_their_rewards_from_then_on() -> None:
    family = BanditHistory(arms=3, pulls=4, shots=(2, 2))
    problem = family.bind(MLP(hidden=(), head=HEAD), ("none",), "batched")
    meta, task = InContext().init(problem, torch.Generator().manual_seed(0)), drawn(family)
    *_, params = InContext().adapt(problem, meta, task, context())
    seen: list[tuple[Tensor, Tensor]] = []
    forward = problem._forward

    def noted(params: Params, x: Tensor, statistics: Any = "batch") -> Tensor:
        seen.append((params[SUPPORT], params[TARGETS]))
        return forward(params, x, statistics)

    problem._forward = noted  # type: ignore[method-assign]
    rollout = problem.rollout(params, task, torch.Generator().manual_seed(0))
    assert [pulls.shape[1] for pulls, _ in seen] == [2, 3, 4, 5]
    pulls, rewards = seen[-1]
    assert torch.equal(pulls[:, :2], task.support_x)
    assert torch.equal(pulls[:, 2:], rollout.actions[:, 0, :3])
    assert torch.equal(rewards[:, 2:, 0], rollout.rewards[:, 0, :3])


@pytest.mark.ray  # takes seconds
def test_training_learns_the_best_arm_and_evaluations_play() -> None:
    recipe = config(
        CASES["decisions"],
        family__pulls=8,
        family__shots=[0, 8],
        model__head__width=16,
        model__head__depth=2,
        outer={"steps": 120, "tasks_per_step": 64, "tasks_per_ticket": 64, "lr": 0.004},
        evaluation={"tasks": 500, "tasks_per_ticket": 500, "family": {"shots": [8, 8]}},
    ).recipe()
    found = trained(recipe)
    curves = found.curves["none"]
    before, after = curves["best_arm"].double().mean(0).tolist()
    assert after > before + 0.1
    gain = curves["return"][:, 1] - curves["return"][:, 0]
    assert gain.mean() > 1.96 * gain.std() / 500**0.5
    assert {"random", "thompson", "ucb1"} <= found.baselines.keys()
    assert found.pooled["none"]["excess"].mean() > 0


@pytest.mark.ray  # takes seconds
def test_a_picture_has_the_regret_of_trials_before_and_after_reading() -> None:
    recipe = config(CASES["decisions"]).recipe()
    figure = illustrate(recipe, prepare(recipe).meta)
    assert figure is not None
    labels = {line.get_label() for axes in figure.axes for line in axes.get_lines()}
    assert any("thompson" in str(label).lower() for label in labels)


def test_what_cannot_read_pulls_is_refused() -> None:
    family = BanditHistory()
    problem = family.bind(MLP(hidden=(8,)), ("none",), "batched")
    with pytest.raises(InputError, match="pulls are read as a set") as error:
        problem.init(torch.Generator())
    assert "algorithm.name to in_context" in error.value.remedy
    maml, bound = MAML(inner_lr=0.1), family.bind(MLP(hidden=(), head=HEAD), ("none",), "batched")
    with pytest.raises(InputError, match="gives the network's head no support set") as error:
        maml.init(bound, torch.Generator())
    assert "algorithm.name to in_context" in error.value.remedy


def test_a_network_that_predicts_the_best_arm_predicts_no_rewards() -> None:
    """It has a number for each arm, of which the first would be taken for a reward."""
    recipe = config(CASES["decisions"]).recipe()
    with pytest.raises(InputError, match="bandit_history tasks, which take no examples"):
        Learned(recipe, prepare(recipe).meta, "here")


def test_a_finished_run_of_decisions_is_not_told_to_adapt_to_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = config(CASES["decisions"]).recipe()
    print_next(recipe, "run")
    assert "evaluate run" in capsys.readouterr().out
    told = how_to_load(prepare(recipe), Folder("run"))
    assert not any("adapt" in code for code in told)
