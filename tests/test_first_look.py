"""What would train on nonsense is refused before a run starts: families, networks and losses that
do not fit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from cases import GLYPHS, SINUSOID, config, context
from torch import Tensor, nn

from cluster import run
from cluster.workers.layout import Layout
from cluster.workers.plan import choose_plan
from metatrain import bundle
from metatrain.core import InputError, Meta, Task
from metatrain.first_look import check_data
from metatrain.metrics import mean_squared_error
from metatrain.models import MLP
from metatrain.problems.supervised import Supervised
from metatrain.recipe import Recipe
from metatrain.start import prepare
from metatrain.tasks import Bandit, Navigation, Sinusoid
from metatrain.weights import warm

Spoil = Callable[[Task], Any]


@dataclass(frozen=True, kw_only=True)
class Spoilt(Sinusoid):
    """Sinusoids with something wrong."""

    name: str = "tests:Spoilt"  # type: ignore[assignment]
    spoil: Any = None

    def sample(self, generator: torch.Generator, count: int, split: Any) -> Any:
        return self.spoil(super().sample(generator, count, split))


def recipe_of(**changed: Any) -> Recipe:
    """A recipe with components that no YAML names."""
    return replace(config(SINUSOID).recipe(), **changed)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda t: t._replace(support_y=t.support_y[..., 0]),
            r"support_y is \[7, 5\] and support_x \[7, 5, 1\], "
            r"expected support_y as \[T, N, 1\] .*: add the last dimension with \[\.\.\., None\]",
        ),
        (lambda t: t._replace(query_y=t.query_y[..., 0]), r"query_y is \[7, 5\]"),
        (lambda t: t._replace(query_y=t.query_y.expand(-1, -1, 3)), r"query_y is \[7, 5, 3\]"),
        (
            lambda t: t._replace(query_y=t.query_y[:, :2]),
            (
                r"query_y is \[7, 2, 1\] and "
                r"query_x \[7, 5, 1\]"
            ),
        ),
        (
            lambda t: t._replace(support_x=t.support_x[..., 0]),
            (
                r"support_x is \[7, 5\], "
                r"expected \[T, N, 1\]"
            ),
        ),
        (
            lambda t: t._replace(support_x=t.support_x.numpy()),
            (
                r"support_x is numpy.ndarray, expected a "
                r"torch.Tensor"
            ),
        ),
        (
            lambda t: t._replace(query_y=t.query_y.tolist()),
            (
                r"query_y is builtins.list, expected a "
                r"torch.Tensor"
            ),
        ),
        (
            lambda t: t._replace(query_x=t.query_x.double()),
            (
                r"query_x is torch.float64, expected "
                r"torch.float32"
            ),
        ),
        (
            lambda t: t._replace(support_y=t.support_y.long()),
            (
                r"support_y is torch.int64, expected "
                r"torch.float32"
            ),
        ),
        (
            lambda t: t._replace(support_y=t.support_y * np.nan),
            (
                r"support_y has values that "
                r"are not finite"
            ),
        ),
        (lambda t: t._replace(query_x=t.query_x / 0), r"query_x has values that are not finite"),
        (
            lambda t: t._replace(query_x=t.query_x[:3]),
            (
                r"query_x is \[3, 5, 1\] for 7 tasks, expected "
                r"\[7, \.\.\.\]"
            ),
        ),
        (lambda t: Task(*(leaf[0] for leaf in t)), r"support_x is \[5, 1\] for 7 tasks"),
        (lambda t: tuple(t), "`sample` gives tuple, expected a NamedTuple such as core.Task"),
        (lambda t: None, "`sample` gives NoneType"),
    ],
)
def test_the_first_tasks_of_a_family_are_checked(spoil: Spoil, sentence: str) -> None:
    recipe = recipe_of(family=Spoilt(shots=5, queries=5, spoil=spoil))
    with pytest.raises(InputError, match=f"^Spoilt of family.name 'tests:Spoilt': {sentence}"):
        check_data(prepare(recipe))


def test_a_family_that_draws_from_elsewhere_is_refused() -> None:
    """A ticket would be another task on each worker, and a retry another one again."""
    family = Spoilt(
        shots=5, queries=5, spoil=lambda t: t._replace(support_x=torch.rand_like(t.support_x))
    )
    with pytest.raises(
        InputError,
        match="the same generator gives other tasks the second time: draw from the generator",
    ):
        check_data(prepare(recipe_of(family=family)))


def test_targets_that_would_broadcast_over_as_many_tasks_as_examples_are_refused() -> None:
    """[T, N] against [T, N, 1] makes [T, N, N], and with T = N nothing raised."""
    family = Spoilt(shots=7, queries=7, spoil=lambda t: t._replace(support_y=t.support_y[..., 0]))
    with pytest.raises(InputError, match=r"support_y is \[7, 7\]"):
        check_data(prepare(recipe_of(family=family)))


def test_the_validation_and_the_evaluation_are_looked_at_too() -> None:
    class Later(Spoilt):
        def sample(self, generator: torch.Generator, count: int, split: Any) -> Any:
            task = Sinusoid.sample(self, generator, count, split)
            return task._replace(query_y=task.query_y * np.nan) if split == "test" else task

    with pytest.raises(InputError, match="query_y has values that are not finite"):
        check_data(prepare(recipe_of(family=Later(shots=5, queries=5))))


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (
            lambda y: y.float(),
            r"support_y is torch.float32 in 0.0..1.0, expected class numbers below 2 as "
            r"torch.int64",
        ),
        (lambda y: y + 1, r"support_y is torch.int64 in 1..2, expected class numbers below 2"),
        (lambda y: y - 1, r"support_y is torch.int64 in -1..0"),
        (
            lambda y: y[..., None],
            r"support_y is \[7, 4, 1\] and support_x \[7, 4, 1\], expected support_y as \[T, N\]",
        ),
    ],
)
def test_classes_are_numbers_from_zero(labels: Callable[[Tensor], Tensor], sentence: str) -> None:
    x, y = torch.zeros(7, 4, 1), torch.tensor([0, 1, 0, 1]).expand(7, 4)
    with pytest.raises(InputError, match=sentence):
        classifier(MLP(hidden=(4,))).check(Task(x, labels(y), x, y))


def classifier(model: Any, path: Any = "reference") -> Supervised:
    return Supervised(
        model=model,
        inputs=(1,),
        outputs=2,
        loss=lambda p, y: (p[..., 0] - y).square().mean(1),
        metrics={},
        norm=("transductive",),
        path=path,
        classes=True,
    )


class Further(NamedTuple):
    """A task with a field of its own, and its fields in another order."""

    weights: Tensor
    query_x: Tensor
    query_y: Tensor
    support_x: Tensor
    support_y: Tensor


def test_tasks_may_have_further_fields() -> None:
    def spoil(t: Task) -> Further:
        weights = torch.ones(len(t.support_x))
        return Further(weights, t.query_x, t.query_y, t.support_x, t.support_y)

    check_data(prepare(recipe_of(family=Spoilt(shots=4, queries=6, spoil=spoil))))


def test_whatever_a_family_raises_is_a_sentence() -> None:
    def raises(error: BaseException) -> Spoil:
        def spoil(task: Task) -> Any:
            raise error

        return spoil

    for error in (KeyError("gone"), SystemExit(0), RuntimeError("two\nlines")):
        with pytest.raises(
            InputError, match=f"`sample` fails for 7 tasks of .* split .{type(error).__name__}: "
        ):
            check_data(prepare(recipe_of(family=Spoilt(shots=5, queries=5, spoil=raises(error)))))
    for spoil, sentence in (
        (
            lambda t: t._replace(query_x=t.query_x.to_sparse()),
            "query_x is torch.sparse_coo on cpu",
        ),
        (
            lambda t: t._replace(query_x=t.query_x.to("meta")),
            "query_x is torch.strided on meta",
        ),
        (
            lambda t: t._replace(query_x=t.query_x[:, :0], query_y=t.query_y[:, :0]),
            "is .7, 0, 1., which is no example",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            check_data(prepare(recipe_of(family=Spoilt(shots=5, queries=5, spoil=spoil))))


@dataclass(frozen=True, kw_only=True)
class Net:
    """A model that is a module's constructor."""

    build: Callable[[], nn.Module]
    name: str = "tests:Net"

    def module(self, inputs: Any, outputs: int, feedback: int) -> nn.Module:
        return self.build()


class Squeezed(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 0]


class Paired(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Pooled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0, keepdim=True)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            lambda: nn.Linear(1, 8),
            r"the network Linear gives \[5, 8\] for 5 examples, expected \[5, 1\]",
        ),
        (lambda: Squeezed(1, 1), r"the network Squeezed gives \[5\] for 5 examples"),
        (lambda: Pooled(1, 1), r"the network Pooled gives \[1, 1\] for 5 examples"),
        (lambda: Paired(1, 1), r"the network Paired gives tuple for 5 examples"),
        (
            lambda: nn.Linear(3, 1),
            r"the network Linear fails on examples of shape \[1\] \(RuntimeError: .*mat1 and mat2",
        ),
    ],
)
def test_a_network_of_other_outputs_than_the_targets_is_refused(build: Any, sentence: str) -> None:
    """Eight numbers against a target of one broadcast, trained, and ended with exit code 0."""
    with pytest.raises(InputError, match=sentence):
        check_data(prepare(recipe_of(model=Net(build=build))))


def test_a_loss_or_metric_that_is_no_number_for_each_task_is_refused() -> None:
    """A mean over the tasks as well would divide the inner gradient by their number."""
    task = Sinusoid(shots=5, queries=5).sample(torch.Generator().manual_seed(0), 3, "train")
    per_task = lambda p, y: (p - y).square().mean((1, 2))  # noqa: E731
    for loss, metrics in (
        (lambda p, y: (p - y).square().mean(), {}),
        (lambda p, y: (p - y).square(), {}),
        (per_task, {"mse": lambda p, y: (p - y).square().mean()}),
    ):
        problem = Supervised(
            model=MLP(hidden=(4,)),
            inputs=(1,),
            outputs=1,
            loss=loss,
            metrics=metrics,
            norm=("none",),
            path="batched",
        )
        params = {
            name: p.expand(3, *p.shape)
            for name, p in problem.init(torch.Generator().manual_seed(0)).items()
        }
        with pytest.raises(
            InputError, match=r"for 3 tasks, expected real numbers \[3\], a mean for each of them"
        ):
            problem.query(params, task, context())


def test_the_metric_and_the_losses_of_a_family_are_tried(tmp_path: Path) -> None:
    """They ended in a traceback after the training."""

    def recipe(**changed: Any) -> Recipe:
        class Changed(Sinusoid):
            def bind(self, model: Any, norm: Any, path: Any) -> Supervised:
                own: dict[str, Any] = {
                    "loss": mean_squared_error,
                    "metrics": {"mse": mean_squared_error},
                }
                return Supervised(
                    model=model, inputs=(1,), outputs=1, norm=norm, path=path, **own | changed
                )

        return recipe_of(family=Changed(shots=5, queries=5))

    def broken(prediction: Tensor, target: Tensor) -> Tensor:
        raise KeyError("f1")

    per_task = lambda p, y: (p - y).square().mean((1, 2))  # noqa: E731
    check_data(prepare(recipe(metrics={"mse": per_task})))
    check_data(
        prepare(recipe(metrics={"mse": lambda p, y: (p > y).sum((1, 2))}))
    )  # whole numbers are numbers
    for changed, sentence in (
        (
            {"metrics": {"f1": per_task}},
            "Changed .*: its metric's name is 'mse', expected one that `bind` measures: f1",
        ),
        (
            {"metrics": {"mse": broken}},
            "the family's mse fails on its first tasks .KeyError: 'f1'",
        ),
        (
            {"metrics": {"mse": lambda p, y: per_task(p, y) * np.nan}},
            "the family's mse is not finite",
        ),
        (
            {"metrics": {"mse": lambda p, y: 1.0}},
            "mse is float for 2 tasks, expected real numbers",
        ),
        ({"metrics": {"loss": per_task}}, "the name of a metric is 'loss', expected letters"),
        ({"loss": lambda p, y: (p - y).square().mean()}, r"loss is torch.float32 \[\] for 2 tasks"),
        (
            {"loss": lambda p, y: per_task(p.detach(), y)},
            "the family's loss fails on its first tasks .RuntimeError",
        ),
    ):
        with pytest.raises(InputError, match=f"^{sentence}"):
            check_data(prepare(recipe(**changed)))


@pytest.mark.parametrize("family", [Bandit(pulls=3, episodes=2), Navigation(horizon=3, episodes=2)])
def test_environments_are_checked_by_a_step(family: Any) -> None:
    def recipe(change: Callable[..., Any]) -> Recipe:
        class Changed(type(family)):  # type: ignore[misc]
            def step(self, *given: Any) -> Any:
                return change(*super().step(*given))

        return recipe_of(family=Changed(**{"episodes": 2}))

    check_data(prepare(recipe(lambda *step: step)))
    with pytest.raises(
        InputError, match=r"`step` gives rewards of shape \[7, 2, 1\], expected \[7, 2\]"
    ):
        check_data(prepare(recipe(lambda *step: (*step[:2], step[2][..., None], step[3]))))
    with pytest.raises(
        InputError, match=r"`step` says what ended of shape bool, expected \[7, 2\]"
    ):
        check_data(prepare(recipe(lambda *step: (*step[:3], False))))
    with pytest.raises(InputError) as error:
        check_data(prepare(recipe(lambda *step: step[1:])))
    assert error.value.what.endswith(": `step` gives 3 values")
    assert error.value.expected == "4: state, observation, reward, ended"


class Branches(nn.Module):
    """A network that Python reads, which vmap cannot compute for several tasks at once."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.relu(self.body(x))
        return self.head(-features if features.mean() > 1e9 else features)


def test_a_network_that_cannot_be_batched_is_computed_task_after_task() -> None:
    recipe = recipe_of(model=Net(build=Branches))
    check_data(prepare(recipe))
    plan, reason = choose_plan(prepare(recipe), 0, 1)
    assert plan.path == "reference"
    assert "cannot be computed for several tasks at once" in reason
    assert choose_plan(prepare(config(SINUSOID).recipe()), 0, 1)[0].path == "batched"


HALVES = """
from dataclasses import dataclass
from torch import nn

class Halves(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(1, 8), nn.ReLU()), nn.Linear(8, 1)
        self.body.requires_grad_(False)

    def forward(self, x):
        return self.head(self.body(x))

@dataclass(frozen=True, kw_only=True)
class HalfFrozen:
    name: str
    weights: str | None = None

    def module(self, inputs, outputs, feedback):
        return Halves()
"""


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "maml", "inner_lr": 0.1, "inner_steps": 2},
        {"name": "meta_sgd", "initial_lr": 0.1},
        {"name": "reptile", "inner_lr": 0.1, "inner_steps": 2},
    ],
)
def test_what_a_network_freezes_stays_as_it_is_and_is_in_the_bundle(
    algorithm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weight decay would move even parameters without a gradient; a checkpoint and a resumed run
    keep them.
    """
    (tmp_path / "halves.py").write_text(HALVES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "halves", raising=False)
    outer = SINUSOID["outer"] | {"optimizer": "AdamW", "options": {"weight_decay": 0.5}, "steps": 3}
    model = {"name": "halves:HalfFrozen"}
    settings = config(
        SINUSOID | {"model": model}, algorithm=algorithm, outer=outer, output=str(tmp_path / "run")
    )
    start = prepare(settings.recipe()).meta
    assert sorted(start.frozen) == ["body.0.bias", "body.0.weight"]
    assert sorted(start.model) == ["head.bias", "head.weight"]
    run.train(settings)
    run.train(replace(settings, outer=replace(settings.outer, steps=5)), resume="auto")
    _, meta = bundle.load(str(tmp_path / "run" / "bundle"))
    assert all(torch.equal(p, meta.frozen[name]) for name, p in start.frozen.items())
    assert not torch.equal(meta.model["head.weight"], start.model["head.weight"])
    later = replace(settings, model=replace(settings.model, weights=str(tmp_path / "run")), seed=9)
    warmed = warm(later.recipe(), prepare(later.recipe()).meta).meta
    assert all(torch.equal(p, warmed.frozen[name]) for name, p in meta.frozen.items())
    assert all(torch.equal(p, warmed.model[name]) for name, p in meta.model.items())


def test_a_direction_travels_without_frozen_parameters() -> None:
    meta = Meta(
        {"w": torch.ones(3)}, {}, {"m": torch.full((2,), 2.0)}, {"f": torch.full((40,), 3.0)}
    )
    layout = Layout(meta)
    assert layout.unflatten(layout.flatten(meta)).frozen["f"].tolist() == [3.0] * 40
    flat = layout.flatten(meta._replace(frozen={}))
    assert len(flat) < layout.size
    back = layout.unflatten(flat)
    assert back.frozen == {}
    assert back.model["w"].tolist() == [1.0] * 3
    assert back.state["m"].tolist() == [2.0] * 2


def test_a_further_evaluation_that_the_data_cannot_give_is_named() -> None:
    recipe = config(GLYPHS, evaluations={"many": {"family": {"ways": 500}}}).recipe()
    with pytest.raises(InputError) as refused:
        check_data(prepare(recipe))
    assert refused.value.what.startswith("evaluations.many: 500 ways were asked for")
