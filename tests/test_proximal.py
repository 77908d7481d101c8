"""PPO as the outer step of MAML and RL2: the same episodes seen by other parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import context, exact
from torch import Tensor

from metatrain.algorithms import MAML, Recurrent
from metatrain.algorithms.proximal import Proximal
from metatrain.core import InputError, Params
from metatrain.models import MLP, heads
from metatrain.problems.advantages import Estimator
from metatrain.problems.environment import Rollout
from metatrain.problems.episodes import Episodes, Played, Recorded
from metatrain.tasks import MDP, Bandit, Navigation, Sinusoid
from metatrain.tasks.bandit import Arms

RL2 = MLP(hidden=(), head=heads.Memory(cell="gru", hidden=4))
PLAIN = Proximal(epochs=1, clip=None, sampling=False)


def double(problem: Episodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Play in double precision, so that gradients can be compared to 1e-10."""
    act = Episodes.rollout

    def rollout(self: Episodes, params: Params, *given: Any) -> Rollout:
        floats = {name: p.detach().float() for name, p in params.items()}
        return Rollout(*(leaf.double() for leaf in act(self, floats, *given)))

    monkeypatch.setattr(Episodes, "rollout", rollout)


STEPS = [
    (Recurrent, {}, Bandit(pulls=3, episodes=4), RL2),
    (Recurrent, {}, MDP(horizon=3, trial=2, estimator=Estimator(gae=0.3, entropy=0.1)), RL2),
    (
        MAML,
        {"inner_lr": 0.1, "inner_steps": 2},
        Navigation(horizon=4, episodes=3),
        MLP(hidden=(5,)),
    ),
    (
        MAML,
        {"inner_lr": 0.1},
        Navigation(horizon=4, episodes=3, estimator=Estimator(baseline="value", gae=0.9)),
        MLP(hidden=(5,)),
    ),
]


@pytest.mark.parametrize(("kind", "keys", "family", "model"), STEPS)
def test_one_epoch_without_clipping_is_the_policy_gradient(
    kind: Any, keys: Any, family: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = family.bind(model, ("none",), "batched")
    double(problem, monkeypatch)
    task = family.sample(torch.Generator().manual_seed(1), 2, "train")
    plain, proximal = kind(**keys), kind(**keys, proximal=PLAIN)
    meta = exact(plain.init(problem, torch.Generator().manual_seed(0)))
    found = [each.update(problem, meta, task, context()) for each in (plain, proximal)]
    for name, gradient in found[0].direction.model.items():
        torch.testing.assert_close(found[1].direction.model[name], gradient, rtol=0, atol=1e-10)
    assert max(float(g.abs().max()) for g in found[0].direction.model.values()) > 1e-4
    assert found[0].metrics["return_after"] == found[1].metrics["return_after"]


def test_epochs_are_gradients_of_the_same_episodes_along_steps_of_adam(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second epoch by hand: the same loss of the episodes of the first, one Adam step on."""
    family = Bandit(arms=3, pulls=2, episodes=5)
    problem = family.bind(RL2, ("none",), "batched")
    double(problem, monkeypatch)
    task = family.sample(torch.Generator().manual_seed(1), 2, "train")
    algorithm = Recurrent(proximal=Proximal(epochs=2, clip=0.1, lr=0.05))
    meta = exact(algorithm.init(problem, torch.Generator().manual_seed(0)))
    found = algorithm.update(problem, meta, task, context()).direction.model

    theta = {name: p.clone().requires_grad_() for name, p in meta.model.items()}
    played = problem.predict(each(theta, 2), task, context())
    optimizer, total = torch.optim.Adam(theta.values(), lr=0.05), []
    for _ in range(2):
        log_probs = problem.log_probs(each(theta, 2), played.rollout)
        ratio = (log_probs - played.log_probs.detach()).exp()
        gains = torch.minimum(ratio * played.advantages, ratio.clamp(0.9, 1.1) * played.advantages)
        optimizer.zero_grad()
        (-gains.mean()).backward()
        total.append({name: p.grad.clone() for name, p in theta.items()})
        optimizer.step()
    for name, mean in found.items():
        torch.testing.assert_close((total[0][name] + total[1][name]) / 2, mean, rtol=0, atol=1e-10)
    assert any(not torch.equal(total[0][name], total[1][name]) for name in total[0])


def each(params: Params, tasks: int) -> Params:
    return {name: p.expand(tasks, *p.shape) for name, p in params.items()}


def test_a_chance_that_moved_beyond_the_clip_gains_nothing() -> None:
    """Ratios 1.5 and 0.5 by advantages of both signs, with clip 0.2."""
    problem = Bandit(pulls=1, episodes=4).bind(MLP(hidden=()), ("none",), "batched")
    recorded = Recorded(problem, [], 0.2, True)
    ratio = torch.tensor([[1.5, 1.5, 0.5, 0.5]])[..., None].requires_grad_()
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0]])[..., None]
    zeros = torch.zeros_like(weight)
    played = Played(None, ratio.log(), weight, acted=zeros)  # type: ignore[arg-type]
    gains = recorded.gains(played, weight, False)
    torch.testing.assert_close(gains[0, :, 0], torch.tensor([1.2, -1.5, 0.5, -0.8]))
    (gradient,) = torch.autograd.grad(gains.sum(), ratio)
    assert gradient[0, :, 0].tolist() == pytest.approx([0, -1, 1, 0])
    inner = recorded.gains(played, weight, True)
    torch.testing.assert_close(inner, ratio * weight)


@pytest.mark.parametrize("sampling", [True, False])
def test_with_the_sampling_an_inner_gradient_has_the_right_derivative(sampling: bool) -> None:
    """Bandits of one pull: the Hessian of the surrogate against that of the expected reward.

    Without the ratios the mean is A grad^2 log pi, which is another matrix.
    """
    bandit = Bandit(arms=3, pulls=1, episodes=100_000)
    problem = bandit.bind(MLP(hidden=()), ("none",), "batched")
    task = Arms(torch.tensor([[0.1, 0.5, 0.9]]))
    logits = torch.tensor([[0.3, 0.0, -0.5]], requires_grad=True)
    again = problem.recorded(clip=None, sampling=sampling)
    params = {"head.weight": torch.zeros(1, 3, 1), "head.bias": logits}
    loss = again().support_loss(params, task, context()).sum()
    found = -hessian(loss, logits)
    exact = hessian((logits.softmax(-1) * task.probabilities).sum(), logits)
    close = bool(((found / found.norm() - exact / exact.norm()).abs() < 0.05).all())
    assert close is sampling


def hessian(value: Tensor, x: Tensor) -> Tensor:
    (first,) = torch.autograd.grad(value, x, create_graph=True)
    return torch.stack([torch.autograd.grad(g, x, retain_graph=True)[0][0] for g in first[0]])


def test_only_episodes_have_proximal_steps() -> None:
    for algorithm in (MAML(inner_lr=0.1, proximal=Proximal()), Recurrent(proximal=Proximal())):
        problem = Sinusoid().bind(RL2, ("none",), "batched")
        with pytest.raises(InputError, match=r"leave algorithm\.proximal out"):
            algorithm.init(problem, torch.Generator().manual_seed(0))
    for key, value in (("epochs", 0), ("clip", 0.0), ("lr", -1.0)):
        with pytest.raises(InputError) as error:
            Proximal(**{key: value})  # type: ignore[arg-type]
        assert (error.value.what, error.value.got) == (key, value)
