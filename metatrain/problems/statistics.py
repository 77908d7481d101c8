"""What the normalisations of a supervised problem's network get of tasks."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from metatrain.core import Params, Task, take
from metatrain.models.normalisation import moments, normalised_by
from metatrain.problems.functional import own_values, part

if TYPE_CHECKING:
    from metatrain.problems.supervised import Supervised


def statistics(problem: Supervised, params: Params, tasks: Task) -> Params:
    """Mean and variance of what each normalisation gets of a task; their mean over tasks."""
    found: dict[str, list[Tensor]] = {name: [] for name in problem.state()}

    def keep(name: str, x: Tensor) -> None:
        variance, mean = moments(x)
        found[f"{name}.mean"].append(mean)
        found[f"{name}.variance"].append(variance)

    # Fused kernels skip the layers, so the hooks below would not run. A number of examples,
    # here all of them, turns the kernels off.
    layers, examples = problem.normalisations, tasks.support_x.shape[1] + tasks.query_x.shape[1]
    # Prototypes have no head of their own to call.
    whole = any(not name.startswith("body.") for name in layers)
    module = problem.module if whole else problem.module.get_submodule("body")
    own = params if whole else part(params, "body.")
    rest = own_values(module, tasks.support_x.device)
    with ExitStack() as hooks:
        hooks.enter_context(normalised_by([*layers.values()], examples))
        for name, layer in layers.items():
            hook = layer.register_forward_pre_hook(
                lambda _, inputs, name=name: keep(name, inputs[0])
            )
            hooks.callback(hook.remove)
        for t in range(len(tasks.support_x)):
            task = take(tasks, t)
            phi = rest | {name: p[t] for name, p in own.items()}
            x = problem.to_float(torch.cat([task.support_x, task.query_x], 1))[0]
            functional_call(module, phi, x)
    return {name: torch.stack(values).mean(0) for name, values in found.items()}
