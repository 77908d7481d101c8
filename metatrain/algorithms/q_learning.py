"""Values of actions along sequences, and their errors by double Q-learning, for R2D2."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from metatrain.algorithms.sequences import Sequences, Window
from metatrain.core import Acting, Params

EPSILON = 1e-3  # of the rescaling
SPREAD = 7.0  # of the episodes' shares of random actions (Horgan et al. 2018, arXiv 1803.00933)


def rescaled(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + 1e-3 x (Pohlen et al. 2018, arXiv 1805.11593)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + EPSILON * x


def restored(x: Tensor) -> Tensor:
    """The inverse of `rescaled`."""
    root = (1 + 4 * EPSILON * (x.abs() + 1 + EPSILON)).sqrt()
    return x.sign() * (((root - 1) / (2 * EPSILON)).square() - 1)


def shares(epsilon: float, least: float, episodes: int) -> Tensor:
    """[episodes] of random actions: epsilon^(1 + 7 i / (N - 1)), at least `least`."""
    places = torch.linspace(0, 1, episodes) if episodes > 1 else torch.zeros(1)
    return (epsilon ** (1 + SPREAD * places)).clamp(min=least)


@torch.no_grad()
def memories(problem: Acting, params: Params, rollout: Any) -> Tensor:
    """[T, N, H, units]: the memory before each step of episodes; no units without one.

    params: of one task, [1, ...] each.
    """
    observations, actions, rewards, _ = rollout
    tasks, episodes, horizon = rewards.shape
    if not (initial := problem.memory(params)):
        return rollout.rewards[..., None][..., :0]
    memory = tuple(x[:, :1].expand(-1, tasks * episodes, -1) for x in initial)
    seen = observations.flatten(0, 1)[None]
    feedback = torch.cat([actions, rewards[..., None]], -1).flatten(0, 1)[None]
    each = []
    for t in range(horizon):
        each.append(memory[0])
        _, hidden = problem.act(params, seen[:, :, t], memory)
        memory = *hidden, feedback[:, :, t]
    return torch.stack(each, 2)[0].unflatten(0, (tasks, episodes))


def values(problem: Acting, params: Params, seen: Sequences, burn_in: int) -> Tensor:
    """[B, W, A] the network's outputs along sequences, from their memory on.

    params: of one task, [1, ...] each.
    burn_in: steps at the start whose outputs have no graph.
    """
    feedback = torch.cat([seen.actions, seen.rewards[..., None]], -1)
    started = seen.alive.cumsum(1) > 0  # the memory is that of the first step that was taken
    memory: tuple[Tensor, ...] = ()
    if seen.hidden.shape[1]:
        memory = seen.hidden[None], seen.previous[None]
    each = []
    for t in range(seen.alive.shape[1]):
        with torch.no_grad() if t < burn_in else nullcontext():
            outputs, hidden = problem.act(params, seen.observations[None, :, t], memory)
        each.append(outputs[0, :, : seen.actions.shape[-1]])
        if memory:
            after, moved = (*hidden, feedback[None, :, t]), started[None, :, t, None]
            memory = tuple(torch.where(moved, *pair) for pair in zip(after, memory, strict=True))
    return torch.stack(each, 1)


def errors(
    problem: Acting, theta: Params, target: Params, seen: Sequences, window: Window
) -> Tensor:
    """[B, length] Q(o_t, a_t) - y_t of the learned steps; 0 where none was taken.

    y_t = h(sum_{k<n} g^k r_{t+k} + g^n h^-1(Q'(o_{t+n}, argmax_a Q(o_{t+n}, a))))

    theta, target: the parameters of Q and Q', [1, ...] each.
    """
    discount: float = problem.environment.discount
    found = values(problem, theta, seen, window.burn_in)
    with torch.no_grad():
        older = values(problem, target, seen, window.burn_in)
        later = older.gather(-1, found.argmax(-1, keepdim=True))[..., 0]
        worth = restored(later) * seen.alive  # after the end there is nothing
        y = discount**window.ahead * worth[:, window.burn_in + window.ahead :]
        for k in range(window.ahead):
            y = y + discount**k * seen.rewards[:, window.burn_in + k :][:, : window.length]
    taken = (found * seen.actions).sum(-1)[:, window.learned]
    return (taken - rescaled(y)) * seen.alive[:, window.learned]
