"""Several steps from the same episodes (Schulman et al. 2017, arXiv 1707.06347)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from metatrain.algorithms import inner_loop
from metatrain.algorithms.inner_optimizers import adam
from metatrain.bounds import RATE, bounded, check_bounds
from metatrain.core import Context, Meta, Params, Problem, Update, recordable

ADAM = adam()


@dataclass(frozen=True, kw_only=True)
class Proximal:
    """PPO as the outer step: `epochs` gradients of a clipped surrogate, of the same episodes.

        r_t = pi(a_t | s_t) / pi_acted(a_t | s_t)
        L = -mean_t min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t)            (equation 7)

    A worker plays a ticket's episodes once, before and after adaptation. Then it computes L in
    `epochs`, each at parameters one step of Adam further, on a copy of its own. The update is the
    mean of these gradients: the learner's optimizer makes the step, and one epoch without clipping
    is the policy gradient. With `sampling` the inner losses are -mean_t r_t A_t. Their second
    derivative then also has how theta changes which episodes adaptation sees, and with MAML that is
    ProMP without its KL penalty (Rothfuss et al. 2019, arXiv 1810.06784).
    """

    __pydantic_config__ = {"extra": "forbid"}

    epochs: int = bounded(4, least=1, most=1000)
    """Gradients that are computed of the same episodes."""
    clip: float | None = bounded(0.2, above=0, most=RATE)
    """Change of an action's chance above which the outer loss gains nothing; `null`: any."""
    lr: float = bounded(0.0003, above=0, most=RATE)
    """Adam's rate from one epoch to the next."""
    sampling: bool = True
    """Whether MAML's gradient has how the initialisation changes the episodes of adaptation."""

    def __post_init__(self) -> None:
        check_bounds(self)

    def mean_gradient(
        self,
        adapt: Callable[[Problem, Meta, Any, Context], Iterator[Params]],
        problem: Problem,
        meta: Meta,
        tasks: Any,
        context: Context,
        **how: Any,
    ) -> Update:
        """The mean of the epochs' `inner_loop.mean_gradient`; metrics are those of the first."""
        again = recordable(problem).recorded(clip=self.clip, sampling=self.sampling)
        rates = dict.fromkeys(meta.model, self.lr)
        here, state = meta, ADAM.init(meta.model)
        updates = []
        for _ in range(self.epochs):
            updates.append(inner_loop.mean_gradient(adapt, again(), here, tasks, context, **how))
            gradients = updates[-1].direction.model
            model, state = ADAM.update(gradients, state, here.model, rates)
            here = here._replace(model=model)
        found = updates[0]
        mean = {
            name: torch.stack([each.direction.model[name] for each in updates]).mean(0)
            for name in found.direction.model
        }
        return found._replace(direction=found.direction._replace(model=mean))
