"""The central learner, the only place where meta-parameters change: optimizer and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metatrain import privacy
from metatrain.aggregation import Mean, Private, norm_of
from metatrain.core import (
    KEPT,
    InputError,
    Meta,
    Params,
    Sentence,
    Ticket,
    Update,
    arriving,
    generator_for,
)
from metatrain.outer import Outer
from metatrain.outer_optimizer import OuterOptimizer

DESCENDED = ("model.", "algorithm.")  # the meta-parameters that an optimizer moves
AVERAGE = "average."  # begins the names of their moving average in a checkpoint


class Diverged(Sentence, RuntimeError):
    """The update of a step is not finite."""


class Applied(NamedTuple):
    """What an outer step says of itself."""

    metrics: dict[str, float]  # the updates', their means over the tasks
    gradient_norm: float  # before it is bounded
    lr: float
    learned: dict[str, float]  # the mean of each of the algorithm's own parameters, after the step
    left_out: tuple[int, ...] = ()  # which updates were not finite


class Learner:
    """Takes outer steps along the aggregated updates, without knowing their algorithm."""

    def __init__(self, meta: Meta, outer: Outer, seed: int = 0) -> None:
        """`seed` decides the noise of an aggregation that adds some."""
        self.version = 0  # outer steps applied
        self._outer, self._seed = outer, seed
        own = {name: p.detach().clone() for name, p in meta.flat().items()}
        self._state = {name: p for name, p in own.items() if name.startswith("state.")}
        self._frozen = {name: p for name, p in own.items() if name.startswith("frozen.")}
        if isinstance(outer.aggregate, Private):
            privacy.check(outer.aggregate)
        if self._state and isinstance(outer.aggregate, Private):
            raise InputError(
                "aggregate private bounds no running statistics or moments, which tasks change",
                remedy="set norm to another one than running, and let the algorithm carry none",
            )
        if outer.max_staleness and any(name.startswith(f"state.{KEPT}") for name in self._state):
            raise InputError(
                "max_staleness",
                got=outer.max_staleness,
                expected="0, since the updates of this algorithm add to what earlier ones wrote",
            )
        self._optimizer = OuterOptimizer(
            {name: p for name, p in own.items() if name.startswith(DESCENDED)},
            outer.optimizer,
            outer.lr,
            outer.options,
            outer.groups,
        )
        self._params = self._optimizer.params
        self.averages = outer.average > 0
        self._average = {n: p.clone() for n, p in self._params.items() if self.averages}
        # Several updates would have to be looked at one by one if their mean is not finite.
        self.defers = self._optimizer.skips and outer.tickets() == 1

    def apply(self, updates: Sequence[Update]) -> Applied:
        """Take one outer step and wait for its numbers: see `take`."""
        return self.take(updates)()

    def take(self, updates: Sequence[Update]) -> Callable[[], Applied]:
        """Take one outer step along the updates, in the order given and weighted by their tasks.

        Updates that are not finite are left out; if there are no others, the step changes nothing.

        Returns what waits for the step's numbers. Of a learner that `defers`, a GPU may still
        compute all of it.

        Raises Diverged, with nothing changed, if finite updates together are not finite, or if the
        first step has none. A learner that `defers` raises it for the first step only: it leaves
        out an update whose norm is not finite.
        """
        total = sum(update.tasks for update in updates)
        weights = [update.tasks / total for update in updates]
        flat = [update.direction.flat() for update in updates]
        generator = generator_for(self._seed, Ticket("update", "train", self.version, 0), "noise")
        directions = [{name: each[name] for name in self._params} for each in flat]
        direction = self._outer.aggregate(directions, weights, generator)
        norm, skip = norm_of(direction), None
        if self.defers and self.version > 0:
            skip = 1.0 - norm.isfinite().float()
        elif not math.isfinite(norm):
            applied = self._without_the_unsound(updates)
            return lambda: applied
        self._descend(direction, skip)
        state = self._tracked(flat, weights, generator)
        if skip is not None:
            state = {n: torch.where(skip > 0, self._state[n], p) for n, p in state.items()}
        self._state = state
        self.version += 1
        return self._numbers(updates, norm)

    def _tracked(
        self, flat: Sequence[Params], weights: Sequence[float], generator: torch.Generator
    ) -> Params:
        """What updates track: means, and of what they write the entries that the last one wrote."""
        kept = [name for name in self._state if name.startswith(f"state.{KEPT}")]
        states = [{n: each[n] for n in self._state if n not in kept} for each in flat]
        written = {name: self._state[name] for name in kept}
        for each in flat:
            for name, p in written.items():
                new = each[name]
                written[name] = torch.where(new != self._state[name], new, p)
        return Mean()(states, weights, generator) | written

    def _descend(self, direction: Params, skip: Tensor | None) -> None:
        grads, rate = self._optimizer.grads(), self._outer.rate(self.version)
        torch._foreach_copy_([*grads.values()], [direction[name] for name in grads])
        if self._outer.penalty is not None:
            for name, grad in grads.items():
                if name.startswith("model."):
                    grad.add_(self._outer.penalty.gradient(self._params[name]))
        if self._outer.clip_value is not None:
            torch.nn.utils.clip_grad_value_(self._optimizer.wholes, self._outer.clip_value)
        if self._outer.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._optimizer.wholes, self._outer.clip_norm)
        self._optimizer.step(rate, skip)
        if self.averages:  # sooner at first, when the past is far away
            decay = min(self._outer.average, (1 + self.version) / (10 + self.version))
            now = [self._params[name] for name in self._average]
            if skip is not None:
                kept = self._average.values()
                now = [torch.where(skip > 0, a, p) for a, p in zip(kept, now, strict=True)]
            torch._foreach_lerp_([*self._average.values()], now, 1 - decay)

    def _numbers(
        self, updates: Sequence[Update], norm: float | Tensor, left_out: tuple[int, ...] = ()
    ) -> Callable[[], Applied]:
        """What waits for the numbers of the step that was made last."""
        lr = self._outer.lr * self._outer.rate(self.version - 1)
        aggregate, version = self._outer.aggregate, self.version
        # No more of the updates: their directions are as large as the network.
        tasks, names = [update.tasks for update in updates], [*updates[0].metrics]
        named: dict[Any, float | Tensor] = {("norm", ""): norm}
        for i, update in enumerate(updates):
            named |= {(i, name): value for name, value in update.metrics.items()}
        for name, p in self._params.items():
            if name.startswith("algorithm."):
                named["learned", name.removeprefix("algorithm.")] = p.detach().mean()
        read = arriving(named)

        def applied() -> Applied:
            found = read()
            norm, out = found["norm", ""], left_out
            if not math.isfinite(norm):
                norm, out = math.nan, left_out or (0,)
            metrics = {
                name: sum(found[i, name] * n for i, n in enumerate(tasks)) / sum(tasks)
                for name in names
            }
            if isinstance(aggregate, Private) and aggregate.delta is not None:
                metrics["epsilon"] = privacy.epsilon(aggregate, self._outer.tasks_per_step, version)
            learned = {name: value for (kind, name), value in found.items() if kind == "learned"}
            return Applied(metrics, norm, lr, learned, out)

        return applied

    def _without_the_unsound(self, updates: Sequence[Update]) -> Applied:
        """Take the step along the updates that are finite, which not all of them are."""
        sound = [
            all(bool(p.isfinite().all()) for p in each.direction.flat().values())
            for each in updates
        ]
        left_out = tuple(i for i, is_sound in enumerate(sound) if not is_sound)
        if not left_out or (self.version == 0 and not any(sound)):
            raise Diverged(
                f"the update of outer step {self.version} is not finite: lower algorithm.inner_lr "
                "or outer.lr"
            )
        if any(sound):
            kept = [each for each, is_sound in zip(updates, sound, strict=True) if is_sound]
            return self.apply(kept)._replace(left_out=left_out)
        self.version += 1
        return self._numbers(updates, math.nan, left_out)()

    def meta(self) -> Meta:
        """The meta-parameters now.

        The tensors are the learner's own: read them before the next step.
        """
        return Meta.unflat(self._all())

    def scored(self) -> Meta:
        """The meta-parameters that scores and bundles are of: their moving average, if it is kept.

        What is tracked is not averaged.
        """
        return Meta.unflat(self._all() | self._average)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and scalars, flat, from which an equal learner continues exactly."""
        tensors, scalars = self._all(), {"version": self.version}
        tensors |= {AVERAGE + name: p for name, p in self._average.items()}
        for name, value in self._optimizer.state().items():
            (tensors if isinstance(value, Tensor) else scalars)[name] = value
        return tensors, scalars

    def load_state_dict(self, tensors: dict[str, Tensor], scalars: dict[str, Any]) -> None:
        """Continue from a state_dict of a learner with the same parameters and optimizer.

        Raises InputError for others.
        """
        own = self._all()
        held = {name: p.shape for name, p in own.items()}
        besides = ("optimizer.", AVERAGE)
        saved = {name: p.shape for name, p in tensors.items() if not name.startswith(besides)}
        if held != saved:
            other = next(
                name
                for name in sorted(held.keys() | saved.keys())
                if held.get(name) != saved.get(name)
            )
            raise InputError(
                f"the checkpoint has other parameters than this run ({other})",
                remedy="resume with the model and algorithm that it was trained with",
            )
        self._optimizer.load(tensors | scalars)
        with torch.no_grad():
            for name, p in own.items():
                p.copy_(tensors[name])
            for name, p in self._average.items():  # a resumed run may begin to average
                p.copy_(tensors.get(AVERAGE + name, self._params[name]))
        self.version = int(scalars["version"])

    def _all(self) -> Params:
        return self._params | self._state | self._frozen
