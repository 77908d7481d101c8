"""Pre-training: a network learns all training classes at once, or all training tasks pooled.

A step's examples are cut into parts of fixed size. A part's gradient depends on the seed, the step
and the part alone, so it does not matter who computes it: the parameters are equal, bit for bit, on
any number of workers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from metatrain.algorithms.inner_loop import start, tracked
from metatrain.core import (
    ComputePath,
    Context,
    InputError,
    Meta,
    Norm,
    Task,
    TaskFamily,
    Ticket,
    Update,
    generator_for,
    to_device,
)
from metatrain.learner import Applied, Diverged, Learner
from metatrain.models import heads
from metatrain.outer import Outer
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Pretraining, Recipe
from metatrain.start import TRAINING, Prepared
from metatrain.tasks.fewshot import FewShot
from metatrain.weights import merged

MOST_UNSOUND = 3  # steps in a row with updates that are not finite, as in meta-training
FIRST = Ticket("update", "train", 0, 0)
Examples = tuple[Tensor, Tensor]  # x [N, *in], y [N] classes or [N, outputs] numbers
Exchange = Callable[[Mapping[int, Update]], Mapping[int, Update]]


class Supervision(NamedTuple):
    """A network that predicts all training classes or targets, and the examples that it learns."""

    keys: Pretraining
    seed: int
    problem: Supervised
    meta: Meta  # that it starts from
    draw: Callable[[int], Examples]  # the examples of a step

    @property
    def outer(self) -> Outer:
        """The steps as a learner takes them: examples are its tasks, parts its tickets."""
        keys = self.keys
        return Outer(
            steps=keys.steps,
            tasks_per_step=keys.examples_per_step,
            tasks_per_ticket=keys.examples_per_part,
            lr=keys.lr,
        )

    def update(self, meta: Meta, step: int, part: int) -> Update:
        """The gradient of the mean loss of a part of a step's examples."""
        first = part * self.keys.examples_per_part
        x, y = (leaf[first : first + self.keys.examples_per_part] for leaf in self.draw(step))
        task = Task(x[None, :0], y[None, :0], x[None], y[None])  # one task without a support set
        task = to_device(task, next(iter(meta.model.values())).device)
        ticket = Ticket("update", "train", step, part)
        context = Context(ticket, generator_for(self.seed, ticket, "pretraining"))
        leaves = {name: p.detach().requires_grad_() for name, p in meta.model.items()}
        found = self.problem.query(start(meta._replace(model=leaves), task), task, context)
        gradients = torch.autograd.grad(
            found["loss"].sum(), list(leaves.values()), materialize_grads=True
        )
        direction = Meta(
            dict(zip(leaves, gradients, strict=True)), {}, tracked(self.problem, meta, task)
        )
        means = {f"{name}_after": float(value.detach().mean()) for name, value in found.items()}
        return Update(direction, len(x), means)


def supervision(prepared: Prepared, path: ComputePath) -> Supervision:
    """The supervised problem of a recipe's network and training split.

    Raises InputError if its tasks are no labelled examples, or their classes are not known.
    """
    recipe, family = prepared.recipe, prepared.recipe.family
    keys, problem = recipe.pretraining or Pretraining(), prepared.problems[TRAINING]
    if not isinstance(problem, Supervised):
        raise InputError(
            "pre-training needs labelled examples, and these tasks are episodes",
            remedy="meta-train this recipe without it",
        )
    if getattr(recipe.model, "weights", None) is not None:
        raise InputError(
            "model.weights",
            got=recipe.model.weights,
            expected="null: a pre-training starts from the seed",
            remedy="pass --set model.weights=null",
        )
    if isinstance(family, FewShot):
        family.check("train")
        draw, outputs = _of_classes(family, recipe.seed, keys)
    elif problem.classes:
        raise InputError(
            f"pre-training needs all classes of family.name {family.name!r}, which knows only "
            "those of a task",
            remedy="import the images, and use the family fewshot",
        )
    else:
        draw, outputs = _of_tasks(family, recipe.seed, keys), problem.outputs
    norm: Norm = "running" if recipe.norm == "running" else "transductive"
    whole = Supervised(
        model=with_linear_head(recipe.model),
        inputs=problem.inputs,
        outputs=outputs,
        loss=problem.loss,
        metrics=problem.metrics,
        norm=(norm,),
        path=path,
        classes=problem.classes,
        to_float=problem.to_float,
    )
    generator = generator_for(recipe.seed, FIRST, "init")
    meta = Meta(whole.init(generator), {}, whole.state(), whole.frozen(generator))
    return Supervision(keys, recipe.seed, whole, meta, lru_cache(maxsize=1)(draw))


def learn(
    task: Supervision,
    learner: Learner,
    exchange: Exchange = lambda own: own,
    rank: int = 0,
    workers: int = 1,
) -> Iterator[Applied]:
    """Take the steps that are left; yield what each says of itself.

    exchange: gets the updates of this worker's parts, and returns those of all parts.

    Raises Diverged if a few steps in a row, or the last one, have updates that are not finite.
    """
    parts, unsound = task.outer.tickets(), 0
    while learner.version < task.keys.steps:
        meta, step = learner.meta(), learner.version
        own = {part: task.update(meta, step, part) for part in range(rank, parts, workers)}
        updates = exchange(own)
        applied = learner.apply([updates[part] for part in range(parts)])
        unsound = unsound + 1 if applied.left_out else 0
        if unsound == MOST_UNSOUND or (unsound and learner.version == task.keys.steps):
            raise Diverged(f"the update of step {step} is not finite: lower pretraining.lr")
        yield applied


def result(prepared: Prepared, meta: Meta) -> Meta:
    """The recipe's meta-parameters with a pre-trained body, and a regression's head.

    A head on all training classes is left out: those of a task are other ones.
    """
    given = meta.model | meta.frozen | meta.state
    problem = prepared.problems[TRAINING]
    if isinstance(problem, Supervised) and problem.classes:
        given = {name: p for name, p in given.items() if not name.startswith("head.")}
    return merged(prepared.meta, given, "the pre-trained network")


def recipe_of(recipe: Recipe) -> Recipe:
    """The recipe with the keys of its pre-training, by default the default ones."""
    return dataclasses.replace(recipe, pretraining=recipe.pretraining or Pretraining())


def with_linear_head(model: Any) -> Any:
    """A model whose head needs neither a support set nor a memory."""
    head = getattr(model, "head", None)
    plain = heads.Linear | heads.Cosine
    if isinstance(head, get_args(get_args(heads.Head)[0])) and not isinstance(head, plain):
        return dataclasses.replace(model, head=heads.LINEAR)
    return model


def _of_classes(
    family: FewShot, seed: int, keys: Pretraining
) -> tuple[Callable[[int], Examples], int]:
    """Images of all training classes by step, and how many classes these are.

    Each image comes once before any comes again. If tasks turn a class by quarters as one of its
    own, the turned images are classes of their own here as well. `augment` changes all images.
    """
    store, scheme = family.store, family.store.scheme(family.splits)
    classes = torch.tensor(scheme.classes["train"])
    turns = 4 if family.rotations("train") == "classes" else 1
    rows = torch.cat(
        [torch.arange(int(store.sizes[c])) + store.offsets[c] for c in classes.tolist()]
    )
    labels = torch.arange(len(classes)).repeat_interleave(store.sizes[classes])

    def draw(step: int) -> Examples:
        chosen = _shuffled(seed, len(rows) * turns, step * keys.examples_per_step, keys)
        image, turn = chosen // turns, chosen % turns
        x = store.images[rows[image]]
        for quarters in range(1, turns):
            x[turn == quarters] = torch.rot90(x[turn == quarters], quarters, dims=(-2, -1))
        if family.augment is not None:
            generator = generator_for(seed, Ticket("update", "train", step, 0), "augment")
            augment = dataclasses.replace(family.augment, images="support")
            changed, _ = augment.both(x[None], x[None, :0], generator, 255 * family.invert)
            x = changed[0]
        return x, labels[image] * turns + turn

    return draw, len(classes) * turns


def _of_tasks(family: TaskFamily, seed: int, keys: Pretraining) -> Callable[[int], Examples]:
    """The examples of training tasks by step, as many tasks as it needs."""

    def pooled(step: int, tasks: int) -> Examples:
        ticket = Ticket("update", "train", step, 0)
        task = family.sample(generator_for(seed, ticket, "pretraining"), tasks, "train")
        x = torch.cat([task.support_x, task.query_x], dim=1).flatten(0, 1)
        y = torch.cat([task.support_y, task.query_y], dim=1).flatten(0, 1)
        return x[: keys.examples_per_step], y[: keys.examples_per_step]

    each = len(pooled(0, 1)[1])  # examples of a task, or enough for a step
    return lambda step: pooled(step, -(-keys.examples_per_step // each))


def _shuffled(seed: int, size: int, first: int, keys: Pretraining) -> Tensor:
    """A step's examples, as numbers below `size`: those from place `first` of a row of shuffles."""
    last = first + keys.examples_per_step
    epochs = range(first // size, (last - 1) // size + 1)
    row = torch.cat([_shuffle(seed, size, epoch) for epoch in epochs])
    return row[first - epochs[0] * size : last - epochs[0] * size]


@lru_cache(maxsize=2)
def _shuffle(seed: int, size: int, epoch: int) -> Tensor:
    ticket = Ticket("update", "train", epoch, 0)
    return torch.randperm(size, generator=generator_for(seed, ticket, "pretraining"))
