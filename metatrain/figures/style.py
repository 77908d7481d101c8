"""Shared parts of all pictures: drawn names, the scale of a metric, written files."""

from __future__ import annotations

import io
import logging
import math
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from metatrain import storage
from metatrain.core import InputError
from metatrain.figures.fonts import WIDE_FONTS, add_fonts
from metatrain.metrics import Metric

log = logging.getLogger(__name__)

P = ParamSpec("P")


def as_written(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw names as they are: a $ is no formula, and other scripts get a font that has them."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context({"text.parse_math": False}):
            figure = draw(*args, **kwargs)
        add_fonts(figure)
        return figure

    return drawn


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG: all of it or nothing.

    Raises InputError if it cannot be written, or would be outside of the run's folder.
    """
    if path.parent.name == "figures" and path.parent.is_symlink():
        raise InputError(
            f"{path.parent} is a link, and pictures are written into no other folder",
            remedy="remove the link",
        )
    add_fonts(figure)  # a family of one's own may draw a figure without `as_written`
    png = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(png, dpi=120, format="png")
    storage.write(str(path), png.getvalue())
    if any("missing from font" in str(warning.message) for warning in caught):
        log.warning(
            "%s lacks characters that no font here has: install one such as %s", path, WIDE_FONTS[0]
        )
    return path


def scale(axes: Axes, metric: Metric) -> None:
    """Scale the vertical axis as people read the metric."""
    if metric.shown == "percent":
        axes.set_ylim(0, 1.02)
    elif metric.shown == "log" and math.isfinite(axes.dataLim.minposy):  # else nothing is shown
        axes.set_yscale("log")
        logarithmic(axes.yaxis)


def logarithmic(axis: Axis) -> None:
    """Label a logarithmic axis."""
    axis.set_major_formatter(_Plain())
    axis.set_minor_formatter(_Plain(minor_thresholds=(2, 0.4)))


class _Plain(LogFormatter):
    """Writes 0.01 instead of a formula, which would be shown as it is written."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""
