"""The classes of a plane: how probable each is everywhere, and the rows that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from metatrain.figures.style import as_written
from metatrain.names import shortened

LONGEST = 24  # columns of a name
Numbers = npt.NDArray[np.float64]


@as_written
def boundary(
    axes: Sequence[tuple[str, Numbers]],
    probabilities: Numbers,
    points: Sequence[tuple[str, str, Numbers, Sequence[int | None]]],
    classes: Sequence[str],
    title: str,
) -> Figure:
    """Draw which class is how probable in the plane of two columns.

    axes: name and places of the columns, from left to right and upwards.
    probabilities: [places of the second, places of the first, classes].
    points: name, marker, rows [N, 2] and their classes, None if it is not known.
    """
    (across, x), (up, y) = axes
    colours = np.array([colormaps["tab10"](i % 10)[:3] for i in range(len(classes))])
    figure = Figure(figsize=(7, 5.6), layout="constrained")
    panel = figure.subplots()
    extent = (x[0], x[-1], y[0], y[-1])
    shades = 1 - 0.55 * (1 - probabilities @ colours)
    panel.imshow(
        shades.clip(0, 1), origin="lower", extent=extent, aspect="auto", interpolation="bilinear"
    )
    for i in range(len(classes)):
        ahead = probabilities[..., i] - np.delete(probabilities, i, -1).max(-1)
        if ahead.min() < 0 < ahead.max():  # else the class is nowhere, or everywhere
            panel.contour(x, y, ahead, [0.0], colors="0.3", linewidths=0.8)
    for name, marker, rows, known in points:
        shown: list[Any] = ["0.5" if i is None else colours[i] for i in known]
        panel.scatter(
            rows[:, 0], rows[:, 1], c=shown, marker=marker, s=26, edgecolors="k", linewidths=0.5
        )
        panel.plot([], [], f"k{marker}", label=name)
    names = shortened(classes, LONGEST)
    for name, colour in zip(classes, colours, strict=True):
        panel.plot([], [], "s", color=colour, label=names[name])
    short = shortened([across, up], LONGEST)
    panel.set(xlim=extent[:2], ylim=extent[2:], xlabel=short[across], ylabel=short[up], title=title)
    panel.title.set_fontsize("medium")
    figure.legend(loc="outside lower center", ncols=4, fontsize="small")
    return figure
