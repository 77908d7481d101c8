"""CartPole with varied physics: its equations, its tasks and what one step of MAML learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import SINUSOID, config, trained

from metatrain.core import InputError
from metatrain.tasks import CartPole
from metatrain.tasks.cartpole import FARTHEST, STEEPEST, Physics


def test_steps_and_ends_are_gymnasiums() -> None:
    """Two carts with physics of their own, each as far as random pushes bring it, step by step."""
    gymnasium = pytest.importorskip("gymnasium")
    family = CartPole(episodes=1)
    task = Physics(*torch.tensor([[9.8, 6.0], [1.0, 2.0], [0.1, 0.3], [0.5, 0.8], [10.0, -7.0]]))
    generator = torch.Generator().manual_seed(0)
    state, _ = family.start(task, generator)
    peers = []
    for row, at in zip(zip(*task, strict=True), state[:, 0], strict=True):
        gravity, cart, pole, length, force = (float(x) for x in row)
        peer = gymnasium.make("CartPole-v1").unwrapped
        peer.reset()
        peer.gravity, peer.masscart, peer.masspole, peer.length = gravity, cart, pole, length
        peer.total_mass, peer.polemass_length, peer.force_mag = cart + pole, pole * length, force
        peer.state = at.double().numpy()
        peers.append(peer)
    over = [False, False]
    for _ in range(200):
        pushes = torch.randint(2, (2,), generator=generator)
        action = torch.nn.functional.one_hot(pushes, 2).float()[:, None]
        state, seen, reward, ended = family.step(task, state, action, generator)
        shares = seen[:, 0] * torch.tensor([FARTHEST, 1, STEEPEST, 1])
        torch.testing.assert_close(shares, state[:, 0])
        for i, peer in enumerate(peers):
            if not over[i]:
                theirs, paid, over[i], *_ = peer.step(int(pushes[i]))
                assert np.allclose(state[i, 0].numpy(), theirs, rtol=1e-4, atol=1e-5)
                assert (bool(ended[i]), float(reward[i])) == (over[i], paid)
        if all(over):
            return
    pytest.fail("no cart ended")


def test_physics_are_drawn_within_their_ranges_and_half_of_the_buttons_are_exchanged() -> None:
    family = CartPole(gravity=(2.0, 4.0), force=(3.0, 3.0))
    task = family.sample(torch.Generator().manual_seed(0), 2000, "train")
    assert 2 <= float(task.gravity.min()) < 2.1 < 3.9 < float(task.gravity.max()) <= 4
    assert set(task.force.tolist()) == {3.0, -3.0}
    assert float((task.force < 0).float().mean()) == pytest.approx(0.5, abs=0.04)
    never = CartPole(reversed=0.0).sample(torch.Generator().manual_seed(0), 200, "train")
    assert float(never.force.min()) > 0


def test_who_knows_the_buttons_balances_all_poles() -> None:
    family = CartPole(horizon=60, episodes=5)
    found = family.baselines(family.sample(torch.Generator().manual_seed(0), 20, "test"))
    assert found["controller"].tolist() == [60.0] * 20
    assert 10 < float(found["random"].mean()) < 40


def test_wrong_physics_are_one_sentence() -> None:
    with pytest.raises(InputError) as error:
        CartPole(gravity=(9.0, 2.0))
    assert (error.value.what, error.value.got) == ("gravity", [9.0, 2.0])
    with pytest.raises(InputError) as error:
        CartPole(reversed=1.5)
    assert (error.value.what, error.value.got) == ("reversed", 1.5)


@pytest.mark.ray  # takes seconds
def test_one_step_of_maml_finds_the_buttons() -> None:
    """After 60 outer steps the return of 60 is above the unadapted one by 5 and the interval."""
    recipe = config(
        SINUSOID,
        family={"name": "cartpole", "horizon": 60, "episodes": 20},
        model={"name": "mlp", "hidden": [32]},
        algorithm={"name": "maml", "inner_lr": 1.0},
        outer={"steps": 60, "tasks_per_step": 10, "tasks_per_ticket": 10, "lr": 0.01},
        evaluation={"tasks": 100, "tasks_per_ticket": 100},
    ).recipe()
    returns = trained(recipe).curves["none"]["return"]
    gain = returns[:, -1] - returns[:, 0]
    interval = 1.96 * float(gain.std()) / len(gain) ** 0.5
    assert float(gain.mean()) > 5 + interval, (returns.mean(0), interval)
