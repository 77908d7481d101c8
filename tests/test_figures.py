"""Pictures show the numbers they are given: lines, intervals, and each prediction told right or
wrong by a mark.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import GLYPHS, SINUSOID, config, context
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from metatrain import figures, inference
from metatrain.core import Task, Ticket, generator_for
from metatrain.evaluate import Score
from metatrain.metrics import ACCURACY, MSE
from metatrain.start import prepare

pytestmark = pytest.mark.usefixtures("pictures")


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    """The points of the line of that label."""
    (found,) = [drawn for drawn in axes.get_lines() if drawn.get_label() == label]
    x, y = np.asarray(found.get_xdata()), np.asarray(found.get_ydata())
    return x.tolist(), y.tolist()


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.findobj(Axes) for text in axes.texts]


@pytest.fixture
def make_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Make fonts of a name with these characters only. The fonts of this machine are matplotlib's
    own meanwhile.
    """
    known = font_manager.fontManager
    own = [entry for entry in known.ttflist if "mpl-data" in entry.fname]
    monkeypatch.setattr(known, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])

    def make(family: str, characters: str) -> Path:
        (path,) = (entry.fname for entry in own if entry.fname.endswith("DejaVuSans.ttf"))
        font = TTFont(path, lazy=True)
        for name in font["name"].names:
            if name.nameID in (1, 4):
                name.string = family
        for table in font["cmap"].tables:
            table.cmap = dict.fromkeys(map(ord, characters), "Omega")
        for tag in {"GSUB", "GPOS", "GDEF"} & set(font.keys()):
            del font[tag]
        font.save(tmp_path / f"{family}.ttf")
        return tmp_path / f"{family}.ttf"

    return make


def picture(name: str) -> Figure:
    """A picture with that name in regular, italic and bold letters."""
    image, sure = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.ones(1, 1)
    return figures.episode(
        [(image, name)], [(image, None, f"{name}.png")], [name], sure, sure, title=name
    )


def families(figure: Figure) -> set[tuple[str, ...]]:
    """The fonts that each of the texts may use, besides the first one."""
    return {tuple(text.get_fontfamily()[1:]) for text in figure.findobj(Text) if text.get_text()}


@pytest.mark.usefixtures("pictures")
def test_any_installed_font_that_has_the_characters_of_a_name_is_used(
    tmp_path: Path, make_font: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    for family, characters in (
        ("A Serif", "猫狗"),
        ("Some Hei", "鸟"),
        ("Some Sans", "猫狗"),
        ("Zen Sans", "猫狗"),
    ):
        font_manager.fontManager.addfont(make_font(family, characters))
    both = picture("猫狗cat")
    assert families(both) == {("Some Sans",)}
    figures.save(both, tmp_path / "both.png")
    split = picture("鸟猫")  # no font has both
    assert families(split) == {("Some Sans", "Some Hei")}
    figures.save(split, tmp_path / "split.png")
    assert families(picture("cat")) == {()}
    plain = Figure()  # as of a sweep, which `episode` and its like have not drawn
    plain.suptitle("狗")
    figures.save(plain, tmp_path / "plain.png")
    assert not caplog.messages  # nor that there is no bold face


@pytest.mark.usefixtures("pictures")
def test_a_font_is_found_that_was_installed_after_matplotlib_listed_the_fonts(
    tmp_path: Path,
    make_font: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    figures.save(picture("猫"), tmp_path / "before.png")
    (message,) = caplog.messages
    assert (
        "before.png lacks characters that no font here has: install one such as Noto Sans CJK SC"
        in message
    )
    caplog.clear()
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    installed = [str(broken), str(tmp_path / "removed.ttf"), str(make_font("Some Hei", "猫"))]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: installed)
    found = picture("猫")
    assert families(found) == {("Some Hei",)}
    figures.save(found, tmp_path / "after.png")
    assert not caplog.messages
    figures.save(picture("猫狗"), tmp_path / "half.png")
    assert len(caplog.messages) == 1


@pytest.mark.usefixtures("pictures")
def test_the_learning_curve_shows_training_and_validation_with_intervals(tmp_path: Path) -> None:
    noise = torch.rand(2400, generator=torch.Generator().manual_seed(0)).tolist()
    rows: list[dict[str, float]] = [
        {"step": i, "train/accuracy_before": 0.2, "train/accuracy_after": 0.5 + noise[i - 1] / 4}
        for i in range(1, 2401)
    ]
    rows[1199] |= {
        "val/accuracy_before": 0.21,
        "val/accuracy_after": 0.6,
        "val/accuracy_after_ci95": 0.05,
    }
    figure = figures.learning_curve(rows, ACCURACY, "a title")
    (axes,) = figure.axes
    assert axes.get_title() == "a title"
    assert axes.get_ylabel() == "accuracy (shaded: 95 % interval)"
    steps, means = line(axes, "training tasks, after adaptation")
    assert steps == [40.0 * i for i in range(1, 61)]
    blocks = torch.tensor([row["train/accuracy_after"] for row in rows]).double().view(60, 40)
    assert means == pytest.approx(blocks.mean(1).tolist())
    bands = [band for band in axes.collections if isinstance(band, PolyCollection)]
    heights = bands[1].get_paths()[0].vertices[:, 1]
    half = (1.96 * blocks.std(1) / math.sqrt(40)).tolist()
    assert heights.max() == pytest.approx(max(m + h for m, h in zip(means, half, strict=True)))
    assert line(axes, "validation tasks, before adaptation") == ([1200], [0.21])
    assert line(axes, "validation tasks, after adaptation") == ([1200], [0.6])
    assert sorted(set(bands[2].get_paths()[0].vertices[:, 1])) == pytest.approx([0.55, 0.65])
    assert figures.save(figure, tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")


SCORE = Score(
    metric=ACCURACY,
    mean=0.9,
    ci95=0.02,
    tasks=600,
    diverged=0,
    median=0.9,
    quartiles=(0.8, 1.0),
    norm="support",
    protocol="p",
    steps=[0, 1, 3],
    curve=[0.2, 0.8, 0.9],
    curve_ci95=[0.01, 0.03, 0.02],
    curve_diverged=[0, 0, 0],
    curve_median=[0.2, 0.8, 0.9],
    curve_quartiles=[(0.2, 0.2), (0.7, 0.9), (0.8, 1.0)],
    baselines={"nearest_neighbour_on_pixels": 0.5},
    differences={"nearest_neighbour_on_pixels": (0.4, 0.02)},
    measures={},
)
DETAILS = {
    "reliability": [
        {"confidence": 0.4, "accuracy": 0.5, "examples": 10},
        {"confidence": 0.9, "accuracy": 0.7, "examples": 30},
    ],
    "classes": [{"name": "shirt"}, {"name": "$coat$"}, {"name": 30 * "x"}],
    "confusion": [[3, 1, 0], [0, 0, 0], [0, 0, 2]],
}


def test_a_reliability_picture_has_a_point_for_each_bin_as_large_as_it() -> None:
    score = replace(SCORE, measures={"ece": 0.175}, details=DETAILS)
    (axes,) = figures.reliability([("support", score)], "t").axes
    diagonal, line = axes.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert line.get_xydata().tolist() == [[0.4, 0.5], [0.9, 0.7]]
    assert line.get_label() == "support: ECE 0.1750, 40 predictions"
    (points,) = axes.collections
    small, large = points.get_sizes()
    assert large == pytest.approx(3 * small)


def test_a_confusion_matrix_shows_shares_of_each_class() -> None:
    axes, _ = figures.confusion(replace(SCORE, details=DETAILS), "t").axes
    (image,) = axes.images
    assert image.get_array().tolist() == [[75, 25, 0], [0, 0, 0], [0, 0, 100]]
    assert axes.get_title() == "t\n6 predictions in 600 tasks; a row adds to 100 %"
    assert [text.get_text() for text in axes.texts] == ["75", "25", "100"]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["shirt", "$coat$", 21 * "x" + "..."]


def test_the_adaptation_curve_shows_each_inner_step_with_its_interval() -> None:
    (axes,) = figures.adaptation_curve([("statistics: support", SCORE)], "t").axes
    (bars,) = axes.containers
    assert bars.get_label() == "statistics: support"
    points, _, (intervals,) = bars.lines
    assert points.get_xydata().tolist() == [[0, 0.2], [1, 0.8], [3, 0.9]]
    assert [segment[:, 1].tolist() for segment in intervals.get_segments()] == [
        pytest.approx([0.19, 0.21]),
        pytest.approx([0.77, 0.83]),
        pytest.approx([0.88, 0.92]),
    ]
    assert line(axes, "nearest neighbour on pixels")[1] == [0.5, 0.5]
    assert axes.get_ylabel() == "accuracy (95 % interval, 600 tasks)"
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_baselines_differ_in_their_dashes_and_outer_steps_are_whole() -> None:
    score = replace(SCORE, baselines={f"strategy_{i}": i / 9 for i in range(6)})
    (axes,) = figures.adaptation_curve([("after", score)], "t").axes
    drawn = [each for each in axes.get_lines() if str(each.get_label()).startswith("strategy")]
    assert [each.get_linestyle() for each in drawn[:3]] == ["--", ":", "-."]
    rows = [{"step": i, "train/mse_after": 1.0} for i in range(1, 5)]
    (axes,) = figures.learning_curve(rows, MSE, "t").axes
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_evaluations_are_drawn_by_shots_with_the_baselines_of_each() -> None:
    scores = [
        (f"shots{n}", replace(SCORE, mean=0.5 + n / 20, baselines={"ridge": 0.6, f"of {n}": 0.1}))
        for n in (9, 0, 4)
    ]
    (axes,) = figures.evaluations(scores, [9, 0, 4], "t").axes
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[0, 0.5], [4, 0.7], [9, 0.95]]
    assert line(axes, "ridge") == ([0, 4, 9], [0.6, 0.6, 0.6])
    assert line(axes, "of 4")[1][1] == 0.1
    assert math.isnan(line(axes, "of 4")[1][0])
    (axes,) = figures.evaluations(scores, [], "t").axes
    assert [text.get_text() for text in axes.get_xticklabels()] == ["shots9", "shots0", "shots4"]
    assert line(axes, "ridge")[0] == [0, 1, 2]


def test_a_legend_of_many_evaluations_lies_outside_of_the_axes() -> None:
    few, many = (
        figures.adaptation_curve([(f"evaluation {i}", SCORE) for i in range(n)], "t")
        for n in (3, 16)
    )
    assert few.axes[0].get_legend() is not None
    assert many.axes[0].get_legend() is None
    assert len(many.legends[0].get_texts()) == 16 + 1
    assert len({str(bars.lines[0].get_color()) for bars in many.axes[0].containers}) == 16


def test_an_episode_tells_right_from_wrong_without_colour() -> None:
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 6, 6)
    before = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.55, 0.45]])
    after = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.75, 0.25]])
    figure = figures.episode(
        support=[(images[0], "cat"), (images[1], "dog")],
        query=[(images[2], "dog", "dog"), (images[3], "cat", "cat"), (images[0], None, "file.png")],
        classes=["cat", "dog"],
        before=before,
        after=after,
        title="mine",
    )
    assert texts(figure) == [
        "before: ✗ cat 60%",
        "after: ✓ dog 90%",
        "before: ✗ dog 70%",
        "after: ✗ dog 80%",
        "before: cat 55%",  # its class is not known
        "after: cat 75%",
    ]
    shown = [axes for axes in figure.findobj(Axes) if axes.get_images()]
    assert [axes.get_title() for axes in shown] == ["cat", "dog", "dog", "cat", "file.png"]
    assert [int(axes.get_images()[0].get_array()[0, 0]) for axes in shown] == [0, 1, 2, 3, 0]


def test_fits_show_the_function_the_points_and_the_curves() -> None:
    x = torch.linspace(-5, 5, 20).expand(2, 20)[..., None]
    task = Task(x[:, :3], x[:, :3] ** 2, x, x**2)
    figure = figures.fits(task, [(0, 0 * x), (1, x), (10, x**2 + 1)], "t")
    for t, axes in enumerate(figure.axes):
        assert line(axes, "support points") == (
            task.support_x[t, :, 0].tolist(),
            task.support_y[t, :, 0].tolist(),
        )
        for label, y in (
            ("the function", x**2),
            ("before adaptation", 0 * x),
            ("after 1 adaptation step", x),
            ("after 10 adaptation steps", x**2 + 1),
        ):
            assert line(axes, label) == (x[t, :, 0].tolist(), y[t, :, 0].tolist())


@pytest.mark.ray
def test_each_class_is_shown_however_many_there_are_and_however_long_their_names() -> None:
    classes = [f"{'a long name ' * 3}{i:02d}" for i in range(25)]
    image, certain = torch.zeros(1, 4, 4, dtype=torch.uint8), torch.eye(25)
    pairs = [
        (image, name) for i, name in enumerate(classes) for _ in range(9 if i < 2 else 1)
    ]  # unequally many
    query = [(image, None, f"{'a photograph of ' * 3}{i:02d}.png") for i in range(25)]
    figure = figures.episode(
        support=pairs, query=query, classes=classes, before=certain, after=certain, title="t"
    )
    titles = [axes.get_title() for axes in figure.findobj(Axes) if axes.get_images()]
    short = [f"a long n…name {i:02d}" for i in range(25)]
    assert titles == [*short, *(f"a photog… {i:02d}.png" for i in range(25))]
    assert texts(figure)[1::2] == [f"after: {name} 100%" for name in short]
    assert figure.texts[1].get_text().endswith("(25 of 41)")


def test_of_many_images_some_of_each_class_are_shown() -> None:
    images = torch.zeros(75, 1, 4, 4, dtype=torch.uint8)
    labels = ["ABCDE"[i // 15] for i in range(75)]
    pairs = list(zip(images, labels, strict=True))
    probabilities = torch.eye(5)[[i // 15 for i in range(75)]]
    figure = figures.episode(
        support=pairs,
        query=[(image, label, label) for image, label in pairs],
        classes=list("ABCDE"),
        before=probabilities,
        after=probabilities,
        title="t",
    )
    titles = [axes.get_title() for axes in figure.findobj(Axes) if axes.get_images()]
    assert titles == sorted(titles[:20]) + sorted(titles[20:])
    assert [titles[:20].count(c) for c in "ABCDE"] == 5 * [4]
    assert [titles[20:].count(c) for c in "ABCDE"] == 5 * [8]
    assert all("✓" in text for text in texts(figure))  # each prediction stands under its own image
    title, *headings = [text.get_text() for text in figure.texts]
    assert title == "t"
    assert [heading[-10:] for heading in headings] == ["(20 of 75)", "(40 of 75)"]


@pytest.mark.parametrize("names", [["a", "b"], [f"a long class name {i}" for i in range(7)]])
@pytest.mark.parametrize("queries", [1, 23])
@pytest.mark.ray
def test_no_text_of_an_episode_is_cut_off_or_lies_over_another(
    names: list[str], queries: int
) -> None:
    image, probabilities = (
        torch.zeros(3, 8, 8, dtype=torch.uint8),
        torch.eye(len(names))[[0] * queries],
    )
    figure = figures.episode(
        support=[(image, name) for name in names],
        query=[(image, names[-1], names[-1])] * queries,
        classes=names,
        before=probabilities,
        after=probabilities,
        title="Predictions of a run for some images",
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = [text for text in figure.findobj(Text) if text.get_text()]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in drawn]
    assert len(boxes) == 3 + len(names) + 3 * queries
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i]), drawn[i].get_text()


def test_the_last_block_of_a_curve_has_the_last_step() -> None:
    rows = [
        {"step": i, "train/mse_before": 1.0, "train/mse_after": float(i)} for i in range(1, 1200)
    ]
    steps, means = line(
        figures.learning_curve(rows, MSE, "t").axes[0], "training tasks, after adaptation"
    )
    assert steps[-1] == 1199
    assert means[-1] == pytest.approx(sum(range(1179, 1200)) / 21)
    (point,) = line(
        figures.learning_curve(rows[:1], MSE, "t").axes[0], "training tasks, after adaptation"
    )[0]
    assert point == 1


def test_a_runs_example_is_an_episode_of_its_evaluation_with_the_networks_predictions() -> None:
    recipe = config(
        GLYPHS, evaluation__family={"queries": 2}, evaluation__algorithm={"inner_steps": 3}
    ).recipe()
    meta = prepare(recipe).meta
    figure = inference.illustrate(recipe, meta)
    setting, ticket = recipe.setting("score"), Ticket("score", "test", 0, 0)
    task = setting.family.sample(generator_for(setting.seed, ticket, "picture"), 1, "test")
    problem = setting.family.bind(recipe.model, setting.norm, "reference")
    before, *_, after = setting.algorithm.adapt(problem, meta, task, context())
    expected = []
    for y, *predictions in zip(
        task.query_y[0],
        *(problem.predict(p, task, context())[0].softmax(-1) for p in (before, after)),
        strict=True,
    ):
        for when, p in zip(("before", "after"), predictions, strict=True):
            mark = "✓" if p.argmax() == y else "✗"
            expected.append(f"{when}: {mark} {'ABCDE'[p.argmax()]} {100 * float(p.max()):.0f}%")
    assert texts(figure) == expected
    assert len(expected) == 20
    assert expected[::2] != [text.replace("after", "before") for text in expected[1::2]]


def test_a_sinusoids_example_shows_what_was_fitted() -> None:
    recipe = config(SINUSOID, evaluation__algorithm={"inner_steps": 4}).recipe()
    meta = prepare(recipe).meta
    figure = inference.illustrate(recipe, meta)
    setting, ticket = recipe.setting("score"), Ticket("score", "test", 0, 0)
    family = replace(setting.family, queries=400)
    task = family.sample(generator_for(setting.seed, ticket, "picture"), 3, "test")
    problem = family.bind(recipe.model, setting.norm, "reference")
    phi = list(setting.algorithm.adapt(problem, meta, task, context()))
    for step, label in (
        (0, "before adaptation"),
        (1, "after 1 adaptation step"),
        (4, "after 4 adaptation steps"),
    ):
        y = problem.predict(phi[step], task, context())
        for t, axes in enumerate(figure.axes):
            x, drawn = line(axes, label)
            by_x = sorted(zip(task.query_x[t, :, 0].tolist(), y[t, :, 0].tolist(), strict=True))
            assert x == [point[0] for point in by_x]
            assert drawn == pytest.approx([point[1] for point in by_x], rel=1e-4, abs=1e-5)
    assert [len(axes.get_lines()) for axes in figure.axes] == [
        5,
        5,
        5,
    ]  # function, before, after 1 and 4 steps, points
    for axes in figure.axes:
        points, function = line(axes, "support points"), line(axes, "the function")
        assert len(points[0]) == 5
        nearest = np.interp(points[0], *function)
        assert np.abs(nearest - points[1]).max() < 0.05


def test_forecasts_stand_where_the_query_set_is() -> None:
    y = torch.arange(8.0).expand(2, 8)[..., None]
    task = Task(y[:, :5], y[:, :5], y[:, 5:], y[:, 5:])
    figure = figures.forecasts(task, [(0, 0 * y[:, 5:]), (5, y[:, 5:] + 1)], "t")
    for axes in figure.axes:
        assert line(axes, "the series") == ([*range(8)], [*range(8)])
        assert line(axes, "support set") == ([*range(5)], [*range(5)])
        assert line(axes, "before adaptation") == ([5, 6, 7], [0, 0, 0])
        assert line(axes, "after 5 adaptation steps") == ([5, 6, 7], [6, 7, 8])


def test_walks_end_where_episodes_ended() -> None:
    positions = torch.tensor([[0.0, 0.0], [0.1, 0.2], [0.3, 0.3]]).expand(2, 4, 3, 2)
    alive = torch.tensor([1.0, 1.0, 0.0]).expand(2, 4, 3)
    figure = figures.walks(torch.tensor([[0.1, 0.2], [-0.4, 0.3]]), [(0, positions, alive)], "t")
    for axes, goal in zip(figure.axes, ([0.1, 0.2], [-0.4, 0.3]), strict=True):
        x, y = line(axes, "before adaptation")
        assert (x, y) == (pytest.approx([0, 0.1]), pytest.approx([0, 0.2]))
        assert line(axes, "the goal") == ([pytest.approx(goal[0])], [pytest.approx(goal[1])])
        assert len(axes.get_lines()) == 4 + 2
    expert = positions[:, :1, :2], alive[:, :1, :2]
    figure = figures.walks(torch.zeros(2, 2), [(0, positions, alive)], "t", expert=expert)
    assert line(figure.axes[0], "the expert") == (pytest.approx([0, 0.1]), pytest.approx([0, 0.2]))


def test_a_trial_shows_each_step_between_its_levels() -> None:
    (axes,) = figures.trial([(0, torch.tensor([0.5, 0.6]))], {"best_arm": 0.8}, "t").axes
    assert line(axes, "the policy") == ([1, 2], pytest.approx([0.5, 0.6]))
    assert line(axes, "best arm")[1] == [0.8, 0.8]
    (axes,) = figures.trial([(0, torch.tensor([0.5])), (1, torch.tensor([0.7]))], {}, "t").axes
    assert line(axes, "before adaptation") == ([1], [0.5])
    assert line(axes, "after 1 adaptation step") == ([1], [pytest.approx(0.7)])


def test_strategies_of_exploration_differ_in_more_than_a_colour() -> None:
    others, policy = {f"strategy_{i}": torch.rand(30) for i in range(5)}, [(0, torch.rand(30))]
    axes = figures.trial_and_regret(policy, {}, policy, others, "t").axes[1]
    lines = {str(each.get_label()): each for each in axes.get_lines()}
    shown = [lines[name.replace("_", " ")] for name in others]
    assert len({str(each.get_marker()) for each in shown}) == 5
    assert len({each.get_linestyle() for each in shown}) >= 4  # dashes of one's own are "--"
    x, y = line(axes, "strategy 3")
    assert (x[0], x[-1]) == (1, 30)
    assert y == pytest.approx(others["strategy_3"].cumsum(0).tolist())


def test_what_an_algorithm_learned_has_a_line_for_each_tensor() -> None:
    rows = [
        {"step": i, "train/loss_after": 1.0, "algorithm.rate.a": 0.1 * i, "algorithm.rate.b": -i}
        for i in (1, 2)
    ]
    (axes,) = figures.learned_parameters(rows, "t").axes
    assert line(axes, "rate.a") == ([1, 2], [0.1, 0.2])
    assert line(axes, "rate.b") == ([1, 2], [-1, -2])


def test_a_pretraining_shows_loss_and_metric_by_step() -> None:
    rows = [
        {"step": step, "train/loss_after": 6.0 / step, "train/accuracy_after": step / 10}
        for step in range(1, 5)
    ]
    loss, accuracy = figures.pretraining_curve(rows, ACCURACY, "demo").axes
    assert loss.get_ylabel().startswith("loss")
    assert accuracy.get_ylabel().startswith("accuracy")
    assert list(loss.lines[0].get_ydata()) == [6.0, 3.0, 2.0, 1.5]
    same = [{"step": 1, "train/loss_after": 0.2, "train/mse_after": 0.2}]
    (errors,) = figures.pretraining_curve(same, MSE, "demo").axes
    assert errors.get_ylabel() == "mse"


def test_a_logarithmic_axis_of_more_than_a_decade_has_labels_between_powers_of_ten() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0.15, 6.0])
    figures.scale(axes, MSE)
    figure.draw_without_rendering()
    shown = {tick.get_text() for tick in axes.yaxis.get_ticklabels(which="minor")}
    assert {"0.2", "0.3", "2", "3"} <= shown
