"""Pictures of runs, from plain data. Each function returns a matplotlib figure; `save` writes
it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any, ParamSpec

import numpy as np
import torch
from matplotlib import colormaps, font_manager, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter, MaxNLocator
from rich.cells import cell_len
from torch import Tensor

from metatrain.core import Task
from metatrain.evaluate import Score
from metatrain.metrics import Metric
from metatrain.names import shortened

log = logging.getLogger(__name__)
# Many Chinese fonts have no bold face. That a text is in the regular one is no news.
logging.getLogger(font_manager.__name__).addFilter(
    lambda record: "Failed to find font weight" not in str(record.msg)
)

BLOCKS = 60  # points of a training curve: each a mean over outer steps, with its interval
RIGHT, WRONG, UNKNOWN = "#0072b2", "#d55e00", "0.3"  # told apart by a tick and a cross as well
MOST_SUPPORT, MOST_QUERIES = 20, 40
WIDEST = 12.0  # inches, of an episode
LONGEST = 16  # columns of a class's or a file's name
# that have Chinese and Japanese characters, and are chosen before others that have them
WIDE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "PingFang SC",
    "Microsoft YaHei",
)

ALGORITHM = "algorithm."  # of the metrics that are what an algorithm has learned

Row = Mapping[str, float]  # one line of metrics.jsonl
P = ParamSpec("P")


def as_written(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Names are shown as they are: a $ is no formula, and other scripts get a font that has them,
    if there is one.
    """

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context({"text.parse_math": False}):
            figure = draw(*args, **kwargs)
        _add_fonts(figure)
        return figure

    return drawn


@as_written
def learning_curve(rows: Sequence[Row], metric: Metric, title: str) -> Figure:
    """The metric against outer steps on training and on validation tasks, before and after
    adaptation.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for when, colour in (("before", "tab:gray"), ("after", "tab:blue")):
        steps, means, widths = _blocks(rows, f"train/{metric.name}_{when}")
        if steps:
            _band(
                axes, steps, means, widths, color=colour, label=f"training tasks, {when} adaptation"
            )
    validated = [row for row in rows if f"val/{metric.name}_after" in row]
    if validated:
        steps = [row["step"] for row in validated]
        after, width = (
            [row.get(f"val/{metric.name}_{name}", 0.0) for row in validated]
            for name in ("after", "after_ci95")
        )
        before = [row.get(f"val/{metric.name}_before", math.nan) for row in validated]
        if not all(map(math.isnan, before)):
            axes.plot(
                steps,
                before,
                color="black",
                linestyle=":",
                label="validation tasks, before adaptation",
            )
        _band(
            axes,
            steps,
            after,
            width,
            color="tab:orange",
            marker="o",
            label="validation tasks, after adaptation",
        )
    axes.set(xlabel="outer step", ylabel=f"{metric.name} (shaded: 95 % interval)", title=title)
    scale(axes, metric)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


@as_written
def adaptation_curve(scores: Sequence[tuple[str, Score]], title: str) -> Figure:
    """The metric on held-out tasks after each adaptation step, one line per (label, score).

    It is the mean with its interval; if tasks diverged, the median and the quartiles of the others.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    diverged = any(any(score.curve_diverged) for _, score in scores)
    for label, score in scores:
        if diverged:
            low, high = zip(*score.curve_quartiles, strict=True)
            _between(axes, score.steps, score.curve_median, low, high, marker="o", label=label)
        else:
            axes.errorbar(
                score.steps, score.curve, yerr=score.curve_ci95, marker="o", capsize=3, label=label
            )
    score = scores[0][1]
    for name, value in score.baselines.items():
        axes.axhline(value, color="tab:gray", linestyle="--", label=name.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    shown = f"95 % interval, {score.tasks} tasks"
    if diverged:
        title = (
            f"{title}; {max(score.diverged for _, score in scores)} of {score.tasks} tasks diverged"
        )
        shown = "median and quartiles of the others"
    axes.set(xlabel="adaptation step", ylabel=f"{score.metric.name} ({shown})", title=title)
    axes.title.set_fontsize("medium")
    scale(axes, score.metric)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


@as_written
def episode(
    support: Sequence[tuple[Tensor, str]],
    query: Sequence[tuple[Tensor, str | None, str]],
    classes: Sequence[str],
    before: Tensor,
    after: Tensor,
    title: str,
) -> Figure:
    """The images of one episode, [C, H, W] uint8 each, with their labels and what was predicted.

    `support` are (image, label), `query` (image, label or None, what stands above it). `before` and
    `after` adaptation are probabilities [Q, classes]. A prediction that is right has a tick, one
    that is wrong a cross; where the label of a query image is None it has neither. Of many images
    some are shown, at least one of each class of the support set.
    """
    learned, shown = (
        _some_of_each([label for _, label in support], MOST_SUPPORT),
        _spaced(len(query), MOST_QUERIES),
    )
    headings = (
        f"Support set: what the network adapts to{_part(len(learned), len(support))}",
        f"Query images: predictions before and after adaptation{_part(len(shown), len(query))}",
    )
    support, query = [support[i] for i in learned], [query[i] for i in shown]
    short = shortened([*classes, *(caption for *_, caption in query)], LONGEST)
    # All in inches: matplotlib's own layouts cut off or overlap texts of this many images.
    longest = max(cell_len(short[name]) for name in classes)
    side, heading, above, below = 1.4, 0.35, 0.3, 0.5  # of an image, and of the texts around it
    step = max(side + 0.15, 0.075 * (longest + len("before: ✗  100%")))
    columns = min(max(len(classes), 4), int(WIDEST / step))
    rows = [math.ceil(len(images) / columns) for images in (support, query)]
    width = columns * step + 0.2
    height = 0.4 + 2 * heading + rows[0] * (above + side) + 0.1 + rows[1] * (above + side + below)
    figure = Figure(figsize=(width, height))
    figure.text(0.5, 1 - 0.2 / height, title, ha="center", va="center", fontsize="medium")

    def tiles(top: float, text: str, count: int, row_height: float) -> list[Axes]:
        """Places for images, under a heading at `top` inches."""
        figure.text(
            0.5, 1 - (top + heading / 2) / height, text, ha="center", va="center", fontsize="small"
        )
        corners = [
            (
                0.1 + (i % columns) * step + (step - side) / 2,
                top + heading + i // columns * row_height + above + side,
            )
            for i in range(count)
        ]
        return [
            figure.add_axes((x / width, 1 - y / height, side / width, side / height))
            for x, y in corners
        ]

    for axes, (image, label) in zip(
        tiles(0.4, headings[0], len(support), above + side), support, strict=True
    ):
        _show(axes, image)
        axes.set_title(short[label], fontsize="small")
    top = 0.4 + heading + rows[0] * (above + side) + 0.1
    lower = tiles(top, headings[1], len(query), above + side + below)
    for i, axes, (image, truth, caption) in zip(shown, lower, query, strict=True):
        _show(axes, image)
        axes.set_title(
            short[caption], fontsize="small", style="normal" if truth is not None else "italic"
        )
        for line, (when, probabilities) in enumerate((("before", before[i]), ("after", after[i]))):
            finite = bool(probabilities.isfinite().all())  # nan is never a label
            predicted = classes[int(probabilities.argmax())] if finite else None
            right = finite and predicted == truth
            mark, colour = (
                ("", UNKNOWN) if truth is None else ("✓ ", RIGHT) if right else ("✗ ", WRONG)
            )
            percent = f" {100 * float(probabilities.max()):.0f}%" if finite else ""
            text = f"{when}: {mark}{'none' if predicted is None else short[predicted]}{percent}"
            weight = "bold" if when == "after" else "normal"
            style: dict[str, Any] = {
                "ha": "center",
                "va": "top",
                "fontsize": 8,
                "color": colour,
                "weight": weight,
            }
            axes.text(0.5, -0.05 - 0.14 * line, text, transform=axes.transAxes, **style)
    return figure


@as_written
def fits(task: Task, predictions: Sequence[tuple[int, Tensor]], title: str) -> Figure:
    """Curves fitted to the support points of T functions of one variable; (adaptation step, [T, Q,
    1]) each.
    """
    tasks = len(task.support_x)
    figure = Figure(figsize=(3.6 * tasks, 3.6), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    styles = [(":", "tab:gray"), ("--", "tab:blue"), ("-", "tab:orange")]
    for t, axes in enumerate(np.ravel(figure.subplots(1, tasks, sharey=True))):
        axes.plot(
            task.query_x[t, :, 0],
            task.query_y[t, :, 0],
            color="0.75",
            linewidth=5,
            label="the function",
        )
        for (step, y), (line, colour) in zip(predictions, styles[-len(predictions) :], strict=True):
            axes.plot(
                task.query_x[t, :, 0], y[t, :, 0], color=colour, linestyle=line, label=when(step)
            )
        axes.plot(
            task.support_x[t, :, 0],
            task.support_y[t, :, 0],
            "k^",
            markersize=7,
            label="support points",
        )
        axes.set_xlabel("x")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("y")
    _legend_below(figure)
    return figure


@as_written
def forecasts(task: Task, predictions: Sequence[tuple[int, Tensor]], title: str) -> Figure:
    """T series, their support set's part and the forecasts of the rest; (adaptation step, [T, Q,
    1]) each.
    """
    tasks, seen = task.support_y.shape[:2]
    figure = Figure(figsize=(3.6 * tasks, 3.6), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    ahead = np.arange(seen, seen + task.query_y.shape[1])
    for t, axes in enumerate(np.ravel(figure.subplots(1, tasks, sharey=True))):
        whole = torch.cat([task.support_y[t, :, 0], task.query_y[t, :, 0]])
        axes.plot(whole, color="0.75", linewidth=5, label="the series")
        axes.plot(task.support_y[t, :, 0], "k^", markersize=5, label="support set")
        for (step, y), (line, colour) in zip(
            predictions, [("--", "tab:blue"), ("-", "tab:orange")], strict=True
        ):
            axes.plot(ahead, y[t, :, 0], color=colour, linestyle=line, marker=".", label=when(step))
        axes.set_xlabel("time")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("y")
    _legend_below(figure)
    return figure


@as_written
def agreement(
    truth: Tensor,
    predictions: Sequence[tuple[int, Tensor]],
    names: Sequence[str],
    quantity: str,
    title: str,
) -> Figure:
    """Predicted against true numbers [T, Q] of T named tasks; (adaptation step, [T, Q]) each."""
    figure = Figure(
        figsize=(max(3.6 * len(names), 6.0), 3.9), layout="constrained"
    )  # as wide as the legend
    figure.suptitle(title, fontsize="medium")
    short = shortened([*names, quantity], LONGEST)
    styles = [("s", "tab:blue"), ("o", "tab:orange")]
    for t, axes in enumerate(np.ravel(figure.subplots(1, len(names), sharex=True, sharey=True))):
        axes.axline(
            (float(truth[t, 0]), float(truth[t, 0])),
            slope=1,
            color="0.75",
            linewidth=5,
            label="no error",
        )
        for (step, predicted), (marker, colour) in zip(
            predictions, styles[-len(predictions) :], strict=True
        ):
            axes.plot(truth[t], predicted[t], marker, color=colour, alpha=0.8, label=when(step))
        axes.set_title(short[names[t]], fontsize="small")
        axes.set_xlabel(f"true {short[quantity]}")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel(f"predicted {short[quantity]}")
    _legend_below(figure)
    return figure


@as_written
def walks(places: Tensor, found: Sequence[tuple[int, Tensor, Tensor]], title: str) -> Figure:
    """Walks in the plane to T `places` [T, 2]: (adaptation step, positions [T, N, H, 2], alive [T,
    N, H]) each.
    """
    tasks = len(places)
    figure = Figure(figsize=(3.6 * tasks, 4.0), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    colours = ["tab:gray", "tab:blue", "tab:orange"]
    for t, axes in enumerate(np.ravel(figure.subplots(1, tasks, sharey=True, sharex=True))):
        for (step, positions, alive), colour in zip(found, colours[-len(found) :], strict=True):
            for n in range(min(5, positions.shape[1])):
                x, y = positions[t, n, alive[t, n].bool()].T
                axes.plot(
                    x, y, color=colour, alpha=0.6, linewidth=1, label=when(step) if n == 0 else None
                )
        axes.plot(*places[t], "k*", markersize=14, label="the goal")
        axes.plot(0, 0, "ko", markersize=5, label="the start")
        axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axes.grid(alpha=0.3)
    _legend_below(figure)
    return figure


@as_written
def trial(lines: Sequence[tuple[int, Tensor]], levels: Mapping[str, float], title: str) -> Figure:
    """The mean reward of each step of an episode, (adaptation step, [H]) each, between levels to
    compare it with.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for (step, rewards), colour in zip(
        lines, ["tab:blue", "tab:orange"][-len(lines) :], strict=True
    ):
        label = when(step) if len(lines) > 1 else "the policy"
        axes.plot(range(1, len(rewards) + 1), rewards, color=colour, marker="o", label=label)
    for (name, level), style in zip(levels.items(), ["--", ":", "-."], strict=False):
        axes.axhline(level, color="tab:gray", linestyle=style, label=name.replace("_", " "))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="step of the episode", ylabel="mean reward", title=title)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return figure


@as_written
def learned_parameters(rows: Sequence[Row], title: str) -> Figure:
    """What an algorithm learns besides the network, such as inner rates: the mean of each tensor by
    outer step.
    """
    names = sorted({name for row in rows for name in row if name.startswith(ALGORITHM)})
    figure = Figure(figsize=(9, max(4.2, 0.25 * len(names))), layout="constrained")
    axes = figure.subplots()
    if names:
        axes.set_prop_cycle(color=colormaps["turbo"](np.linspace(0, 1, len(names))))
    found = [row for row in rows if any(name in row for name in names)]
    for name in names:
        values = [row.get(name, math.nan) for row in found]
        axes.plot([row["step"] for row in found], values, label=name.removeprefix(ALGORITHM))
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel="outer step", ylabel="mean over the tensor", title=title)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="x-small")
    axes.grid(alpha=0.3)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _add_fonts(figure)  # a picture of a sweep has none yet
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=120)
    if any("missing from font" in str(warning.message) for warning in caught):
        log.warning(
            "%s lacks characters that no font here has: install one such as %s", path, WIDE_FONTS[0]
        )
    return path


def _add_fonts(figure: Figure) -> None:
    """Let texts fall back to installed fonts that have the characters that their own font lacks."""
    alike: dict[tuple[str, ...], list[Text]] = {}  # texts of one font
    for text in figure.findobj(lambda artist: isinstance(artist, Text)):
        assert isinstance(text, Text)
        alike.setdefault(
            (text.get_fontstyle(), str(text.get_fontweight()), *text.get_fontfamily()), []
        ).append(text)
    for texts in alike.values():
        font = texts[0].get_fontproperties()
        families = [name for name in font.get_family() if _face(name, font)] or [
            fontManager.defaultFamily["ttf"]
        ]
        lacking = set("".join(text.get_text() for text in texts)) - {"\n"}
        for name in families:
            lacking -= _drawn(lacking, _face(name, font))
        if not lacking:
            continue
        added, rest = _families_with(lacking, font)
        if rest and _find_new_fonts():
            added, _ = _families_with(lacking, font)
        for text in texts:
            text.set_fontfamily([*families, *added])


def _families_with(characters: set[str], font: FontProperties) -> tuple[list[str], set[str]]:
    """Few families that have these characters in the style of `font`, and the characters that none
    has.
    """
    faces: dict[tuple[str, int], set[str]] = {}
    for entry in fontManager.ttflist:  # a face is listed under each of its names
        faces.setdefault((entry.fname, getattr(entry, "index", 0)), set()).add(entry.name)
    names = {name for face, called in faces.items() if _drawn(characters, face) for name in called}
    # A font of last resort has a box for every character.
    known = sorted(
        (name for name in names if "lastresort" not in name.replace(" ", "").lower()), key=_rank
    )
    drawn = {name: _drawn(characters, _face(name, font)) for name in known}
    found, rest = [], characters
    while rest:
        best = max(known, key=lambda name: len(drawn[name] & rest), default=None)
        if best is None or not drawn[best] & rest:
            break
        found.append(best)
        rest = rest - drawn[best]
    return found, rest


def _rank(family: str) -> tuple[int, bool, str]:
    """The order in which families with the same characters are chosen."""
    wide = WIDE_FONTS.index(family) if family in WIDE_FONTS else len(WIDE_FONTS)
    return wide, "sans" not in family.lower(), family


def _face(family: str, font: FontProperties) -> tuple[str, int] | None:
    """The file, and the number in it, of the face of a family that matplotlib takes for `font`."""
    font = font.copy()
    font.set_family(family)
    try:
        path = fontManager.findfont(font, fallback_to_default=False)
    except ValueError:  # there is no such family
        return None
    return str(path), getattr(path, "face_index", 0)


def _drawn(characters: set[str], face: tuple[str, int] | None) -> set[str]:
    """Those of the characters that a face has."""
    if face is None:
        return set()
    path, index = face
    try:
        font = (
            FT2Font(path, face_index=index) if index else FT2Font(path)
        )  # matplotlib < 3.11 knows one face a file
    except (OSError, RuntimeError):  # it was removed, or is no font
        return set()
    return {character for character in characters if font.get_char_index(ord(character))}


def _find_new_fonts() -> bool:
    """Add the fonts that were installed since matplotlib cached its list; whether there were
    any.
    """
    listed = len(fontManager.ttflist)
    for path in sorted(
        set(font_manager.findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}
    ):
        with suppress(
            Exception
        ):  # as matplotlib does: a font that it cannot read or draw, such as one of bitmaps
            fontManager.addfont(path)
    return len(fontManager.ttflist) > listed


def _blocks(rows: Sequence[Row], name: str) -> tuple[list[float], list[float], list[float]]:
    """Last step, mean and half its 95 % interval (0 of fewer than four rows) of blocks, the last
    one being longer.
    """
    found = [row for row in rows if name in row]
    size = max(1 if len(found) < 40 else 4, len(found) // BLOCKS)
    steps, means, widths = [], [], []
    ends = [*range(size, len(found) - size + 1, size), len(found)] if found else []
    for start, end in pairwise([0, *ends]):
        values = [row[name] for row in found[start:end]]
        steps.append(found[end - 1]["step"])
        means.append(mean(values))
        widths.append(1.96 * stdev(values) / math.sqrt(len(values)) if len(values) >= 4 else 0.0)
    return steps, means, widths


def _band(
    axes: Axes, x: list[float], y: list[float], width: list[float], color: str, **style: Any
) -> None:
    if len(x) == 1:
        style = {"marker": "o"} | style
    low, high = ([a + sign * w for a, w in zip(y, width, strict=True)] for sign in (-1, 1))
    _between(axes, x, y, low, high, color=color, **style)


def _between(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    **style: Any,
) -> None:
    """A line in a shaded band of its colour."""
    (line,) = axes.plot(x, y, **style)
    axes.fill_between(x, low, high, color=line.get_color(), alpha=0.25, linewidth=0)


def when(step: int) -> str:
    """How a step of adaptation is called: a step of the inner loop, or an example that was read."""
    return {0: "before adaptation", 1: "after 1 adaptation step"}.get(
        step, f"after {step} adaptation steps"
    )


def _legend_below(figure: Figure) -> None:
    """One legend for all axes, which show the same."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small")


def _show(axes: Axes, image: Tensor) -> None:
    """[C, H, W] uint8 with a frame, so that white paper has an edge."""
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])


def _spaced(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def _some_of_each(labels: Sequence[str], most: int) -> list[int]:
    """About `most` indices, as equally many of each label as there are, and at least one."""
    seen: Counter[str] = Counter()
    turns = []
    for i, label in enumerate(labels):
        turns.append((seen[label], i))  # the first one of each label comes before the second ones
        seen[label] += 1
    return sorted(i for _, i in sorted(turns)[: max(most, len(seen))])


def _part(shown: int, count: int) -> str:
    return f" ({shown} of {count})" if shown < count else ""


class _Plain(LogFormatter):
    """0.01 instead of a formula, which would be shown as it is written."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def logarithmic(axis: Axis) -> None:
    """Labels for a logarithmic axis."""
    axis.set_major_formatter(_Plain())
    axis.set_minor_formatter(_Plain(minor_thresholds=(1, 0.4)))


def scale(axes: Axes, metric: Metric) -> None:
    """The vertical axis that a metric is looked at on."""
    if metric.shown == "percent":
        axes.set_ylim(0, 1.02)
    elif metric.shown == "log" and math.isfinite(axes.dataLim.minposy):  # else nothing is shown
        axes.set_yscale("log")
        logarithmic(axes.yaxis)
