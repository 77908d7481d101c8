"""R2D2: targets by hand, sequences of episodes, a replay that is a part of what travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from cases import CASES, config
from torch import Tensor

from cluster.workers.plan import choose_plan
from cluster.workers.worker import Worker
from metatrain.algorithms import q_learning
from metatrain.algorithms.q_learning import rescaled, restored, shares
from metatrain.algorithms.r2d2 import R2D2, TARGET
from metatrain.algorithms.replay import PRIORITIES, ROWS, Replay, priorities
from metatrain.algorithms.sequences import Window, cut
from metatrain.core import Context, InputError, Params, Ticket, Update, generator_for
from metatrain.first_look import check_data
from metatrain.learner import Learner
from metatrain.models import MLP, heads
from metatrain.outer import Outer
from metatrain.problems.environment import Rollout
from metatrain.problems.episodes import Episodes
from metatrain.start import TRAINING, prepare
from metatrain.tasks import Navigation, TMaze

LSTM = MLP(hidden=(), head=heads.Memory(cell="lstm", hidden=4))


def at(step: int, part: int = 0) -> Context:
    ticket = Ticket("update", "train", step, part)
    return Context(ticket, generator_for(0, ticket, "adaptation"))


def played(problem: Episodes, params: Params, tasks: int = 2) -> tuple[Params, Rollout, Tensor]:
    """Parameters of so many tasks, their episodes, and the memory before each step."""
    phi = {name: p.expand(tasks, *p.shape) for name, p in params.items()}
    env: Any = problem.environment
    task = env.sample(torch.Generator().manual_seed(1), tasks, "train")
    rollout = problem.rollout(phi, task, torch.Generator().manual_seed(2))
    one = {name: p[:1] for name, p in phi.items()}
    return phi, rollout, q_learning.memories(problem, one, rollout)


def test_values_are_rescaled_and_restored() -> None:
    x = torch.tensor([-300.0, -4.0, -0.1, 0.0, 0.5, 8.0, 1000.0], dtype=torch.float64)
    torch.testing.assert_close(restored(rescaled(x)), x)
    assert rescaled(torch.tensor(3.0)).item() == pytest.approx(1.003)


def test_episodes_have_shares_of_random_actions_from_epsilon_to_its_eighth_power() -> None:
    assert shares(0.4, 0.0, 8)[[0, 7]].tolist() == pytest.approx([0.4, 0.4**8])
    assert shares(0.4, 0.3, 8)[[0, 7]].tolist() == pytest.approx([0.4, 0.3])
    assert shares(0.4, 0.0, 1).tolist() == pytest.approx([0.4])


def test_each_step_is_learned_in_one_sequence_with_what_comes_before_and_after_it() -> None:
    """An episode of 5 steps that ends after 4, in windows of 1 + 2 + 1."""
    count = torch.arange(1.0, 6)
    rollout = Rollout(
        count.view(1, 1, 5, 1),
        torch.ones(1, 1, 5, 1),
        10 * count.view(1, 1, 5),
        torch.tensor([[[1.0, 1, 1, 1, 0]]]),
    )
    found = cut(rollout, -count.view(1, 1, 5, 1), Window(1, 2, 1))
    assert found.observations[..., 0].tolist() == [[0, 1, 2, 3], [2, 3, 4, 0], [4, 0, 0, 0]]
    assert found.rewards.tolist() == [[0, 10, 20, 30], [20, 30, 40, 0], [40, 0, 0, 0]]
    assert found.alive.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]
    assert found.hidden[:, 0].tolist() == [-1, -2, -4]
    assert found.previous.tolist() == [[0, 0], [1, 10], [1, 30]]
    rows = found.rows()
    assert all(map(torch.equal, found.like(rows), found))
    sizes = priorities(torch.tensor([[1.0, -3], [2, 0], [0, 0]]), found, Window(1, 2, 1))
    assert sizes.tolist() == pytest.approx([0.9 * 3 + 0.1 * 2, 0.9 * 2 + 0.1 * 1, 0])


@pytest.mark.parametrize("model", [MLP(hidden=(4,)), LSTM])
def test_a_sequence_goes_on_with_the_memory_that_the_episode_had(model: MLP) -> None:
    """Along all sequences, whatever their burn-in: the outputs are those of the whole episode."""
    problem = TMaze(shortest=2, longest=3, slack=3, episodes=2).bind(model, ("none",), "batched")
    params = problem.init(torch.Generator().manual_seed(0))
    phi, rollout, memory = played(problem, params)
    whole = problem.outputs(phi, rollout).flatten(0, 1)
    one = {name: p[None] for name, p in params.items()}
    for window in (Window(0, 2, 1), Window(3, 2, 1)):
        seen = cut(rollout, memory, window)
        found = q_learning.values(problem, one, seen, window.burn_in)[:, window.learned]
        taken = seen.alive[:, window.learned, None]
        parts = torch.nn.functional.pad(whole, (0, 0, 0, -whole.shape[1] % 2))
        expected = parts.unflatten(1, (-1, 2)).flatten(0, 1)
        torch.testing.assert_close(found * taken, expected * taken)


def test_errors_are_those_of_double_q_learning_by_hand() -> None:
    """With n = 2, in float64: loops over steps, another network as target, an episode that ends."""
    problem = TMaze(shortest=1, longest=1, slack=3, episodes=8, discount=0.5).bind(
        LSTM, ("none",), "batched"
    )
    drawn = [problem.init(torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    q, older = ({name: 3 * p.double() for name, p in params.items()} for params in drawn)
    floats = {name: p.float() for name, p in q.items()}
    _, rollout, _ = played(problem, floats, 1)
    rollout = Rollout(*(leaf.double() for leaf in rollout))
    phi, target = ({name: p[None] for name, p in params.items()} for params in (q, older))
    window = Window(0, 5, 2)
    seen = cut(rollout, q_learning.memories(problem, phi, rollout), window)
    found = q_learning.errors(problem, phi, target, seen, window)
    mine, others = (problem.outputs(params, rollout)[0] for params in (phi, target))
    ended = 0
    for e, (actions, rewards, alive) in enumerate(
        zip(rollout.actions[0].argmax(-1), rollout.rewards[0], rollout.alive[0], strict=True)
    ):
        steps = int(alive.sum())
        ended += steps < 5
        for t in range(5):
            if t >= steps:
                assert found[e, t] == 0
                continue
            y = sum(0.5**k * float(rewards[t + k]) for k in range(2) if t + k < steps)
            if t + 2 < steps:
                best = int(mine[e, t + 2].argmax())
                y += 0.25 * float(restored(others[e, t + 2, best]))
            y = float(rescaled(torch.tensor(y, dtype=torch.float64)))
            assert found[e, t].item() == pytest.approx(float(mine[e, t, actions[t]]) - y, abs=1e-9)
    assert 0 < ended < 8


def test_nothing_of_the_burn_in_and_of_the_target_has_a_gradient() -> None:
    """The loss of a sequence's last steps moves weights as if the memory there were data."""
    problem = TMaze(shortest=4, longest=4, slack=0, episodes=3).bind(LSTM, ("none",), "batched")
    params = problem.init(torch.Generator().manual_seed(0))
    phi, rollout, memory = played(problem, params, 1)
    whole, short = Window(2, 1, 1), Window(0, 1, 1)
    pairs = []
    for window in (whole, short):
        leaves = {name: p[None].clone().requires_grad_() for name, p in params.items()}
        seen = cut(rollout, memory, window)
        loss = q_learning.errors(problem, leaves, phi, seen, window).square().sum()
        pairs.append(torch.autograd.grad(loss, [*leaves.values()], materialize_grads=True))
    for one, other in zip(*pairs, strict=True):
        torch.testing.assert_close(one, other)


def test_sequences_are_drawn_by_priority_and_weighted_against_it() -> None:
    held = Replay(torch.arange(4.0)[:, None], torch.tensor([0.0, 1.0, 3.0, 0.0]))
    held = held.add(torch.tensor([[9.0]]), torch.tensor([2.0]))
    assert held.rows[:, 0].tolist() == [1, 2, 3, 9]
    places, weights = held.draw(20_000, torch.Generator().manual_seed(0))
    chances = torch.tensor([1.0, 3.0, 0.0, 2.0]) ** 0.9
    chances = chances / chances.sum()
    shares = places.bincount(minlength=4) / 20_000
    torch.testing.assert_close(shares, chances, atol=0.01, rtol=0)
    expected = (chances[places] / chances[0]) ** -0.6
    torch.testing.assert_close(weights, expected)
    assert held.marked(torch.tensor([1]), torch.tensor([5.0])).priorities.tolist() == [1, 5, 0, 2]


@dataclass(frozen=True)
class TwoStates:
    """In the first state one may end for 1 or go on for 0; in the second one end for 4 or go back
    for -1.
    """

    observations: ClassVar[int] = 2
    actions: ClassVar[int] = 2
    discrete: ClassVar[bool] = True
    horizon: int = 8
    episodes: int = 8
    discount: float = 0.5

    def start(self, task: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        state = torch.zeros(len(task[0]), self.episodes, dtype=torch.long)
        return state, torch.nn.functional.one_hot(state, 2).float()

    def step(
        self, task: Any, state: Tensor, action: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chosen = action.argmax(-1)
        reward = torch.tensor([[1.0, 0.0], [4.0, -1.0]])[state, chosen]
        state = torch.where(chosen == 1, 1 - state, state)
        return state, torch.nn.functional.one_hot(state, 2).float(), reward, chosen == 0

    def baselines(self, task: Any) -> dict[str, Tensor]:
        return {}


@pytest.mark.ray  # takes seconds
def test_it_finds_the_values_of_two_states() -> None:
    """Q = 1 and 0.5 * 4 in the first state, 4 and -1 + 0.5 * 2 in the second one."""
    problem = Episodes(environment=TwoStates(), model=MLP(hidden=()), path="reference")
    r2d2 = R2D2(length=4, burn_in=0, ahead=1, batch=32, capacity=100, target_steps=4, epsilon=1)
    outer = Outer(steps=150, tasks_per_step=1, tasks_per_ticket=1, lr=0.1, schedule="linear")
    learner = Learner(r2d2.init(problem, torch.Generator().manual_seed(0)), outer)
    for step in range(150):
        learner.apply([r2d2.update(problem, learner.meta(), (torch.zeros(1, 1),), at(step))])
    model = learner.meta().model
    found = restored(torch.eye(2) @ model["head.weight"].T + model["head.bias"])
    torch.testing.assert_close(found, torch.tensor([[1.0, 2.0], [4.0, 0.0]]), atol=0.1, rtol=0)


def test_a_ticket_writes_its_own_part_of_the_replay_and_q_becomes_the_target_in_time() -> None:
    problem = TMaze(episodes=2, shortest=2, longest=2, slack=2).bind(LSTM, ("none",), "batched")
    r2d2 = R2D2(length=3, burn_in=2, ahead=1, batch=4, tickets=2, capacity=6, target_steps=2)
    meta = r2d2.init(problem, torch.Generator().manual_seed(0))
    moved = meta._replace(model={name: p + 1 for name, p in meta.model.items()})
    tasks = problem.environment.sample(torch.Generator().manual_seed(1), 1, "train")  # type: ignore[attr-defined]
    for step, source in ((0, meta), (1, moved)):
        state = r2d2.update(problem, moved, tasks, at(step, 1)).direction.state
        assert all(torch.equal(state[TARGET + name], p) for name, p in source.model.items())
    assert torch.equal(state[ROWS][0], meta.state[ROWS][0])
    written = state[PRIORITIES][1] > 0  # 2 episodes of at most 5 steps: up to 2 sequences each
    assert 2 <= written.sum() <= 4
    assert not state[PRIORITIES][0].any()
    with pytest.raises(InputError) as error:
        r2d2.update(problem, meta, tasks, at(0, 2))
    assert (error.value.what, error.value.got) == ("algorithm.tickets", 2)


@pytest.mark.ray  # takes a second
def test_it_does_not_matter_who_computes_a_ticket_and_how_often() -> None:
    """Three steps of two tickets: by one worker, and by two of which one computes tickets twice."""
    prepared = prepare(config(CASES["r2d2"]).recipe())
    setting, outer = prepared.settings[TRAINING], prepared.recipe.outer

    def trained(workers: list[Worker], again: bool) -> Params:
        learner = Learner(prepared.meta, outer)
        for step in range(3):
            found = []
            for ticket in setting.tickets(step):
                worker = workers[(step + ticket.part) % len(workers)]
                worker.load(step, worker.layout.flatten(learner.meta()))
                if again:
                    worker.compute(ticket)
                update, _ = worker.compute(ticket)
                assert isinstance(update, Update)
                flat = worker.layout.flatten(update.direction)
                found.append(update._replace(direction=worker.layout.unflatten(flat)))
            learner.apply(found)
        return {name: p.clone() for name, p in learner.meta().flat().items()}

    one, two, three = (Worker(prepared, choose_plan(prepared, 0, 1)[0]) for _ in range(3))
    expected, found = trained([one], False), trained([two, three], True)
    assert expected.keys() == found.keys()
    assert all(torch.equal(p, found[name]) for name, p in expected.items())
    held = found[f"state.{PRIORITIES}"]
    assert (held > 0).any(1).all()  # each ticket has its own sequences


def test_scores_are_of_greedy_actions_from_the_memory_on() -> None:
    recipe = config(CASES["r2d2"]).recipe()
    prepared = prepare(recipe)
    problem: Any = prepared.problems[TRAINING]
    tasks = problem.environment.sample(torch.Generator().manual_seed(1), 2, "test")
    (phi,) = recipe.algorithm.adapt(problem, prepared.meta, tasks, at(0))
    rollout = problem.rollout(phi, tasks, torch.Generator().manual_seed(0))
    greedy = problem.outputs(phi, rollout).argmax(-1)
    assert torch.equal(greedy, rollout.actions.argmax(-1))
    assert problem.query(phi, tasks, at(0))["loss"].isfinite().all()


@pytest.mark.parametrize("tickets", [1, 3])
def test_a_step_of_more_or_fewer_tickets_than_replays_is_refused_before_a_run(
    tickets: int,
) -> None:
    prepared = prepare(config(CASES["r2d2"], algorithm__tickets=tickets).recipe())
    with pytest.raises(InputError, match=rf"algorithm.tickets is {tickets}, expected 2"):
        check_data(prepared)


def test_numbers_as_actions_are_refused_and_a_memory_that_grows() -> None:
    snail = MLP(hidden=(), head=heads.SNAIL(width=4, length=2))
    for family, model, what in (
        (Navigation(), LSTM, "values of a few actions"),
        (TMaze(), snail, "grows as it reads"),
    ):
        problem = family.bind(model, ("none",), "batched")
        with pytest.raises(InputError, match=what):
            R2D2().init(problem, torch.Generator())


def solved(starts: Literal["stored", "zero"], burn_in: int, steps: int) -> float:
    """The return of greedy actions in a T-maze of 3 steps, from sequences of 2 of them."""
    family = TMaze(shortest=3, longest=3, slack=1, episodes=32)
    model = MLP(hidden=(), head=heads.Memory(cell="lstm", hidden=48))
    problem = family.bind(model, ("none",), "reference")
    r2d2 = R2D2(
        length=2, burn_in=burn_in, starts=starts, ahead=1, batch=64, target_steps=10, capacity=500
    )
    outer = Outer(steps=steps, tasks_per_step=1, tasks_per_ticket=1, lr=0.005)
    learner = Learner(r2d2.init(problem, torch.Generator().manual_seed(0)), outer)
    tasks = family.sample(torch.Generator(), 1, "train")
    for step in range(steps):
        learner.apply([r2d2.update(problem, learner.meta(), tasks, at(step))])
    (phi,) = r2d2.adapt(problem, learner.meta(), tasks, at(0))
    rollout = problem.rollout(phi, tasks, torch.Generator().manual_seed(0))
    return float(rollout.rewards.sum(2).mean())


@pytest.mark.ray  # takes seconds
def test_stored_memories_carry_a_cue_over_the_borders_of_sequences() -> None:
    """No sequence has the cue and the turn: the right turn is worth 4, and 1.95 is guessed."""
    assert solved("stored", 1, 300) > 3.8
    assert solved("zero", 1, 300) < 2.8
