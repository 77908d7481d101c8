"""Supervised learning as algorithms see it: a family's losses and a network as functions of the tasks' parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import one_hot

from metatrain.core import Context, InputError, Model, Norm, Params, Path, Targets, Task, take
from metatrain.models.conv import BatchStatistics, fuse

Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction [T, N, *out], target [T, N, ...]) -> [T]
RUNNING = 0  # examples that the statistics are of: none of them
IMPURE = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def call(module: nn.Module, path: Path, params: Params, *inputs: Tensor, **options: Any) -> Any:
    """The module as a function of T tasks' parameters [T, *shape] and inputs [T, ...]: outputs [T, ...].

    A module whose `takes_tasks` is true has a forward pass that does this by itself.
    """

    def one(params: Params, *inputs: Tensor) -> Any:
        return functional_call(module, params, inputs, options, tie_weights=_shares(module))

    if path == "batched" and getattr(module, "takes_tasks", False):
        return one(params, *inputs)
    if path == "batched":
        # Only the forward pass is vmapped. Differentiating inside vmap is silently wrong in second order
        # for batch norm; autograd outside it is exact.
        return vmap(one)(params, *inputs)
    tasks = range(len(inputs[0]))
    if len(tasks) == 1:  # views, in the backward, too
        found = one({name: p.squeeze(0) for name, p in params.items()}, *(x.squeeze(0) for x in inputs))
        return tuple(part[None] for part in found) if isinstance(found, tuple) else found[None]
    rows = {name: p.unbind(0) for name, p in params.items()}  # indexing instead would cost T^2 in the backward
    each = [one({name: row[t] for name, row in rows.items()}, *(x[t] for x in inputs)) for t in tasks]
    return tuple(map(torch.stack, zip(*each, strict=True))) if isinstance(each[0], tuple) else torch.stack(each)


@lru_cache(maxsize=64)
def _shares(module: nn.Module) -> bool:
    """Whether a parameter is there under two names, which functional_call would look up anew on each call."""
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    return len(names) > len(list(module.parameters()))


def part(params: Params, prefix: str) -> Params:
    """The parameters of a submodule, named as it names them."""
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


def fresh(build: Callable[[], nn.Module], generator: torch.Generator) -> Params:
    """The parameters of a network that is built with the generator's seed; global randomness stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())
        return {name: p.detach().clone() for name, p in build().named_parameters()}


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Implements core.Problem for tasks with a support and a query set.

    `norm` says whose statistics normalise a query example where the network has batch statistics: those of the whole
    query set ("transductive"), of the support set ("support"), of the support set and that one example ("support+1";
    Nichol et al. 2018, section 6.1), or moving averages of those of training tasks ("running"; Ioffe and Szegedy 2015).
    These are of the network before adaptation, normalise the support set, too, and are not used in training itself,
    which is transductive: right for prototypes, and known to hurt where the inner loop changes the network. The first
    norm is used in training; metrics under a further one carry its name, as in "accuracy[support+1]".

    A network with a memory reads the support set in an order that is drawn for each task, or as it is where it is
    `ordered`. Classes, of which there are `outputs`, are told to it as one-hot vectors.
    """

    model: Model
    inputs: Sequence[int]
    outputs: int
    loss: Loss
    metrics: dict[str, Loss]
    norm: Sequence[Norm]
    path: Path
    targets: Targets = "numbers"
    to_float: Callable[[Tensor], Tensor] = lambda x: x
    ordered: bool = False
    baseline_metrics: dict[str, Callable[[Task], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module = self._build()
        if any(isinstance(m, IMPURE) for m in module.modules()):
            raise InputError(
                "torch's batch normalisation and dropout change their state or draw at random in the forward pass: "
                "use metatrain.models.conv.BatchStatistics, or another layer"
            )
        if self.path == "fused":
            fuse(module)
        layers = {name: m for name, m in module.named_modules() if isinstance(m, BatchStatistics)}
        if layers and "none" in self.norm:
            raise InputError(
                "norm is 'none' but the model normalises with batch statistics: "
                "give norm as transductive, support, support+1 or running, or the model as norm: none"
            )
        if "running" in self.norm[1:] or (self.norm[0] == "running" and len(self.norm) > 1):
            raise InputError("norm 'running' adapts differently and cannot be listed with others: evaluate each alone")
        object.__setattr__(self, "module", module.requires_grad_(False))
        object.__setattr__(self, "normalisations", layers)
        object.__setattr__(self, "norm", tuple(self.norm) if layers else ("none",))

    module: nn.Module = field(init=False)
    normalisations: dict[str, BatchStatistics] = field(init=False)

    def init(self, generator: torch.Generator) -> Params:
        return fresh(self._build, generator)

    def state(self) -> Params:
        """Mean 0 and variance 1 for each channel of each normalisation."""
        if self.norm[0] != "running":
            return {}
        buffers = self.module.named_buffers()
        return {name: b.clone() for name, b in buffers if name.rpartition(".")[0] in self.normalisations}

    def statistics(self, params: Params, tasks: Task) -> Params:
        """Means and variances of what each normalisation gets, over a task's examples; their mean over the tasks."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.state()}

        def keep(name: str, x: Tensor) -> None:
            variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            found[f"{name}.mean"].append(mean)
            found[f"{name}.variance"].append(variance)

        with ExitStack() as hooks:
            for name, layer in self.normalisations.items():
                hook = layer.register_forward_pre_hook(lambda _, inputs, name=name: keep(name, inputs[0]))
                hooks.callback(hook.remove)
            for t in range(len(tasks.support_x)):
                task = take(tasks, t)
                x = self.to_float(torch.cat([task.support_x, task.query_x], 1))[0]
                # "of all of x" is the same, and calls the layers that fused kernels go past
                functional_call(self.module.get_submodule("body"), part(params, "body."), (x, len(x)))
        return {name: torch.stack(values).mean(0) for name, values in found.items()}

    def support_loss(self, params: Params, task: Task, context: Context, batch: Tensor | None = None) -> Tensor:
        x, y = task.support_x, task.support_y
        if batch is not None:
            rows = torch.arange(len(batch), device=batch.device)[:, None]
            x, y = x[rows, batch], y[rows, batch]
        return self.loss(self._forward(params, self.to_float(x), self._support_statistics(context)), y)

    def support_size(self, task: Task) -> int:
        return int(task.support_y.shape[1])

    def query(self, params: Params, task: Task, context: Context) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, norm in enumerate(self.norm):
            training = norm == "running" and context.ticket.work == "update"
            prediction = self._predict(params, task, "transductive" if training else norm)
            suffix = f"[{norm}]" if i else ""
            loss = self.loss(prediction, task.query_y)
            found[f"loss{suffix}"] = loss
            for name, metric in self.metrics.items():
                same = metric is self.loss
                found[f"{name}{suffix}"] = loss.detach() if same else metric(prediction.detach(), task.query_y)
        return found

    def embed(self, params: Params, task: Task, context: Context) -> tuple[Tensor, Tensor]:
        options = self._options(params, self._support_statistics(context))
        x = self.to_float(task.support_x)
        features: Tensor = call(self.module.get_submodule("body"), self.path, part(params, "body."), x, **options)
        y = task.support_y
        return features, one_hot(y, self.outputs).to(features.dtype) if self.targets == "classes" else y

    def read(self, params: Params, task: Task, context: Context) -> Iterator[Params]:
        yield params
        features, targets = self.embed(params, task, context)
        if not self.ordered:
            order = torch.rand(targets.shape[:2], generator=context.generator).argsort(1).to(targets.device)[..., None]
            features, targets = features.take_along_dim(order, 1), targets.take_along_dim(order, 1)
        head = part(params, "head.")
        module, memory = self.module.get_submodule("head"), (params["head.hidden"], params["head.previous"])
        for x, y in zip(features.split(1, dim=1), targets.split(1, dim=1), strict=True):
            _, hidden = call(module, self.path, head, x, *(m[:, None] for m in memory))
            memory = hidden[:, 0], y[:, 0]
            yield params | {"head.hidden": memory[0], "head.previous": memory[1]}

    def predict(self, params: Params, task: Task) -> Tensor:
        """[T, Q, *out] predictions for the query examples."""
        return self._predict(params, task, self.norm[0])

    def baselines(self, task: Task) -> dict[str, Tensor]:
        return {name: baseline(task) for name, baseline in self.baseline_metrics.items()}

    def _build(self) -> nn.Module:
        return self.model.module(self.inputs, self.outputs, self.outputs)

    def _support_statistics(self, context: Context) -> int | None:
        return RUNNING if self.norm[0] == "running" and context.ticket.work == "score" else None

    def _predict(self, params: Params, task: Task, norm: Norm) -> Tensor:
        query = self.to_float(task.query_x)
        if norm in ("transductive", "none"):
            return self._forward(params, query)
        if norm == "running":
            return self._forward(params, query, RUNNING)
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
        predicted: Tensor = call(self.module, self.path, params, x, **self._options(params, statistics_from))
        return predicted

    def _options(self, params: Params, statistics_from: int | None) -> dict[str, int]:
        if statistics_from == RUNNING and not self.state().keys() <= params.keys():
            raise InputError(
                "norm is 'running', but no moving averages were learned: train with norm: running, or give another norm"
            )
        return {} if statistics_from is None else {"statistics_from": statistics_from}
