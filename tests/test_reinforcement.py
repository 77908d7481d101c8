"""Policy gradients from episodes that a ticket decides, between inner steps and through a
memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import CASES, SINUSOID, config, context, trained
from gradients import assert_meta_gradient

from cluster import run
from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.algorithms import MAML, Recurrent, Reptile
from metatrain.core import ComputePath, InputError, Meta, Params, Scores, Ticket, Update
from metatrain.metrics import RETURN
from metatrain.models import MLP, heads
from metatrain.problems.advantages import advantages
from metatrain.problems.environment import Rollout
from metatrain.problems.episodes import Episodes, Played
from metatrain.start import prepare
from metatrain.tasks import Bandit, Navigation
from metatrain.tasks.bandit import Arms
from metatrain.tasks.navigation import Goals


def bound(family: Bandit | Navigation, model: Any = None) -> tuple[Episodes, Params]:
    problem = family.bind(model or MLP(hidden=(8,)), ("none",), "batched")
    return problem, problem.init(torch.Generator().manual_seed(0))


def each(params: Params, tasks: int) -> Params:
    return {name: p.expand(tasks, *p.shape) for name, p in params.items()}


def test_a_pull_pays_with_the_arms_probability() -> None:
    bandit = Bandit(arms=2, pulls=1, episodes=20_000)
    task = Arms(torch.tensor([[0.2, 0.9]]))
    for arm, chance in enumerate((0.2, 0.9)):
        action = torch.nn.functional.one_hot(torch.full((1, 20_000), arm), 2).float()
        generator = torch.Generator().manual_seed(0)
        state, _ = bandit.start(task, generator)
        _, _, reward, ended = bandit.step(task, state, action, generator)
        assert float(reward.mean()) == pytest.approx(chance, abs=0.01)
        assert not ended.any()
    found = {name: float(v) for name, v in Bandit(arms=2, pulls=1).baselines(task).items()}
    assert (found["random"], found["best_arm"]) == pytest.approx((0.55, 0.9))


def test_a_walk_is_clipped_rewarded_by_its_distance_and_ends_at_the_goal() -> None:
    navigation = Navigation(episodes=3)
    task = Goals(torch.tensor([[0.1, -0.1]]))
    action = torch.tensor([[[5.0, -5.0], [0.5, 0.0], [0.95, -1.05]]])
    origin, _ = navigation.start(task, torch.Generator())
    _, place, reward, ended = navigation.step(task, origin, action, torch.Generator())
    torch.testing.assert_close(place, torch.tensor([[[0.1, -0.1], [0.05, 0.0], [0.095, -0.1]]]))
    torch.testing.assert_close(reward, -torch.tensor([[0.0, (0.05**2 + 0.1**2) ** 0.5, 0.005]]))
    assert ended.tolist() == [[True, False, True]]
    still = Navigation(horizon=7).baselines(Goals(torch.tensor([[0.3, -0.4]])))
    torch.testing.assert_close(still["standing_still"], torch.tensor([-3.5]))


class Hidden(Navigation):
    """Navigation of which a policy sees nothing: a state of two tensors, and one observation."""

    def start(self, task: Goals, generator: torch.Generator) -> tuple[Any, torch.Tensor]:
        place, _ = super().start(task, generator)
        steps = torch.rand(place.shape[:2], generator=generator)
        return (place, steps), torch.zeros_like(place)

    def step(
        self, task: Goals, state: Any, action: torch.Tensor, generator: torch.Generator
    ) -> Any:
        place, steps = state
        place, _, _, ended = super().step(task, place, action, generator)
        return (place, steps + 1), torch.zeros_like(place), steps, ended


def test_a_state_of_any_kind_is_carried_and_not_seen() -> None:
    problem, params = bound(Hidden(horizon=4, episodes=3))
    task = Goals(torch.tensor([[0.4, 0.4], [-0.4, 0.4]]))
    problem.check(task)
    rollout = problem.rollout(each(params, 2), task, torch.Generator().manual_seed(0))
    assert rollout.observations.abs().max() == 0
    began = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rollout.rewards, began[..., None] + torch.arange(4))


def test_after_an_episodes_end_it_has_no_rewards_and_no_weight() -> None:
    problem, params = bound(Navigation(horizon=30, episodes=50))
    params = {name: torch.zeros_like(p) for name, p in params.items()} | {
        "log_std": torch.full((2,), -4.0)
    }
    task = Goals(torch.tensor([[0.0, 0.03], [0.4, 0.4]]))
    rollout = problem.rollout(each(params, 2), task, torch.Generator().manual_seed(0))
    ended = rollout.alive[0, :, -1] == 0
    assert ended.any()
    assert not ended.all()
    assert (rollout.rewards * (1 - rollout.alive)).abs().max() == 0
    assert (rollout.alive.diff(dim=-1) <= 0).all()
    assert (rollout.alive[..., 0] == 1).all()
    advantage = advantages(rollout, problem.environment.discount)
    assert (advantage * (1 - rollout.alive)).abs().max() == 0
    total = rollout.alive.sum((1, 2))
    torch.testing.assert_close((advantage.sum((1, 2)) / total), torch.zeros(2), atol=1e-5, rtol=0)


def test_the_surrogates_gradient_is_that_of_the_expected_reward() -> None:
    """One pull of a bandit whose policy is a softmax: d/dz_k sum_a pi_a p_a = pi_k (p_k - sum_a
    pi_a p_a).
    """
    bandit = Bandit(arms=3, pulls=1, episodes=200_000)
    problem = bandit.bind(MLP(hidden=()), ("none",), "batched")
    task = Arms(torch.tensor([[0.1, 0.5, 0.9]]))
    logits = torch.tensor([[0.3, 0.0, -0.5]])
    params = {"head.weight": torch.zeros(1, 3, 1), "head.bias": logits.clone().requires_grad_()}
    problem.support_loss(params, task, context()).sum().backward()
    found = -params["head.bias"].grad
    pi, p = logits.softmax(-1), task.probabilities
    exact = pi * (p - (pi * p).sum())
    # advantages are normalised: the direction is the gradient's, its length another
    torch.testing.assert_close(found / found.norm(), exact / exact.norm(), atol=0.02, rtol=0)


def played_by_hand(rewards: Any, alive: Any) -> Rollout:
    """Episodes of one task, all at the origin: the baseline is the mean over them of each step."""
    steps = torch.zeros(1, *torch.tensor(rewards).shape, 2)
    return Rollout(
        steps, steps, *(torch.tensor([x], dtype=torch.float32) for x in (rewards, alive))
    )


@pytest.mark.parametrize(("discount", "first"), [(0.0, 0.5), (0.5, 1.5), (1.0, 2.5)])
def test_an_advantage_is_of_what_follows_discounted(discount: float, first: float) -> None:
    """Returns 1 + 4 * discount and 4 of one episode, 0 of the other: half of them is the mean."""
    rollout = played_by_hand([[1.0, 4.0], [0.0, 0.0]], [[1, 1], [1, 1]])
    expected = torch.tensor([[[first, 2.0], [-first, -2.0]]])
    torch.testing.assert_close(advantages(rollout, discount), expected, rtol=1e-4, atol=1e-4)


def test_what_is_seen_explains_returns() -> None:
    """The first place is worth 5 and the second one 1: neither action did that."""
    rollout = played_by_hand([[5.0], [1.0]], [[1], [1]])
    torch.testing.assert_close(
        advantages(rollout, 1.0), torch.tensor([[[2.0], [-2.0]]]), rtol=1e-4, atol=1e-4
    )
    seen = rollout._replace(observations=torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]]))
    torch.testing.assert_close(advantages(seen, 1.0), torch.zeros(1, 2, 1), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("discount", "first"), [(0.0, 0.5), (0.5, 1.5)])
def test_a_policy_gradient_by_hand(
    discount: float, first: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second episode ends after a step. Only inner losses are normalised by what is left."""
    problem, _ = bound(Navigation(horizon=2, episodes=2, discount=discount))
    rollout = played_by_hand([[1.0, 4.0], [0.0, 0.0]], [[1, 1], [1, 0]])
    log_probs = torch.zeros(1, 2, 2, requires_grad=True)
    played = Played(rollout, log_probs, advantages(rollout, discount))
    monkeypatch.setattr(problem, "predict", lambda *_: played)
    task = Goals(torch.zeros(1, 2))
    (outer,) = torch.autograd.grad(problem.judge(played, task)["loss"].sum(), log_probs)
    (inner,) = torch.autograd.grad(problem.support_loss({}, task, context()).sum(), log_probs)
    expected = torch.tensor([[[-first, 0.0], [first, 0.0]]])  # (2 first^2 / 3)^(1/2) deviates
    torch.testing.assert_close(outer, expected / 4, rtol=1e-4, atol=1e-4)
    deviation = (2 * first**2 / 3) ** 0.5
    torch.testing.assert_close(inner, expected / deviation / 3, rtol=1e-4, atol=1e-4)
    assert problem.judge(played, task)["return"].item() == 2.5


@pytest.mark.parametrize(
    "model",
    [
        MLP(hidden=(8,)),
        MLP(hidden=(), head=heads.Memory(cell="gru", hidden=8)),
        MLP(hidden=(), head=heads.MANN(hidden=4, slots=5, width=3, reads=2)),
        MLP(hidden=(), head=heads.SNAIL(width=4, length=4)),
    ],
)
@pytest.mark.parametrize("family", [Bandit(pulls=5, episodes=4), Navigation(horizon=5, episodes=4)])
def test_log_probabilities_are_those_that_acted(family: Any, model: Any) -> None:
    """Whether the network reads an episode at once or step by step, with a memory or without."""
    problem, params = bound(family, model)
    task = family.sample(torch.Generator().manual_seed(1), 2, "train")
    phi = each(params, 2)
    rollout = problem.rollout(phi, task, torch.Generator().manual_seed(2))
    found = problem.log_probs(phi, rollout)
    memory, expected = problem.memory(phi), []
    for t in range(5):
        outputs, hidden = problem.act(phi, rollout.observations[:, :, t], memory)
        action = rollout.actions[:, :, t]
        if family.discrete:
            expected.append((outputs.log_softmax(-1) * action).sum(-1))
        else:
            expected.append(
                (
                    -0.5 * (action - outputs).square() - 0.5 * torch.log(torch.tensor(2 * torch.pi))
                ).sum(-1)
            )
        if memory:
            memory = *hidden, torch.cat([action, rollout.rewards[:, :, t, None]], -1)
    torch.testing.assert_close(found, torch.stack(expected, -1))


def test_episodes_are_those_of_the_tickets_generator() -> None:
    problem, params = bound(Navigation(horizon=6, episodes=4))
    task = Goals(torch.tensor([[0.3, 0.2]]))
    maml = MAML(inner_lr=0.1, inner_steps=2)
    found = [
        list(maml.adapt(problem, maml.init(problem, torch.Generator()), task, context(s)))
        for s in (0, 0, 1)
    ]
    assert all(torch.equal(found[0][-1][name], p) for name, p in found[1][-1].items())
    assert not torch.equal(found[0][-1]["head.bias"], found[2][-1]["head.bias"])
    first, second = (
        problem.rollout(each(params, 1), task, (c := context()).generator) for _ in range(2)
    )
    assert torch.equal(first.actions, second.actions)
    assert not torch.equal(
        first.actions, problem.rollout(each(params, 1), task, c.generator).actions
    )


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_an_inner_step_does_not_depend_on_the_size_of_rewards(scale: float) -> None:
    problem, params = bound(Navigation(horizon=6, episodes=4))
    task = Goals(torch.tensor([[0.3, 0.2]]))
    rollout = problem.rollout(each(params, 1), task, torch.Generator().manual_seed(0))
    scaled = rollout._replace(rewards=scale * rollout.rewards)
    inner, outer = (
        [problem.surrogate(problem.seen(each(params, 1), r), support) for r in (rollout, scaled)]
        for support in (True, False)
    )
    torch.testing.assert_close(inner[1], inner[0], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(outer[1], scale * outer[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", ["batched", "reference"])
def test_the_meta_gradient_goes_through_the_inner_policy_gradient(
    path: ComputePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, with episodes held fixed, against finite differences of the query loss after two
    inner steps.
    """
    family = Navigation(horizon=4, episodes=3)
    problem = family.bind(MLP(hidden=(5,)), ("none",), path)
    theta = {name: p.double() for name, p in problem.init(torch.Generator().manual_seed(0)).items()}
    drawn = family.sample(torch.Generator().manual_seed(1), 2, "train")
    act = problem.rollout
    floats = {name: p.float() for name, p in each(theta, 2).items()}
    fixed = Rollout(
        *(leaf.double() for leaf in act(floats, drawn, torch.Generator().manual_seed(2)))
    )

    def replay(self: Episodes, params: Params, task: Goals, generator: torch.Generator) -> Rollout:
        rows = [
            t for t in range(2) if any(torch.equal(drawn.places[t], place) for place in task.places)
        ]
        return Rollout(*(leaf[rows] for leaf in fixed))

    monkeypatch.setattr(Episodes, "rollout", replay)
    maml = MAML(inner_lr=0.3, inner_steps=2)
    meta = Meta(theta, {}, {})
    exact = assert_meta_gradient(maml, problem, meta, drawn, tolerance=1e-5)
    first = MAML(inner_lr=0.3, inner_steps=2, first_order=True)
    cut = first.update(problem, meta, drawn, context()).direction.model
    missed = sum((cut[name] - g).square().sum() for name, g in exact.items())
    assert missed > 1e-4 * sum(g.square().sum() for g in exact.values())


@pytest.mark.parametrize("probe", ["rl2", "maml-navigation"])
def test_a_ticket_computed_again_gives_the_same_update_and_scores(probe: str) -> None:
    recipe = config(CASES[probe]).recipe()
    found = []
    for _ in range(2):
        worker = Worker(prepare(recipe), choose_plan(prepare(recipe), 0, 1)[0])
        worker.load(0, worker.layout.flatten(prepare(recipe).meta))
        worker.compute(Ticket("update", "train", 3, 1))  # another ticket before it changes nothing
        update, _ = worker.compute(Ticket("update", "train", 0, 0))
        scores, _ = worker.compute(Ticket("score", "test", 0, 0))
        assert isinstance(update, Update)
        assert isinstance(scores, Scores)
        found.append((worker.layout.flatten(update.direction), scores.curves["none"]["return"]))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_policy_that_sees_nothing_learns_the_arms_by_gradient_steps() -> None:
    """One bandit, first-order: MAML's inner loop alone raises the return."""
    problem, params = bound(Bandit(arms=3, pulls=10, episodes=50), MLP(hidden=()))
    task = Arms(torch.tensor([[0.1, 0.2, 0.9]]))
    maml = MAML(inner_lr=1.0, inner_steps=10)
    steps = list(
        maml.adapt(problem, maml.init(problem, torch.Generator().manual_seed(0)), task, context())
    )
    before, after = (
        problem.query(phi, task, context())["return"].item() for phi in (steps[0], steps[-1])
    )
    assert before < 6
    assert after > 8
    assert params.keys() == {"head.weight", "head.bias"}


@pytest.mark.ray  # takes seconds
def test_rl2_learns_to_find_the_better_arm() -> None:
    """Two arms and 120 outer steps: clearly more than the 5 of a random choice; the best arm gives
    6.67.
    """
    recipe = config(
        SINUSOID,
        family={"name": "bandit", "arms": 2, "pulls": 10, "episodes": 10},
        model={
            "name": "mlp",
            "hidden": [],
            "head": {"name": "memory", "cell": "gru", "hidden": 16},
        },
        algorithm={"name": "recurrent"},
        outer={"steps": 120, "tasks_per_step": 50, "tasks_per_ticket": 50, "lr": 0.01},
        evaluation={"tasks": 400, "tasks_per_ticket": 400},
    ).recipe()
    found = trained(recipe)
    assert found.curves["none"]["return"].mean() > found.baselines["random"].mean() + 0.5


def test_what_cannot_be_is_one_sentence() -> None:
    wrong: list[tuple[type[Bandit | Navigation], str, float]] = [
        (Bandit, "arms", 1),
        (Navigation, "horizon", 0),
        (Navigation, "discount", -0.1),
        (Navigation, "discount", 99.0),
    ]
    for family, key, value in wrong:
        with pytest.raises(InputError) as error:
            family(**{key: value})  # type: ignore[arg-type]
        assert (error.value.what, error.value.got) == (key, value)
    problem, _ = bound(Bandit())
    with pytest.raises(InputError, match=r"leave algorithm\.inner_batch out"):
        Reptile(inner_lr=0.1, inner_steps=1, inner_batch=2).init(problem, torch.Generator())
    with pytest.raises(InputError, match="recurrent needs a network with a memory"):
        Recurrent().init(problem, torch.Generator())


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("probe", ["rl2", "maml-navigation"])
def test_a_run_leaves_its_pictures(probe: str, tmp_path: Any) -> None:
    folder, (score,) = run.train(config(CASES[probe], output=str(tmp_path / "run")))
    assert score.metric == RETURN
    assert {path.stem for path in (folder / "figures").glob("*.png")} >= {
        "learning_curve",
        "adaptation_curve",
        "example",
    }
