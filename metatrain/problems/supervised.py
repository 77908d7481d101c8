"""Supervised learning as algorithms see it: losses and a network as functions of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from metatrain.core import (
    Attack,
    ComputePath,
    Context,
    InputError,
    Model,
    Norm,
    Params,
    Task,
)
from metatrain.measures import Measure
from metatrain.models.heads import HIDDEN, PREVIOUS
from metatrain.models.normalisation import BatchStatistics, Statistics, normalised_by
from metatrain.problems import moved
from metatrain.problems.checks import Loss, check_examples, check_pixels, per_task, shape
from metatrain.problems.first_try import try_out
from metatrain.problems.functional import call, part
from metatrain.problems.network import Spec, network
from metatrain.problems.statistics import statistics

AT_ONCE = 4096  # examples that are predicted together by norm "support+1"; it bounds memory


class Supervised:
    """Implements core.Problem, Labelled and Attackable for tasks with a support and a query set."""

    def __init__(
        self,
        *,
        model: Model,
        inputs: Sequence[int],
        outputs: int,
        feedback: int | None = None,
        loss: Loss,
        metrics: Mapping[str, Loss],
        norm: Sequence[Norm],
        path: ComputePath,
        classes: bool = False,
        lacks_classes: bool = False,
        to_float: Callable[[Tensor], Tensor] = lambda x: x,
        pixels: bool = False,
        ordered: bool = False,
        baselines: Mapping[str, Callable[[Task], Tensor]] | None = None,
        measures: Mapping[str, Measure] | None = None,
        point: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Bind what a family measures to a network.

        inputs: shape of an example as the network gets it.
        outputs: classes, or numbers that the network predicts.
        feedback: numbers of a target, if they are not as many.
        metrics: by name, each of predictions and targets, [T].
        norm: the examples whose batch statistics normalise a query example; training uses the
            first. Networks without batch normalisation ignore it. "transductive": the whole query
            set. "support": the support set. "support+1": the support set and that one example
            (Nichol et al. 2018, section 6.1). "running": moving averages over training tasks
            (Ioffe and Szegedy 2015), of the network before adaptation. Validation and evaluation
            use them for support and query examples; training itself is transductive. They fit
            prototypical networks, and hurt if the inner loop changes the network.
        path: how tasks are computed.
        classes: whether targets are class numbers, which a memory gets as one-hot vectors.
        lacks_classes: whether a support set may have no example of a class.
        to_float: examples of tasks as the network gets them.
        pixels: whether that is numbers in 0..1, which attacks and corruptions can change.
        ordered: true: a memory reads the support examples in the given order; else in a random one.
        baselines: by name, the metric [T] of methods that learn nothing.
        measures: by name, what an evaluation measures on all tasks together.
        point: the numbers [..., feedback] that predictions [..., outputs] stand for; None: they are
            these numbers themselves, if they are as many.
        """
        self.inputs, self.outputs, self.path, self.classes = inputs, outputs, path, classes
        self.loss, self.metrics, self.measures = loss, metrics, measures or {}
        self.point = point or (lambda prediction: prediction)
        self.to_float, self.ordered, self._baselines = to_float, ordered, baselines or {}
        self.pixels, self.lacks_classes = pixels, lacks_classes
        self._attack: Attack | None = None
        self.feedback = outputs if feedback is None else feedback
        # Else predictions are of something else, such as the best arm of a bandit.
        self.predicts_targets = classes or point is not None or outputs == self.feedback
        self.network = network(Spec(model, tuple(inputs), outputs, self.feedback, path == "fused"))
        self._check_norm(norm)
        self.norm: tuple[Norm, ...] = tuple(norm) if self.normalisations else ("none",)
        for name in metrics:
            if name == "loss" or not re.fullmatch(r"[\w.-]+", name):
                raise InputError(
                    "the name of a metric",
                    got=name,
                    expected="letters, digits, '_', '.' and '-', and not 'loss'",
                )

    def _check_norm(self, norm: Sequence[Norm]) -> None:
        if "running" in norm and len(norm) > 1:
            raise InputError(
                "norm 'running' adapts differently and cannot be listed with others",
                remedy="evaluate each alone",
            )
        if self.normalisations and "none" in norm:
            raise InputError(
                "norm is 'none' but the model normalises with batch statistics",
                remedy="give norm as transductive, support, support+1 or running, or set "
                "model.norm to none",
            )
        if norm[0] != "running" and any(layer.held for layer in self.normalisations.values()):
            raise InputError(
                f"the network {type(self.module).__name__} comes with running statistics, which "
                f"norm {norm[0]!r} does not use",
                remedy="set norm to running, or leave them as they are in a new layer",
            )

    @property
    def module(self) -> nn.Module:
        """The calling thread's network."""
        return self.network.module

    @property
    def normalisations(self) -> dict[str, BatchStatistics]:
        return self.network.normalisations

    def init(self, generator: torch.Generator) -> Params:
        return self.network.fresh(generator)

    def frozen(self, generator: torch.Generator) -> Params:
        return self.network.fresh(generator, trained=False)

    def state(self) -> Params:
        """Mean 0 and variance 1 for each channel of each normalisation."""
        if self.norm[0] != "running":
            return {}
        buffers = self.module.named_buffers()
        return {
            name: b.clone() for name, b in buffers if name.rpartition(".")[0] in self.normalisations
        }

    def statistics(self, params: Params, tasks: Task) -> Params:
        """Mean and variance of what each normalisation gets of a task; their mean over tasks."""
        return statistics(self, params, tasks)

    def support_loss(
        self, params: Params, task: Task, context: Context, batch: Tensor | None = None
    ) -> Tensor:
        x, y = task.support_x, task.support_y
        if not y.shape[1]:
            raise InputError(
                "a task has no support example, so its loss has no value",
                remedy="set family.shots to at least 1, or algorithm.name to in_context",
            )
        if batch is not None:
            rows = torch.arange(len(batch), device=batch.device)[:, None]
            x, y = x[rows, batch], y[rows, batch]
        prediction = self._forward(params, self.to_float(x), self._support_statistics(context))
        return per_task("loss", self.loss(prediction, y), len(y))

    def support_size(self, task: Task) -> int:
        return int(task.support_y.shape[1])

    def predict(
        self, params: Params, task: Task, context: Context, norm: Norm | None = None
    ) -> Tensor:
        """[T, Q, *out] predictions for the query examples."""
        if self._attack is not None:
            clean = self.attack_queries(None)
            task = moved.queries(clean, self._attack, params, task, context, norm)
        norm = norm or self.norm[0]
        query = self.to_float(task.query_x)
        if norm == "running" and context.ticket.work != "update":
            return self._forward(params, query, "held")
        if norm in ("transductive", "running", "none"):
            return self._forward(params, query)
        support = self.to_float(task.support_x)
        shots = support.shape[1]
        if norm == "support":
            return self._forward(params, torch.cat([support, query], dim=1), shots)[:, shots:]
        if norm != "support+1":
            raise ValueError(f"no branch for norm {norm!r}")
        tasks, queries = query.shape[:2]
        at_once = queries
        if self.path == "batched" and not torch.is_grad_enabled():
            at_once = max(AT_ONCE // (tasks * (shots + 1)), 1)
        return torch.cat(
            [self._alone(params, support, some) for some in query.split(at_once, dim=1)], dim=1
        )

    def judge(self, prediction: Tensor, task: Task) -> dict[str, Tensor]:
        tasks = len(prediction)
        loss = per_task("loss", self.loss(prediction, task.query_y), tasks)
        found = {"loss": loss.to(prediction.dtype)}  # a score has more digits: metrics._exact
        for name, metric in self.metrics.items():
            same = metric is self.loss
            value = loss.detach() if same else metric(prediction.detach(), task.query_y)
            found[name] = per_task(name, value, tasks)
        return found

    def query(self, params: Params, task: Task, context: Context) -> dict[str, Tensor]:
        return self.judge(self.predict(params, task, context), task)

    def check(self, task: Task) -> None:
        floats = self.in_floats(task)[1]
        check_examples(floats, tuple(self.inputs), self.feedback, classes=self.classes)
        if self.pixels:
            check_pixels(floats)

    def try_out(self, task: Task) -> Collection[str]:
        # What is built a second time need be compared on one path only.
        try_out(self, self._again() if self.path == "reference" else None, task)
        return self.metrics.keys()

    def embed(self, params: Params, task: Task, context: Context) -> tuple[Tensor, Tensor]:
        x = self.to_float(task.support_x)
        with self._normalised(params, self._support_statistics(context)):
            features: Tensor = call(self._part("body"), self.path, part(params, "body."), x)
        y = task.support_y
        return features, one_hot(y, self.outputs).to(features.dtype) if self.classes else y

    def read(self, params: Params, task: Task, context: Context) -> Iterator[Params]:
        yield params
        if not self.support_size(task):
            yield params  # as after reading: all tickets measure both
            return
        features, targets = self.embed(params, task, context)
        if not self.ordered:
            drawn = torch.rand(targets.shape[:2], generator=context.generator)
            order = drawn.argsort(1).to(targets.device)[..., None]
            features, targets = features.take_along_dim(order, 1), targets.take_along_dim(order, 1)
        head = part(params, "head.")
        module, memory = self._part("head"), (params[HIDDEN], params[PREVIOUS])
        for x, y in zip(features.split(1, dim=1), targets.split(1, dim=1), strict=True):
            if getattr(module, "keeps_all", False):  # there is nothing to compute yet
                hidden = torch.cat([*memory, x[:, 0]], -1)
            else:
                hidden = call(module, self.path, head, x, *(m[:, None] for m in memory))[1][:, 0]
            memory = hidden, y[:, 0]
            yield params | {HIDDEN: memory[0], PREVIOUS: memory[1]}

    def in_floats(self, task: Task) -> tuple[Supervised, Task]:
        other = copy(self)
        other.to_float = lambda x: x
        floats = self.to_float(task.support_x), self.to_float(task.query_x)
        return other, task._replace(support_x=floats[0], query_x=floats[1])

    def attack_support(self, attack: Attack, params: Params, task: Task, context: Context) -> Task:
        return moved.support(self, attack, params, task, context)

    def attack_queries(self, attack: Attack | None) -> Supervised:
        other = copy(self)
        other._attack = attack
        return other

    def with_loss(self, loss: Loss) -> Supervised:
        other = copy(self)
        other.loss = loss
        return other

    def baselines(self, task: Task) -> dict[str, Tensor]:
        return {name: baseline(task) for name, baseline in self._baselines.items()}

    def _again(self) -> Supervised:
        """The same problem with a network that is built a second time."""
        other = copy(self)
        other.network = self.network.again()
        return other

    def _part(self, name: str) -> nn.Module:
        try:
            return self.module.get_submodule(name)
        except AttributeError as error:
            raise InputError(
                f"the network {type(self.module).__name__} has no part named {name!r}, which this "
                "algorithm computes by itself",
                remedy="name its parts `body` and `head`, or choose another algorithm",
            ) from error

    def _alone(self, params: Params, support: Tensor, query: Tensor) -> Tensor:
        """Predictions [T, Q, *out] if each query example is in a batch with the support set alone.

        Each has a copy of the task's parameters and support set.
        """
        tasks, queries = query.shape[:2]
        each = {name: p.repeat_interleave(queries, dim=0) for name, p in params.items()}
        x = torch.cat(
            [support.repeat_interleave(queries, dim=0), query.flatten(0, 1)[:, None]], dim=1
        )
        return self._forward(each, x)[:, -1].unflatten(0, (tasks, queries))

    def _support_statistics(self, context: Context) -> Statistics:
        held = self.norm[0] == "running" and context.ticket.work != "update"
        return "held" if held else "batch"

    def _forward(self, params: Params, x: Tensor, statistics: Statistics = "batch") -> Tensor:
        """params [T, *shape], x [T, N, *in] -> [T, N, outputs].

        Raises InputError if the network gives another shape, which a loss might broadcast.
        """
        with self._normalised(params, statistics):
            predicted: Tensor = call(self.module, self.path, params, x)
        if not isinstance(predicted, Tensor) or predicted.shape != (*x.shape[:2], self.outputs):
            given = (
                shape(predicted[0]) if isinstance(predicted, Tensor) else type(predicted).__name__
            )
            raise InputError(
                f"the network {type(self.module).__name__} gives {given} for {x.shape[1]} examples",
                expected=f"[{x.shape[1]}, {self.outputs}], a number for each output or class",
            )
        return predicted

    def _normalised(self, params: Params, statistics: Statistics) -> AbstractContextManager[None]:
        if statistics == "batch":
            return nullcontext()
        if statistics == "held" and not self.state().keys() <= params.keys():
            raise InputError(
                "norm is 'running', but no moving averages were learned",
                remedy="train with norm: running, or give another norm",
            )
        return normalised_by([*self.normalisations.values()], statistics)
