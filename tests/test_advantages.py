"""Generalised advantages, a value head and an entropy bonus, each against its closed form."""

from __future__ import annotations

import pytest
import torch
from cases import context

from metatrain.core import InputError, Params
from metatrain.models import MLP
from metatrain.problems.advantages import Estimator, advantages, generalised
from metatrain.problems.environment import Rollout
from metatrain.problems.episodes import Episodes
from metatrain.tasks import Bandit, Navigation

DISCOUNT = 0.9


def rollout() -> tuple[Rollout, torch.Tensor]:
    """Two tasks of three episodes of four steps, of which one ends after two; and values."""
    g = torch.Generator().manual_seed(0)
    alive = torch.ones(2, 3, 4, dtype=torch.float64)
    alive[0, 1, 2:] = 0
    rewards, values = torch.randn(2, 2, 3, 4, generator=g, dtype=torch.float64) * alive
    return Rollout(torch.zeros(2, 3, 4, 1), torch.zeros(2, 3, 4, 1), rewards, alive), values


@pytest.mark.parametrize("gae", [0.0, 0.6, 1.0])
def test_generalised_advantages_are_their_recursion_and_its_two_ends(gae: float) -> None:
    """Lambda 0: the error of one step. Lambda 1: the discounted return less the value."""
    played, values = rollout()
    found = generalised(played, values, DISCOUNT, gae)
    following = torch.cat([values[..., 1:], torch.zeros(2, 3, 1, dtype=values.dtype)], -1)
    errors = played.rewards + DISCOUNT * following - values
    expected, after = torch.zeros_like(values), torch.zeros(2, 3, dtype=values.dtype)
    for t in reversed(range(4)):
        after = errors[..., t] + DISCOUNT * gae * after
        expected[..., t] = after
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    if gae == 0:
        torch.testing.assert_close(found, errors, rtol=0, atol=1e-12)
    if gae == 1:
        returns = sum(
            torch.nn.functional.pad(DISCOUNT**k * played.rewards[..., k:], (0, k)) for k in range(4)
        )
        torch.testing.assert_close(found, returns - values, rtol=0, atol=1e-12)
    weights = advantages(played, DISCOUNT, gae, values)
    steps = played.alive.sum((1, 2), keepdim=True)
    centred = expected - (expected * played.alive).sum((1, 2), keepdim=True) / steps
    torch.testing.assert_close(weights, centred * played.alive, rtol=0, atol=1e-12)


def bound(estimator: Estimator) -> tuple[Episodes, Params]:
    family = Bandit(arms=3, pulls=2, episodes=4, discount=0.5, estimator=estimator)
    problem = family.bind(MLP(hidden=()), ("none",), "batched")
    params = problem.init(torch.Generator().manual_seed(0))
    return problem, {n: p[None].expand(2, *p.shape).clone() for n, p in params.items()}


def test_a_value_head_learns_returns_and_does_not_act() -> None:
    problem, params = bound(Estimator(baseline="value", value_weight=0.25))
    assert params["head.bias"].shape == (2, 4)
    params = {name: torch.zeros_like(p).requires_grad_() for name, p in params.items()}
    task = Bandit(arms=3).sample(torch.Generator().manual_seed(1), 2, "train")
    problem.check(task)
    assert problem.try_out(task) == ("return",)
    played = problem.predict(params, task, context())
    problem.judge(played, task)["loss"].sum().backward()
    assert params["head.bias"].grad is not None
    rewards = played.rollout.rewards
    returns = torch.stack([rewards[..., 0] + 0.5 * rewards[..., 1], rewards[..., 1]], -1)
    expected = -0.5 * returns.mean((1, 2))  # d/dv of 0.25 (v - return)^2 at v = 0
    torch.testing.assert_close(params["head.bias"].grad[:, 3], expected)
    support = problem.support_loss(params, task, context())
    (gradient,) = torch.autograd.grad(support.sum(), params["head.bias"])
    assert gradient[:, 3].abs().max() == 0
    assert gradient[:, :3].abs().max() > 0


@pytest.mark.parametrize("discrete", [True, False])
def test_an_entropy_bonus_is_the_gradient_of_the_policys_entropy(discrete: bool) -> None:
    families = [
        (Bandit if discrete else Navigation)(
            episodes=3, estimator=Estimator(entropy=weight), **({} if discrete else {"horizon": 3})
        )
        for weight in (0.0, 0.1)
    ]
    found = []
    for family in families:
        problem = family.bind(MLP(hidden=()), ("none",), "batched")
        init = problem.init(torch.Generator().manual_seed(0))
        params = {n: p[None].clone().requires_grad_() for n, p in init.items()}
        task = family.sample(torch.Generator().manual_seed(1), 1, "train")
        loss = problem.query(params, task, context())["loss"].sum()
        found.append(torch.autograd.grad(loss, list(params.values())))
    bias = params["head.bias"]
    if discrete:
        logits = (params["head.weight"].sum(-1) + bias).log_softmax(-1)
        (of,) = torch.autograd.grad(0.1 * (logits.exp() * logits).sum(), bias)
        at = list(params).index("head.bias")
    else:
        of = torch.full((1, 2), -0.1)  # the entropy of a normal distribution is log_std and more
        at = list(params).index("log_std")
    torch.testing.assert_close(found[1][at] - found[0][at], of, rtol=1e-4, atol=1e-6)


def test_wrong_numbers_of_an_estimator_are_one_sentence() -> None:
    for key, value in (("gae", 1.1), ("value_weight", -1.0), ("entropy", -0.1)):
        with pytest.raises(InputError) as error:
            Estimator(**{key: value})  # type: ignore[arg-type]
        assert (error.value.what, error.value.got) == (key, value)
