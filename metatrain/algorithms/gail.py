"""Generative adversarial imitation learning (Ho and Ermon 2016, arXiv 1606.03476)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metatrain.algorithms import inner_loop
from metatrain.algorithms.coordinates import uniform
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import Context, Meta, Params, Problem, Update, count, demonstrated


@dataclass(frozen=True, kw_only=True)
class GAIL:
    """Imitate until a discriminator cannot tell what the policy does from what the expert does.

        omega <- omega + critic_lr * grad (E_pi log D_omega(s, a) + E_E log(1 - D_omega(s, a)))
        phi   <- phi - inner_lr * grad E_pi log pi_phi(a | s) Q(s, a)

    (Equations 17 and 18 of algorithm 1.) They alternate `inner_steps` times, each time on new
    episodes of the policy. Nobody gives rewards: Q sums log D_omega of what follows. Theta, and the
    omega in `Meta.algorithm`, are meta-learned by the loss of cloning further demonstrations. The
    paper's policy takes TRPO's steps and has an entropy bonus; these are policy gradients.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["gail"] = "gail"
    inner_lr: float = bounded(above=0, most=RATE)
    """Inner learning rate of the policy."""
    inner_steps: int = bounded(5, least=1, most=10_000)
    """Inner steps, of the discriminator and the policy each."""
    critic_lr: float = bounded(1.0, above=0, most=RATE)
    """Inner learning rate of the discriminator."""
    units: int = bounded(32, least=1, most=4096)
    """Units of the discriminator's hidden layer."""
    deviation: float = bounded(0.3, above=0, most=100)
    """Standard deviation of actions around the policy's, in episodes that it learns from."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        model = inner_loop.init_whole(problem, generator)
        inputs = demonstrated(problem).pair
        near = partial(uniform, generator=generator)
        critic = {
            "critic.weight": near((self.units, inputs), low=-(inputs**-0.5), high=inputs**-0.5),
            "critic.bias": torch.zeros(self.units),
            "score.weight": near((1, self.units), low=-(self.units**-0.5), high=self.units**-0.5),
            "score.bias": torch.zeros(1),
        }
        return Meta(model, critic, problem.state())

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        return self._alternate(problem, meta, task, context, order=0)

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        adapt = partial(self._alternate, order=2)
        return inner_loop.mean_gradient(adapt, problem, meta, tasks, context)

    def _alternate(
        self, problem: Problem, meta: Meta, task: Any, context: Context, order: inner_loop.Order
    ) -> Iterator[Params]:
        acting, sigma = demonstrated(problem), self.deviation
        phi, omega = inner_loop.start(meta, task), inner_loop.expand(meta.algorithm, count(task))
        descend = partial(inner_loop.descend, order=order, generator=context.generator)
        rates = dict.fromkeys(omega, self.critic_lr), dict.fromkeys(meta.model, self.inner_lr)
        yield phi
        for _ in range(self.inner_steps):
            acted = acting.play(phi, task, context, sigma)
            critic = partial(critic_loss, acted, acting.shown(task))
            _, omega = descend(critic, omega, rates=[rates[0]])
            reward = -F.logsigmoid(logits(omega, acted))
            policy = partial(acting.policy_loss, pairs=acted, rewards=reward, deviation=sigma)
            _, phi = descend(policy, phi, rates=[rates[1]])
            yield phi


def critic_loss(acted: Tensor, expert: Tensor, omega: Params) -> Tensor:
    """[T] minus the objective of equation 17."""
    found = F.logsigmoid(logits(omega, acted)).mean((1, 2))
    return -(found + F.logsigmoid(-logits(omega, expert)).mean(1))


def logits(omega: Params, pairs: Tensor) -> Tensor:
    """[T, ...] of D, which is 1 if it takes pairs [T, ..., D] for the policy's."""
    rows = pairs.flatten(1, -2)
    hidden = torch.baddbmm(omega["critic.bias"][:, None], rows, omega["critic.weight"].mT).tanh()
    score = torch.baddbmm(omega["score.bias"][:, None], hidden, omega["score.weight"].mT)
    return score.view(pairs.shape[:-1])
