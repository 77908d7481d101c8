"""The picture of a few-shot task: labelled images, and predictions of others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.cells import cell_len
from torch import Tensor

from metatrain.figures.style import as_written
from metatrain.names import shortened

RIGHT, WRONG, UNKNOWN = "#0072b2", "#d55e00", "0.3"  # a tick and a cross tell them apart as well
MOST_SUPPORT, MOST_QUERIES = 20, 40
MOST_COLUMNS = 10
WIDEST = 12.0  # inches
LONGEST = 16  # columns of a class's or a file's name


@as_written
def episode(
    support: Sequence[tuple[Tensor, str]],
    query: Sequence[tuple[Tensor, str | None, str]],
    classes: Sequence[str],
    before: Tensor,
    after: Tensor,
    title: str,
) -> Figure:
    """Draw the images of one episode, with their labels and what was predicted.

    support: (image [C, H, W] uint8, label) each.
    query: (image, label, what stands above it) each. The label is None if nobody knows it; its
        prediction is then not marked right or wrong.
    before, after: adaptation; probabilities [Q, classes].

    A prediction that is right has a tick, one that is wrong a cross. Of many images some are shown,
    at least one of each class of the support set.
    """
    learned = _some_of_each([label for _, label in support], MOST_SUPPORT)
    shown = _spaced(len(query), MOST_QUERIES)
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
        """Return axes for images, under a heading at `top` inches."""
        middle = 1 - (top + heading / 2) / height
        figure.text(0.5, middle, text, ha="center", va="center", fontsize="small")
        left, first = 0.1 + (step - side) / 2, top + heading + above + side
        corners = [
            (left + i % columns * step, first + i // columns * row_height) for i in range(count)
        ]
        size = side / width, side / height
        return [figure.add_axes((x / width, 1 - y / height, *size)) for x, y in corners]

    for axes, (image, label) in zip(
        tiles(0.4, headings[0], len(support), above + side), support, strict=True
    ):
        _show(axes, image)
        axes.set_title(short[label], fontsize="small")
    top = 0.4 + heading + rows[0] * (above + side) + 0.1
    lower = tiles(top, headings[1], len(query), above + side + below)
    for i, axes, (image, truth, caption) in zip(shown, lower, query, strict=True):
        _show(axes, image)
        style_of_name = "normal" if truth is not None else "italic"
        axes.set_title(short[caption], fontsize="small", style=style_of_name)
        style: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 8}
        style["transform"] = axes.transAxes
        text, colour = _predicted(before[i], classes, truth, short)
        axes.text(0.5, -0.05, f"before: {text}", color=colour, weight="normal", **style)
        text, colour = _predicted(after[i], classes, truth, short)
        axes.text(0.5, -0.19, f"after: {text}", color=colour, weight="bold", **style)
    return figure


@as_written
def made_images(real: Tensor, made: Sequence[Tensor], title: str) -> Figure:
    """Draw images [N, C, H, W] in 0..1, and below each one those made of it.

    Of many images some are shown.
    """
    shown = _spaced(len(real), MOST_COLUMNS)
    rows = [("real", real), *(("made", each) for each in made)]
    figure = Figure(figsize=(max(len(shown), 6), len(rows) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    grid = figure.subplots(len(rows), len(shown), squeeze=False)
    for line, (name, images) in zip(grid, rows, strict=True):
        for axes, i in zip(line, shown, strict=True):
            _show(axes, (255 * images[i]).round().byte())
        line[0].set_ylabel(name)
    return figure


def _predicted(
    probabilities: Tensor, classes: Sequence[str], truth: str | None, short: Mapping[str, str]
) -> tuple[str, str]:
    """Return the text of a prediction, and its colour."""
    finite = bool(probabilities.isfinite().all())  # nan is never a label
    predicted = classes[int(probabilities.argmax())] if finite else None
    right = finite and predicted == truth
    mark, colour = ("", UNKNOWN) if truth is None else ("✓ ", RIGHT) if right else ("✗ ", WRONG)
    percent = f" {100 * float(probabilities.max()):.0f}%" if finite else ""
    return f"{mark}{'none' if predicted is None else short[predicted]}{percent}", colour


def _show(axes: Axes, image: Tensor) -> None:
    """Show [C, H, W] uint8 with a frame, so that white paper has an edge."""
    pixels = image.permute(1, 2, 0).numpy()
    axes.imshow(pixels if pixels.shape[2] == 3 else pixels[:, :, 0], cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])


def _spaced(count: int, most: int) -> list[int]:
    """Return at most `most` of `count` indices, evenly spaced."""
    return [i * count // most for i in range(most)] if count > most else list(range(count))


def _some_of_each(labels: Sequence[str], most: int) -> list[int]:
    """Return about `most` indices, equally many of each label and at least one."""
    seen: Counter[str] = Counter()
    turns = []
    for i, label in enumerate(labels):
        turns.append((seen[label], i))  # the first one of each label comes before the second ones
        seen[label] += 1
    return sorted(i for _, i in sorted(turns)[: max(most, len(seen))])


def _part(shown: int, count: int) -> str:
    return f" ({shown} of {count})" if shown < count else ""
