"""Policies: networks that act in the environments of many tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import copy
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

from metatrain.core import ComputePath, InputError, Model, Norm, Params
from metatrain.measures import Measure
from metatrain.models.heads import EPSILON, HIDDEN, PREVIOUS
from metatrain.problems.environment import Environment, Rollout, check_environment
from metatrain.problems.functional import call, part, trying
from metatrain.problems.network import Spec, network

Distribution = Categorical | Normal  # of actions, at each step of episodes

RAREST = 1e-12  # the least epsilon, so that an action's log-probability is finite


class Policy:
    """A network bound to environments: what all problems share in which it acts.

    The policy is the softmax of the network's outputs, or a normal distribution around them with a
    learned "log_std". If the parameters have an "epsilon", the outputs are values of actions, and
    the policy is greedy but for a share epsilon of random actions. A network with a memory keeps it
    over an episode, and gets each action and its reward.
    """

    def __init__(
        self,
        *,
        environment: Environment,
        model: Model,
        path: ComputePath,
        values: bool = False,
        measures: Mapping[str, Measure] | None = None,
    ) -> None:
        """Bind an environment to a network.

        values: whether the network's last output is no action but the value of what it sees.
        measures: by name, what an evaluation measures on all tasks together, of predictions.
        """
        self.environment, self.path, self.measures = environment, path, measures or {}
        self.norm: tuple[Norm, ...] = ("none",)
        self.values = values
        actions, outputs = environment.actions, environment.actions + values
        self.network = network(Spec(model, (environment.observations,), outputs, actions + 1))

    @property
    def module(self) -> nn.Module:
        """The calling thread's network."""
        return self.network.module

    def init(self, generator: torch.Generator) -> Params:
        return self.network.fresh(generator) | self._deviation()

    def frozen(self, generator: torch.Generator) -> Params:
        return self.network.fresh(generator, trained=False)

    def check(self, task: Any) -> None:
        check_environment(self.environment, task)

    def try_out(self, task: Any) -> Collection[str]:
        env, tasks = self.environment, len(task[0])
        params = self.network.first() | self._deviation()
        who = f"the network {type(self.module).__name__}"
        _, observation = env.start(task, torch.Generator().manual_seed(0))
        expanded = {name: p.expand(tasks, *p.shape) for name, p in params.items()}
        found = []
        tried = (self, self, self._again()) if self.path == "reference" else (self, self)
        for problem in tried:
            with trying(who, f"on {env.observations} numbers", "its `forward`"), torch.no_grad():
                outputs, _ = problem.act(expanded, observation, problem.memory(expanded))
            found.append(outputs)
        if not all(torch.equal(found[0], other) for other in found):
            raise InputError(
                f"{who} gives other outputs for the same observations",
                remedy="draw nothing at random in `forward`, change nothing there, and build it "
                "with the same numbers each time",
            )
        expected = (tasks, env.episodes, env.actions + self.values)
        if outputs.shape != expected:
            raise InputError(
                f"the network gives outputs of shape {list(outputs.shape)}, expected "
                f"{list(expected)}"
            )
        return ("return",)

    def state(self) -> Params:
        return {}

    def statistics(self, params: Params, tasks: Any) -> Params:
        return {}

    def baselines(self, task: Any) -> dict[str, Tensor]:
        return self.environment.baselines(task)

    @torch.no_grad()
    def rollout(self, params: Params, task: Any, generator: torch.Generator) -> Rollout:
        """Act in new episodes."""
        env, device = self.environment, task[0].device
        state, observation = env.start(task, generator)
        alive = torch.ones(observation.shape[:2], device=device)
        memory = self.memory(params)
        steps = []
        for _ in range(env.horizon):
            outputs, hidden = self.act(params, observation, memory)
            outputs = outputs[..., : env.actions] if self.values else outputs
            noise = torch.rand if env.discrete else torch.randn
            size = *outputs.shape[:2], 1 if env.discrete else env.actions
            drawn = noise(size, generator=generator).to(device)
            if env.discrete:
                chances = self._chances(params, outputs)
                chosen = (chances.cumsum(-1) < drawn).sum(-1).clamp(max=env.actions - 1)
                action = torch.nn.functional.one_hot(chosen, env.actions).float()
            else:
                action = outputs + params["log_std"].exp()[:, None] * drawn
            state, following, reward, ended = env.step(task, state, action, generator)
            steps.append((observation, action, reward * alive, alive))
            if memory:
                memory = *hidden, torch.cat([action, reward[..., None]], -1)
            observation, alive = following, alive * ~ended
        return Rollout(*(torch.stack(parts, 2) for parts in zip(*steps, strict=True)))

    def outputs(self, params: Params, rollout: Rollout) -> Tensor:
        """[T, N, H, outputs] of the network, as it sees the rollout."""
        memory = self.memory(params)
        if not memory:
            outputs, _ = self.act(params, rollout.observations.flatten(1, 2), ())
            return outputs.unflatten(1, rollout.rewards.shape[1:])
        feedback = torch.cat([rollout.actions, rollout.rewards[..., None]], -1)
        each = []
        for t in range(self.environment.horizon):
            output, hidden = self.act(params, rollout.observations[:, :, t], memory)
            memory = *hidden, feedback[:, :, t]
            each.append(output)
        return torch.stack(each, 2)

    def log_probs(self, params: Params, rollout: Rollout) -> Tensor:
        """[T, N, H] of the rollout's actions, by the policy of `params`."""
        return log_probs(self.distribution(params, self.outputs(params, rollout)), rollout.actions)

    def distribution(self, params: Params, outputs: Tensor) -> Distribution:
        """The policy of actions, by the network's outputs [T, N, H, outputs]."""
        outputs = outputs[..., : self.environment.actions]
        if EPSILON in params:
            return Categorical(logits=self._chances(params, outputs).log(), validate_args=False)
        if self.environment.discrete:
            return Categorical(logits=outputs, validate_args=False)
        return Normal(outputs, params["log_std"].exp()[:, None, None], validate_args=False)

    def act(
        self, params: Params, observation: Tensor, memory: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the network's outputs [T, N, actions], and of a memory the next state."""
        network = {name: p for name, p in params.items() if name not in ("log_std", EPSILON)}
        if not memory:
            return call(self.module, self.path, network, observation), ()
        body, head = (self.module.get_submodule(name) for name in ("body", "head"))
        path = "reference" if len(observation) == 1 else self.path  # vmap costs more than one task
        features = call(body, path, part(network, "body."), observation)
        outputs, hidden = call(head, path, part(network, "head."), features, *memory)
        return outputs, (hidden,)

    def _chances(self, params: Params, outputs: Tensor) -> Tensor:
        """The probabilities of actions, by the outputs [T, N, ..., actions]."""
        if EPSILON not in params:
            return outputs.softmax(-1)
        greedy = torch.nn.functional.one_hot(outputs.argmax(-1), outputs.shape[-1])
        epsilon = params[EPSILON]
        epsilon = epsilon.clamp(min=RAREST).view(*epsilon.shape, *[1] * (outputs.dim() - 2))
        return (1 - epsilon) * greedy + epsilon / outputs.shape[-1]

    def _deviation(self) -> Params:
        """The logarithm of the actions' standard deviation, if they are numbers."""
        env = self.environment
        return {} if env.discrete else {"log_std": torch.zeros(env.actions)}

    def _again(self) -> Self:
        """The same problem with a network that is built a second time."""
        other = copy(self)
        other.network = self.network.again()
        return other

    def memory(self, params: Params) -> tuple[Tensor, ...]:
        """Return the initial hidden state and feedback of each episode, or () without a memory."""
        names = [name for name in (HIDDEN, PREVIOUS) if name in params]
        return tuple(
            params[name][:, None].expand(-1, self.environment.episodes, -1) for name in names
        )


def log_probs(policy: Distribution, actions: Tensor) -> Tensor:
    """[T, N, H] of the actions [T, N, H, actions]."""
    if isinstance(policy, Categorical):
        return policy.log_prob(actions.argmax(-1))
    return policy.log_prob(actions).sum(-1)


def entropies(policy: Distribution) -> Tensor:
    """[T, N, H], of all numbers of an action together."""
    each: Tensor = policy.entropy()  # type: ignore[no-untyped-call]
    return each if isinstance(policy, Categorical) else each.sum(-1)
