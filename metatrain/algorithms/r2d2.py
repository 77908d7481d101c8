"""R2D2: recurrent replay distributed DQN (Kapturowski et al. 2019, OpenReview r1lyTjAqYX)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from metatrain.algorithms import inner_loop, q_learning
from metatrain.algorithms.replay import Replay, priorities
from metatrain.algorithms.sequences import Sequences, Window, cut, units
from metatrain.bounds import EXAMPLES, STEPS, bounded, check_bounds
from metatrain.core import KEPT, TRAINING_ONLY, Context, Meta, Params, Problem, Update, acting
from metatrain.models.heads import EPSILON

TARGET = KEPT + "target."  # begins the names of Q' in Meta.state


@dataclass(frozen=True, kw_only=True)
class R2D2:
    """Q-learning of a policy with a memory, from sequences that are replayed by priority.

        y_t = h(sum_{k<n} g^k r_{t+k} + g^n h^-1(Q'(o_{t+n}, argmax_a Q(o_{t+n}, a))))
        d_t = Q(o_t, a_t) - y_t,   priority = 0.9 max_t |d_t| + 0.1 mean_t |d_t|     (section 2.3)

    Q' is an older Q. A sequence begins with the memory that its policy had there, and the memory
    reads some steps before those that are learned. A ticket plays episodes, each with a share of
    random actions, then learns from a batch of its replay, a part of Meta.state. Only the memory
    adapts, as in RL2. Scores are of greedy actions.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: Literal["r2d2"] = "r2d2"
    length: int = bounded(40, least=1, most=EXAMPLES, metadata=TRAINING_ONLY)
    """Steps of a sequence that are learned."""
    burn_in: int = bounded(40, least=0, most=EXAMPLES, metadata=TRAINING_ONLY)
    """Steps before them that only the memory reads."""
    starts: Literal["stored", "zero"] = field(default="stored", metadata=TRAINING_ONLY)
    """The memory at a sequence's start: as `stored`, or `zero`, as at an episode's start."""
    ahead: int = bounded(5, least=1, most=EXAMPLES, metadata=TRAINING_ONLY)
    """Rewards that a target has before it trusts Q': n."""
    batch: int = bounded(64, least=1, most=EXAMPLES, metadata=TRAINING_ONLY)
    """Sequences that a ticket learns from."""
    tickets: int = bounded(1, least=1, most=EXAMPLES, metadata=TRAINING_ONLY)
    """Tickets of an outer step, each with a replay of its own."""
    capacity: int = bounded(1000, least=1, most=10**6, metadata=TRAINING_ONLY)
    """Sequences that each of these replays holds."""
    target_steps: int = bounded(100, least=1, most=STEPS, metadata=TRAINING_ONLY)
    """Outer steps after which Q' becomes Q."""
    epsilon: float = bounded(0.4, least=0, most=1, metadata=TRAINING_ONLY)
    """Share of random actions in a task's first episode; it falls to its 8th power in the last."""
    anneal_steps: int = bounded(0, least=0, most=STEPS, metadata=TRAINING_ONLY)
    """Outer steps over which all shares fall from 1 to theirs."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, problem: Problem, generator: torch.Generator) -> Meta:
        acts, model = acting(problem), inner_loop.init_whole(problem, generator)
        env = acts.environment
        window, size = Window(self.burn_in, self.length, self.ahead), units(acts, model)
        sequence = Sequences.empty(sum(window), env.observations, env.actions, size)
        target = {TARGET + name: p.clone() for name, p in model.items()}
        return Meta(model, {}, Replay.empty(sequence, self.capacity, self.tickets) | target)

    def adapt(self, problem: Problem, meta: Meta, task: Any, context: Context) -> Iterator[Params]:
        greedy = {EPSILON: torch.zeros(len(task[0]), 1, device=task[0].device)}
        yield inner_loop.start(meta, task) | greedy

    def update(self, problem: Problem, meta: Meta, tasks: Any, context: Context) -> Update:
        acts, (_, _, step, place, _) = acting(problem), context.ticket
        window = Window(self.burn_in, self.length, self.ahead)
        model = {name: p.detach().requires_grad_() for name, p in meta.model.items()}
        older = {name: meta.state[TARGET + name] for name in model}
        q, target = (inner_loop.expand(own | meta.frozen, 1) for own in (model, older))
        with torch.no_grad():
            least = 1 - step / self.anneal_steps if step < self.anneal_steps else 0.0
            shares = q_learning.shares(self.epsilon, least, acts.environment.episodes)
            phi = inner_loop.start(meta, tasks)
            phi[EPSILON] = shares.to(tasks[0].device).expand(len(tasks[0]), -1)
            rollout = acts.rollout(phi, tasks, context.generator)
            memory = q_learning.memories(acts, q, rollout)
            start = memory if self.starts == "stored" else memory[:, :, :1].expand_as(memory)
            new = cut(rollout, start, window)
            errors = q_learning.errors(acts, q, target, new, window)
            held = Replay.of(meta.state, place).add(new.rows(), priorities(errors, new, window))
            places, weights = held.draw(self.batch, context.generator)
        drawn = new.like(held.rows[places])
        errors = q_learning.errors(acts, q, target, drawn, window)
        loss = (weights * errors.square().mean(1)).mean() / 2
        found = torch.autograd.grad(loss, [*model.values()], materialize_grads=True)
        now = meta.model if (step + 1) % self.target_steps == 0 else older
        state = {TARGET + name: p.clone() for name, p in now.items()}
        state |= held.marked(places, priorities(errors, drawn, window)).written(meta.state, place)
        metrics = {"return_after": rollout.rewards.sum(2).mean(), "loss_after": loss.detach()}
        return Update(Meta(dict(zip(model, found, strict=True)), {}, state), len(tasks[0]), metrics)
