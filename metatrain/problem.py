"""Supervised learning as algorithms see it: a family's losses and a network as functions of the tasks' parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metatrain.core import Context, InputError, Model, Norm, Params, Path, Task
from metatrain.models.conv import BatchStatistics

Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction [T, N, *out], target [T, N, ...]) -> [T]


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Implements core.Problem for tasks with a support and a query set.

    `norm` says whose statistics normalise a query example where the network has batch statistics: those of the whole
    query set ("transductive"), of the support set ("support"), or of the support set and that one example
    ("support+1"; Nichol et al. 2018, section 6.1). The first one is used in training; metrics under a further one carry
    its name, as in "accuracy[support+1]".
    """

    model: Model
    inputs: Sequence[int]
    outputs: int
    loss: Loss
    metrics: dict[str, Loss]
    norm: Sequence[Norm]
    path: Path
    to_float: Callable[[Tensor], Tensor] = lambda x: x
    baseline_metrics: dict[str, Callable[[Task], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module = self.model.module(self.inputs, self.outputs)
        has_statistics = any(isinstance(m, BatchStatistics) for m in module.modules())
        if has_statistics and "none" in self.norm:
            raise InputError(
                "norm is 'none' but the model normalises with batch statistics: "
                "give norm as transductive, support or support+1, or the model as norm: none"
            )
        object.__setattr__(self, "module", module.requires_grad_(False))
        object.__setattr__(self, "norm", tuple(self.norm) if has_statistics else ("none",))

    module: nn.Module = field(init=False)

    def init(self, generator: torch.Generator) -> Params:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            fresh = self.model.module(self.inputs, self.outputs)
        return {name: p.detach().clone() for name, p in fresh.named_parameters()}

    def support_loss(self, params: Params, task: Task, context: Context, batch: Tensor | None = None) -> Tensor:
        x, y = task.support_x, task.support_y
        if batch is not None:
            rows = torch.arange(len(batch), device=batch.device)[:, None]
            x, y = x[rows, batch], y[rows, batch]
        return self.loss(self._forward(params, self.to_float(x)), y)

    def support_size(self, task: Task) -> int:
        return int(task.support_y.shape[1])

    def query(self, params: Params, task: Task, context: Context) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, norm in enumerate(self.norm):
            prediction = self._predict(params, task, norm)
            suffix = f"[{norm}]" if i else ""
            found[f"loss{suffix}"] = self.loss(prediction, task.query_y)
            for name, metric in self.metrics.items():
                found[f"{name}{suffix}"] = metric(prediction.detach(), task.query_y)
        return found

    def predict(self, params: Params, task: Task) -> Tensor:
        return self._predict(params, task, self.norm[0])

    def baselines(self, task: Task) -> dict[str, Tensor]:
        return {name: baseline(task) for name, baseline in self.baseline_metrics.items()}

    def _predict(self, params: Params, task: Task, norm: Norm) -> Tensor:
        query = self.to_float(task.query_x)
        if norm in ("transductive", "none"):
            return self._forward(params, query)
        support = self.to_float(task.support_x)
        shots = support.shape[1]
        if norm == "support":
            return self._forward(params, torch.cat([support, query], dim=1), shots)[:, shots:]
        # support+1: each query example makes a batch of its own with the support set
        tasks, queries = query.shape[:2]
        each = {name: p.repeat_interleave(queries, dim=0) for name, p in params.items()}
        x = torch.cat([support.repeat_interleave(queries, dim=0), query.flatten(0, 1)[:, None]], dim=1)
        return self._forward(each, x)[:, -1].unflatten(0, (tasks, queries))

    def _forward(self, params: Params, x: Tensor, statistics_from: int | None = None) -> Tensor:
        """params [T, *shape], x [T, N, *in] -> [T, N, *out]; statistics over the first `statistics_from` examples."""
        extra = () if statistics_from is None else (statistics_from,)

        def one(params: Params, x: Tensor) -> Tensor:
            return functional_call(self.module, params, (x, *extra))

        if self.path == "batched":
            # Only the forward pass is vmapped. Differentiating inside vmap is silently wrong in second order
            # for batch norm; autograd outside it is exact.
            return vmap(one)(params, x)
        rows = zip(*(p.unbind(0) for p in params.values()), strict=True)
        return torch.stack([one(dict(zip(params, row, strict=True)), x[t]) for t, row in enumerate(rows)])
