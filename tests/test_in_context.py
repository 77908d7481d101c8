"""In-context learning: a set is read as a set, by weights that tasks share, towards an optimum
that is known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, config, context, drawn_images, exact, images, trained
from gradients import assert_meta_gradient, gradient_descent
from torch import Tensor
from torch.distributions import MultivariateNormal

from cluster import run
from metatrain import figures
from metatrain.algorithms import MAML, InContext, Matching, Prototypical, Relation
from metatrain.core import ComputePath, InputError, Meta, Task
from metatrain.inference import Learned, illustrate
from metatrain.metrics import mean_squared_error
from metatrain.models import MLP, Conv4, heads
from metatrain.problems.bar_distribution import Bars
from metatrain.problems.supervised import Supervised
from metatrain.start import prepare
from metatrain.tasks import (
    Cipher,
    GaussianProcess,
    LinearRegression,
    Tabular,
    TabularRegression,
)
from metatrain.tasks.made_tables import by_rules, predictable
from metatrain.tasks.tabular import by_support, most_frequent, nearest_neighbour

SMALL = heads.Transformer(width=8, depth=2, heads=2)
CELLS = heads.Cells(width=8, depth=2, heads=2)
FUNCTIONS = LinearRegression(inputs=3, shots=(6, 6), queries=4)


def bound(family: Any, head: heads.Head = SMALL, path: ComputePath = "batched") -> Supervised:
    problem: Supervised = family.bind(MLP(hidden=(), head=head), ("none",), path)
    return problem


def started(problem: Supervised) -> Meta:
    """Meta-parameters in double precision, with tokens that are not zero."""
    meta = exact(InContext().init(problem, torch.Generator().manual_seed(0)))
    g = torch.Generator().manual_seed(1)
    tokens = {
        name: torch.randn(p.shape, generator=g, dtype=p.dtype)
        for name, p in meta.model.items()
        if p.dim() == 1
    }
    return meta._replace(model=meta.model | tokens)


def tasks(family: Any, count: int = 3) -> Task:
    drawn = family.sample(torch.Generator().manual_seed(2), count, "train")
    return Task(*(leaf.double() for leaf in drawn))


def predicted(problem: Supervised, meta: Meta, task: Task) -> list[Tensor]:
    """The predictions before reading, and after."""
    return [
        problem.predict(phi, task, context())
        for phi in InContext().adapt(problem, meta, task, context())
    ]


@pytest.mark.parametrize("head", [SMALL, CELLS])
def test_the_support_set_is_read_in_any_order_and_queries_do_not_see_each_other(head: Any) -> None:
    problem, task = bound(FUNCTIONS, head), tasks(FUNCTIONS)
    meta, order = started(problem), torch.tensor([3, 0, 5, 1, 4, 2])
    before, after = predicted(problem, meta, task)
    assert (before - after).abs().min() > 1e-4
    turned = task._replace(support_x=task.support_x[:, order], support_y=task.support_y[:, order])
    torch.testing.assert_close(predicted(problem, meta, turned)[1], after, rtol=1e-5, atol=1e-12)
    alone = task._replace(query_x=task.query_x[:, 1:2], query_y=task.query_y[:, 1:2])
    torch.testing.assert_close(predicted(problem, meta, alone)[1], after[:, 1:2])
    other = task._replace(support_y=task.support_y + 1)
    assert (predicted(problem, meta, other)[1] - after).abs().min() > 1e-4


@pytest.mark.parametrize("head", [SMALL, CELLS])
def test_before_adaptation_nothing_is_read_as_with_no_example(head: Any) -> None:
    problem, task = bound(FUNCTIONS, head), tasks(FUNCTIONS)
    none = task._replace(support_x=task.support_x[:, :0], support_y=task.support_y[:, :0])
    meta = started(problem)
    before, after = predicted(problem, meta, none)
    assert torch.equal(before, after)
    assert torch.equal(before, predicted(problem, meta, task)[0])


@pytest.mark.parametrize(
    "head", [SMALL, heads.Transformer(width=8, depth=2, heads=2, attention="linear"), CELLS]
)
def test_tasks_share_weights_without_copies_and_gradients_are_exact(head: Any) -> None:
    batched, one_by_one = bound(FUNCTIONS, head), bound(FUNCTIONS, head, "reference")
    meta, task = started(batched), tasks(FUNCTIONS)
    gradient = assert_meta_gradient(InContext(), batched, meta, task)
    alone = InContext().update(one_by_one, meta, task, context()).direction.model
    assert gradient.keys() == alone.keys() == meta.model.keys()
    for name, part in alone.items():
        torch.testing.assert_close(gradient[name], part, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("head", [SMALL, CELLS])
def test_tasks_with_weights_of_their_own_are_computed_with_them(head: Any) -> None:
    problem, task = bound(FUNCTIONS, head), tasks(FUNCTIONS, 2)
    model = started(problem).model
    other = {name: p + 0.1 for name, p in model.items()}
    *_, phi = InContext().adapt(problem, Meta(model, {}, {}), task, context())
    own = phi | {name: torch.stack([model[name], other[name]]) for name in model}
    found = problem.predict(own, task, context())
    for t, params in enumerate((model, other)):
        expected = predicted(problem, Meta(params, {}, {}), task)[1]
        torch.testing.assert_close(found[t], expected[t])


def test_a_layer_of_linear_attention_at_its_optimum_is_a_step_of_maml() -> None:
    """From weights of zero. The layer's mean is over one token more than the support set."""
    rate, task = 0.07, tasks(FUNCTIONS)
    shots, inputs = task.support_x.shape[1:]
    head = heads.Transformer(width=inputs + 1, depth=1, heads=1, attention="linear")
    problem = bound(FUNCTIONS, head)
    model = gradient_descent(inputs, rate * (shots + 1) / shots)
    assert model.keys() == started(problem).model.keys()
    _, found = predicted(problem, Meta(model, {}, {}), task)
    linear = bound(FUNCTIONS, heads.Linear())
    zero = {"head.weight": torch.zeros(1, inputs), "head.bias": torch.zeros(1)}
    maml = MAML(inner_lr=rate, inner_steps=1, adapts=("head.weight",))
    *_, phi = maml.adapt(linear, exact(Meta(zero, {}, {})), task, context())
    torch.testing.assert_close(found, linear.predict(phi, task, context()), rtol=1e-6, atol=1e-9)


def test_ridge_is_the_best_of_linear_functions() -> None:
    """A penalty that is larger or smaller is worse by more than its interval."""
    for shots in (0, 3, 8):
        family = LinearRegression(shots=(shots, shots))
        task = family.sample(torch.Generator().manual_seed(shots), 4000, "test")
        assert task.support_x.shape == (4000, shots, 8)
        best, problem = family.ridge(task), bound(family)
        for noise in (0.1, 0.6) if shots else ():
            worse = LinearRegression(noise_variance=noise).ridge(task) - best
            assert worse.mean() > 1.96 * worse.std() / 4000**0.5
        guess = torch.zeros_like(task.query_y)
        excess = problem.measures["excess"]
        pooled = excess.pool(guess, task)
        expected = mean_squared_error(guess, task.query_y).mean() / best.mean() - 1
        assert excess.value is not None
        assert excess.value(pooled) == pytest.approx(float(expected), abs=1e-5)
        assert (abs(expected) < 1e-6) == (shots == 0)  # then ridge is the prior's mean, too


@pytest.mark.parametrize("noise", [1e-320, 1e-30])
def test_without_noise_ridge_is_the_smallest_that_fits(noise: float) -> None:
    """Its penalty would be lost in double precision."""
    family = LinearRegression(noise_variance=noise, shots=(3, 3))
    task = family.sample(torch.Generator().manual_seed(0), 5, "test")
    near = LinearRegression(noise_variance=1e-8).ridge(task)
    torch.testing.assert_close(family.ridge(task), near, rtol=1e-4, atol=0)


def test_the_posterior_of_a_gaussian_process_is_that_of_its_joint_density() -> None:
    family = GaussianProcess(shots=(4, 4), queries=2)
    task = family.sample(torch.Generator().manual_seed(0), 3, "test")
    scales = torch.linspace(0.1, 0.6, 1001, dtype=torch.float64)

    def log_density(x: Tensor, y: Tensor) -> Tensor:
        """log p(y), the length scale integrated out by a grid of many."""
        distances = (x[:, None] - x).double().square()
        covariances = (-distances / (2 * scales[:, None, None] ** 2)).exp()
        zero, noise = torch.zeros(len(x)).double(), 0.01 * torch.eye(len(x))
        normal = MultivariateNormal(zero, covariances + noise)
        return (torch.trapezoid(normal.log_prob(y.double()).exp(), scales) / 0.5).log()

    for shots in (0, 4):
        seen = task._replace(
            support_x=task.support_x[:, :shots], support_y=task.support_y[:, :shots]
        )
        found = family.posterior(seen)
        for t in range(3):
            x, y = seen.support_x[t, :, 0], seen.support_y[t, :, 0]
            each = [
                log_density(torch.cat([x, seen.query_x[t, q]]), torch.cat([y, seen.query_y[t, q]]))
                - (log_density(x, y) if shots else 0.0)
                for q in range(2)
            ]
            assert float(found[t]) == pytest.approx(-float(sum(each)) / 2, abs=1e-4)


def test_bars_are_a_density_whose_mean_is_theirs() -> None:
    bars = Bars(10, 1.5)
    logits = torch.randn(1, 1, 10, generator=torch.Generator().manual_seed(0))
    y = torch.linspace(-15, 15, 60_001)
    density = (-bars.nll(logits.expand(60_001, 1, 10), y.view(-1, 1, 1))).exp().double()
    assert float(torch.trapezoid(density, y.double())) == pytest.approx(1, abs=1e-3)
    mean = float(torch.trapezoid(density * y.double(), y.double()))
    assert mean == pytest.approx(float(bars.mean(logits)), abs=2e-3)
    drawn = 1.5 * torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    shares = torch.bincount(torch.searchsorted(bars.borders, drawn), minlength=10) / 100_000
    assert (shares - 0.1).abs().max() < 0.005


@pytest.mark.ray  # seconds of training
def test_learning_comes_near_to_the_optimum_and_not_below_it() -> None:
    """An error below that of ridge would come from targets that the network has seen."""
    recipe = config(
        CASES["in-context"],
        family={"name": "linear_regression", "inputs": 1, "shots": [0, 3], "queries": 8},
        model__head={"name": "transformer", "width": 16, "depth": 2, "heads": 2},
        outer={
            "steps": 200,
            "tasks_per_step": 32,
            "tasks_per_ticket": 32,
            "optimizer": "AdamW",
            "lr": 0.005,
            "schedule": "cosine",
        },
        evaluation={"tasks": 2000, "tasks_per_ticket": 2000, "family": {"shots": [3, 3]}},
    ).recipe()
    scores = trained(recipe)
    before, after = scores.curves["none"]["mse"].mT
    excess = after - scores.baselines["ridge"]
    assert excess.mean() > -1.96 * excess.std() / 2000**0.5
    assert excess.mean() < 0.25 * (before - scores.baselines["ridge"]).mean()
    prior = 1.25  # the variance of a target, which is the error of the prior's mean
    assert before.mean() < 1.1 * prior


def test_a_density_is_a_number_to_who_adapts_with_numbers() -> None:
    case = CASES["in-context"] | {"family": {"name": "gaussian_process", "buckets": 6}}
    recipe = config(case).recipe()
    learned = Learned(recipe, prepare(recipe).meta, "made up")
    adapted = learned.adapt([0.1, 0.9], [1.0, -1.0])
    outputs = adapted.outputs(adapted.after, adapted.examples([0.2, 0.3, 0.4]))
    assert outputs.shape == (3, 6)
    expected = recipe.family.bars().mean(outputs)[:, 0]
    torch.testing.assert_close(adapted.predict([0.2, 0.3, 0.4]).values, expected)


def test_descent_is_refused_if_there_is_nothing_to_descend() -> None:
    none = FUNCTIONS.sample(torch.Generator(), 2, "train")
    none = none._replace(support_x=none.support_x[:, :0], support_y=none.support_y[:, :0])
    problem, algorithm = bound(FUNCTIONS, heads.Linear()), MAML(inner_lr=0.1)
    problem.check(none)
    with pytest.raises(InputError) as error:
        algorithm.update(problem, algorithm.init(problem, torch.Generator()), none, context())
    assert "in_context" in error.value.remedy
    with pytest.raises(InputError, match="query_x"):
        problem.check(none._replace(query_x=none.support_x, query_y=none.support_y))


@pytest.mark.parametrize("path", ["batched", "reference"])
def test_images_are_read_as_their_features_and_one_hot_classes(path: ComputePath) -> None:
    model = Conv4(filters=4, pool="stride", head=SMALL)
    problem, task = images(model, path), drawn_images()
    meta = started(problem)
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    turned = task._replace(support_x=task.support_x[:, order], support_y=task.support_y[:, order])
    _, after = predicted(problem, meta, task)
    assert after.shape == (2, 6, 3)
    torch.testing.assert_close(predicted(problem, meta, turned)[1], after, rtol=1e-5, atol=1e-9)
    other = task._replace(support_y=(task.support_y + 1) % 3)
    assert (predicted(problem, meta, other)[1] - after).abs().max() > 1e-5
    assert_meta_gradient(InContext(), problem, meta, task)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: heads.Transformer(width=10, heads=4), "heads"),
        (lambda: heads.Cells(width=10, heads=4), "heads"),
        (lambda: LinearRegression(shots=(3, 2)), "shots"),
        (lambda: GaussianProcess(shots=(3, 2)), "shots"),
        (lambda: GaussianProcess(length_scales=(0.5, 0.1)), "length_scales"),
    ],
)
def test_bounds_in_the_wrong_order_and_heads_that_do_not_fit_are_refused(
    make: Any, what: str
) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert error.value.what == what


def test_a_network_that_reads_no_set_is_refused() -> None:
    for head in (heads.Linear(), heads.Attention(), heads.Memory(hidden=3)):
        with pytest.raises(InputError) as error:
            InContext().init(bound(FUNCTIONS, head), torch.Generator())
        assert error.value.remedy == "set model.head.name to transformer or cells"


@pytest.mark.ray  # draws
def test_a_picture_has_the_means_of_densities() -> None:
    case = CASES["in-context"] | {"family": {"name": "gaussian_process", "shots": [4, 4]}}
    recipe = config(case).recipe()
    figure = illustrate(recipe, prepare(recipe).meta)
    assert figure is not None
    for axes in figure.axes:
        drawn = {line.get_label(): line for line in axes.get_lines()}
        assert len(drawn["support points"].get_xdata()) == 4
        assert len(drawn["after 1 adaptation step"].get_ydata()) == 400
        function = torch.tensor(drawn["the function"].get_ydata())
        assert function.diff().abs().mean() < 0.05  # without the noise of deviation 0.1


@pytest.mark.ray  # draws
@pytest.mark.usefixtures("pictures")
def test_evaluations_of_several_numbers_of_points_are_drawn_by_them(tmp_path: Path) -> None:
    more = {
        f"points{n}": {"tasks": 4, "tasks_per_ticket": 4, "family": {"shots": [n, n]}}
        for n in (1, 2)
    }
    noisy = {"tasks": 4, "family": {"noise_variance": 2.0}}
    drawn: list[list[int]] = []
    draw = figures.evaluations

    def noted(scores: Any, shots: list[int], title: str) -> Any:
        drawn.append(shots)
        return draw(scores, shots, title)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "evaluations", noted)
        for name, evaluations in (("run", more), ("other", more | {"noisy": noisy}), ("few", {})):
            changes = {"output": str(tmp_path / name), "evaluations": evaluations}
            run.train(config(CASES["in-context"], outer__steps=1, **changes))
    assert drawn == [[3, 1, 2], []]
    assert (tmp_path / "run" / "figures" / "evaluations.png").exists()


def test_columns_are_standardised_by_the_support_set_alone() -> None:
    """Another unit changes nothing, nor does a column that is constant there."""
    head = heads.Transformer(width=8, depth=2, heads=2, standardise=True)
    problem, task = bound(FUNCTIONS, head), tasks(FUNCTIONS)
    task.support_x[..., 2] = 3.0
    meta = started(problem)
    before, after = predicted(problem, meta, task)
    scale, shift = torch.tensor([[7.0, 0.2, 1.0], [-1.0, 5.0, 2.0]]).double()
    moved = task._replace(
        support_x=scale * task.support_x + shift, query_x=scale * task.query_x + shift
    )
    torch.testing.assert_close(predicted(problem, meta, moved)[1], after, rtol=1e-6, atol=1e-9)
    moved.query_x[..., 2] += 1.0
    torch.testing.assert_close(predicted(problem, meta, moved)[1], after, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(before[:, :1].expand_as(before), before)  # no example, no unit


def test_cells_are_read_in_any_order_of_columns_and_units_and_constant_columns_are_not() -> None:
    problem, task = bound(FUNCTIONS, CELLS), tasks(FUNCTIONS)
    meta = started(problem)
    _, after = predicted(problem, meta, task)
    other = task._replace(support_x=task.support_x.flip(0), query_x=task.query_x.flip(0))
    assert (predicted(problem, meta, other)[1][0] - after[0]).abs().min() > 1e-4
    order, scale = torch.tensor([2, 0, 1]), torch.tensor([7.0, 0.2, 1.0]).double()
    moved = task._replace(
        support_x=(scale * task.support_x + 5)[..., order],
        query_x=(scale * task.query_x + 5)[..., order],
    )
    torch.testing.assert_close(predicted(problem, meta, moved)[1], after, rtol=1e-6, atol=1e-9)

    wider = bound(LinearRegression(inputs=5), CELLS)  # its weights are those of any width
    constant = [
        torch.cat([x, torch.full_like(x[..., :2], 4.0)], -1) for x in (task.support_x, task.query_x)
    ]
    with_them = task._replace(support_x=constant[0], query_x=constant[1])
    torch.testing.assert_close(predicted(wider, meta, with_them)[1], after, rtol=1e-6, atol=1e-9)


def test_made_numbers_are_standardised_by_the_support_rows_and_learned_as_a_density() -> None:
    family = TabularRegression(columns=(3, 12), shots=(20, 30), queries=16)
    generator = torch.Generator().manual_seed(0)
    problem = bound(family)
    for _ in range(5):
        task = family.sample(generator, 8, "train")
        problem.check(task)
        mean, deviation = task.support_y.mean(1), task.support_y.std(1, correction=0)
        torch.testing.assert_close(mean, torch.zeros(8, 1), atol=1e-4, rtol=0)
        torch.testing.assert_close(deviation, torch.ones(8, 1), atol=1e-3, rtol=0)
    same = torch.tensor([[2.0, 2.0, 2.0, 40.0]])
    assert by_support(same, 3).tolist() == [[0.0, 0.0, 0.0, 10.0]]
    flat = torch.zeros(8, 16, family.buckets)  # equal shares: nearly N(0, 1), which is the baseline
    found, expected = problem.loss(flat, task.query_y), problem.baselines(task)["normal"]
    assert (found - expected).abs().mean() < 0.1
    r2 = problem.measures["r2"]
    assert r2.value is not None
    assert r2.value(r2.pool(flat, task)) < 0.05


def test_made_tables_can_be_learned_and_number_their_classes_at_random() -> None:
    family = Tabular(columns=(3, 12), shots=(20, 30), queries=16, classes=4)
    generator = torch.Generator().manual_seed(0)
    problem, widths, ways = bound(family), set(), set()
    nearest, frequent, firsts = [], [], []
    for _ in range(30):
        task = family.sample(generator, 8, "train")
        problem.check(task)
        assert 20 <= task.support_x.shape[1] <= 30
        assert task.query_x.shape[1:] == (16, 12)
        present = (task.support_x != 0).flatten(0, 1).any(0)
        columns = int(present.nonzero().max()) + 1
        assert not task.query_x[..., columns:].any()
        widths.add(columns)
        ways.add(int(task.support_y.max()) + 1)
        nearest.append(nearest_neighbour(task).mean())
        frequent.append(most_frequent(task).mean())
        firsts.append((task.support_y == 0).float().mean())
    assert widths <= set(range(3, 13))
    assert len(widths) > 6
    assert ways == {2, 3, 4}
    assert torch.stack(nearest).mean() > torch.stack(frequent).mean() + 0.03
    assert 0.35 < torch.stack(firsts).mean() < 0.5  # the mean of 1/2, 1/3 and 1/4, half of them 1/2


def test_tables_are_predictable_by_a_column_or_by_near_rows_and_not_by_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 80, 5, generator=generator)
    noise = torch.randn(40, 80, generator=generator)
    assert predictable(x, noise).float().mean() < 0.1
    assert predictable(x, x[..., 0] + noise).all()  # a correlation of 0.7
    assert predictable(x[..., :2], x[..., 0].abs() + 0.1 * noise).all()  # a correlation of 0
    assert not predictable(torch.ones(3, 80, 5), noise[:3]).any()


def test_rules_ask_whether_two_columns_are_above_those_of_a_row() -> None:
    x = torch.rand(1, 40, 1, generator=torch.Generator().manual_seed(0))
    target = by_rules(torch.Generator().manual_seed(1), x)[0]
    steps = target[x[0, :, 0].argsort()].diff().abs() > 0.3  # other than by noise
    assert 1 <= int(steps.sum()) <= 6


@pytest.mark.parametrize(
    ("algorithm", "head"),
    [(Prototypical(), heads.LINEAR), (Matching(), heads.Attention()), (Relation(), heads.Pairs())],
)
@pytest.mark.parametrize("family", [Cipher(letters=4), Tabular(classes=3)])
def test_classes_without_an_example_are_refused_by_who_compares_with_each_class(
    family: Any, algorithm: Any, head: heads.Head
) -> None:
    """Half of the tickets of tables have two classes, however many there may be."""
    with pytest.raises(InputError, match="needs support examples of each class"):
        algorithm.init(bound(family, head), torch.Generator())
    algorithm.init(bound(Tabular(classes=2), head), torch.Generator())
