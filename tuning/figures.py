"""Pictures of a sweep: how trials went, which values were good, and how PBT changed them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from metatrain.figures import as_written, logarithmic, scale
from tuning.config import PBT
from tuning.journal import Trial
from tuning.search import Search
from tuning.space import Domain

log = logging.getLogger(__name__)

NAMED = 5  # trials that have a colour and a name of their own
LEAST = 4  # trials, for an importance
ENDS = {
    "completed": ("o", "all steps made"),
    "stopped": ("v", "stopped early"),
    "diverged": ("x", "diverged"),
}
ENDS |= {"failed": ("x", "failed"), "timed out": ("v", "stopped early")}


def draw(
    search: Search, trials: Sequence[Trial], schedule: Sequence[Mapping[str, Any]]
) -> dict[str, Figure]:
    """Draw all pictures of a sweep.

    trials: best first.
    schedule: the winner's values by outer step; empty without PBT.
    """
    drawn = {"validation_curves": validation_curves(search, trials)}
    if isinstance(search.sweep.scheduler, PBT):
        return drawn | {"schedule": schedules(search, trials, schedule)}
    validated = [trial for trial in trials if trial.last is not None]
    drawn["values"] = values(search, validated)
    inner = next(
        (key for key in search.space if key.startswith("algorithm.") and key.endswith("_lr")), None
    )
    if inner and "outer.lr" in search.space:
        drawn["map"] = rate_map(search, validated, inner, "outer.lr")
    weights = importance(search, validated)
    if weights:
        drawn["importance"] = importances(search, weights, len(validated))
    return drawn


@as_written
def validation_curves(search: Search, trials: Sequence[Trial]) -> Figure:
    """Draw the metric of all trials by outer step; the best trials are named."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for rank, trial in reversed(list(enumerate(trials))):
        points = trial.finite()
        best = rank < NAMED
        style: dict[str, Any] = (
            {"color": f"C{rank}", "zorder": 3} if best else {"color": "0.75", "linewidth": 0.8}
        )
        label = f"trial {trial.number}: {short(trial.values)}" if best else None
        axes.plot([r.step for r in points], [r.value for r in points], label=label, **style)
        if points:
            axes.plot(points[-1].step, points[-1].value, marker=ENDS[trial.state][0], **style)
    title = (
        f"{search.sweep.name}: {len(trials)} trials (circle: all steps made, triangle: "
        "stopped, cross: diverged)"
    )
    axes.set(xlabel="outer step", ylabel=search.metric, title=title)
    axes.title.set_fontsize("medium")
    scale(axes, search.base.family.metric)
    axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles[::-1], labels[::-1], loc="outside lower center", ncols=1, fontsize="x-small"
    )
    return figure


@as_written
def values(search: Search, trials: Sequence[Trial]) -> Figure:
    """Draw the metric against each searched key; filled markers are trials with all their steps."""
    columns = min(len(search.space), 3)
    rows = -(-len(search.space) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.6 * rows), layout="constrained")
    figure.suptitle(
        f"{search.sweep.name}: {search.metric} of {len(trials)} trials, each at its last step",
        fontsize="medium",
    )
    every = np.ravel(figure.subplots(rows, columns, sharey=True))
    for axes, (key, domain) in zip(every, search.space.items(), strict=False):
        for trial in trials:
            marker, label = ENDS[trial.state]
            fill = "C0" if trial.state == "completed" else "none"
            axes.scatter(
                _place(domain, trial.values[key]),
                _last(trial),
                marker=marker,
                c=fill if marker != "x" else "C0",
                edgecolors="C0" if marker != "x" else None,
                label=label,
            )
        best = trials[0]
        star: dict[str, Any] = {
            "marker": "*",
            "s": 300,
            "facecolors": "none",
            "edgecolors": "tab:red",
        }
        axes.scatter(_place(domain, best.values[key]), _last(best), label="the winner", **star)
        axes.set_xlabel(key)
        _axis(axes, "x", domain)
        scale(axes, search.base.family.metric)
        axes.grid(alpha=0.3)
    for axes in every[len(search.space) :]:
        axes.set_visible(False)
    every[0].set_ylabel(search.metric)
    known = {
        label: handle
        for axes in every
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=len(known), fontsize="small"
    )
    return figure


@as_written
def rate_map(search: Search, trials: Sequence[Trial], inner: str, outer: str) -> Figure:
    """Draw the metric in the plane of inner and outer rate; the star is the winner."""
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    x, y = ([trial.values[key] for trial in trials] for key in (inner, outer))
    # Trials that are worse than untrained, or lost validation tasks, all have the worst colour.
    worst, clip = (max, np.minimum) if search.mode == "min" else (min, np.maximum)
    whole = [trial for trial in trials if not _lost(trial)]
    untrained = [trial.reports[0].value for trial in whole if not trial.reports[0].diverged_tasks]
    bound = worst(untrained or [_last(trials[0])])
    of = clip([bound if _lost(trial) else _last(trial) for trial in trials], bound)
    colours = colormaps["viridis_r" if search.mode == "min" else "viridis"]
    norm = LogNorm() if search.base.family.metric.shown == "log" else None
    drawn = axes.scatter(x, y, c=of, norm=norm, cmap=colours, s=90, edgecolors="0.3")
    axes.scatter(
        x[:1], y[:1], marker="*", s=420, facecolors="none", edgecolors="tab:red", linewidths=1.5
    )
    for trial, at_x, at_y in zip(trials, x, y, strict=True):
        value = f"{_lost(trial)} tasks diverged" if _lost(trial) else f"{_last(trial):.3g}"
        axes.annotate(
            value, (at_x, at_y), (0, -14), textcoords="offset points", ha="center", fontsize=7
        )
    bar = figure.colorbar(drawn, label=f"{search.metric}, bright is good")
    if norm is not None:
        logarithmic(bar.ax.yaxis)
    title = f"{search.sweep.name}: {search.metric} at each trial's last step (star: the winner)"
    axes.set(xlabel=inner, ylabel=outer, title=title)
    axes.title.set_fontsize("medium")
    _axis(axes, "x", search.space[inner])
    _axis(axes, "y", search.space[outer])
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    return figure


@as_written
def importances(search: Search, weights: Mapping[str, float], trials: int) -> Figure:
    """Draw the part of the metric's variance that each key explains."""
    figure = Figure(figsize=(7, 1.4 + 0.4 * len(weights)), layout="constrained")
    axes = figure.subplots()
    keys = list(weights)[::-1]
    bars = axes.barh(keys, [weights[key] for key in keys], color="tab:blue")
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(
        xlim=(0, 1.1), xlabel="importance (fANOVA: part of the variance that the key explains)"
    )
    axes.set_title(
        f"{search.sweep.name}: what mattered, by {trials} trials at their last step",
        fontsize="medium",
    )
    return figure


@as_written
def schedules(
    search: Search, trials: Sequence[Trial], winner: Sequence[Mapping[str, Any]]
) -> Figure:
    """Draw the values of all trials by outer step; those that led to the winner in colour."""
    figure = Figure(figsize=(8, 2.8 * len(search.space)), layout="constrained")
    figure.suptitle(f"{search.sweep.name}: the schedule that led to the winner", fontsize="medium")
    ends = [*(entry["step"] for entry in winner[1:]), trials[0].steps]
    for axes, (key, domain) in zip(
        np.ravel(figure.subplots(len(search.space), 1, sharex=True)),
        search.space.items(),
        strict=True,
    ):
        for trial in trials:
            axes.plot(
                [r.step for r in trial.reports],
                [r.values[key] for r in trial.reports],
                color="0.8",
                linewidth=0.8,
            )
        for entry, end in zip(winner, ends, strict=True):
            at = (entry["step"], end)
            axes.plot(at, [entry["values"][key]] * 2, color="tab:orange", linewidth=2.5)
            axes.annotate(
                f"trial {entry['trial']}",
                (at[0], entry["values"][key]),
                (2, 4),
                textcoords="offset points",
                fontsize=7,
            )
        axes.set_ylabel(key)
        _axis(axes, "y", domain)
        axes.grid(alpha=0.3)
    figure.axes[-1].set_xlabel("outer step")
    return figure


def importance(search: Search, trials: Sequence[Trial]) -> dict[str, float]:
    """Return Optuna's importance of each searched key, the greatest first; {} of few trials."""
    if len(trials) < LEAST or len(search.space) < 2 or len({_last(trial) for trial in trials}) == 1:
        return {}
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(direction="maximize" if search.mode == "max" else "minimize")
    known = {key: domain.for_optuna() for key, domain in search.space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of choices that are lists
        for trial in trials:
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.values, distributions=known, value=_last(trial)
                )
            )
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            return optuna.importance.get_param_importances(study, evaluator=evaluator)
        except RuntimeError as error:  # too little varies
            log.info("no importance of the keys: %s", error)
            return {}


def short(values: Mapping[str, Any]) -> str:
    """Return values by the last part of their keys, if that tells them apart."""
    ends = [key.rpartition(".")[2] for key in values]
    names = [end if ends.count(end) == 1 else key for key, end in zip(values, ends, strict=True)]
    return ", ".join(
        f"{name} {text(value)}" for name, value in zip(names, values.values(), strict=True)
    )


def text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _last(trial: Trial) -> float:
    assert trial.last is not None
    return trial.last.value


def _lost(trial: Trial) -> int:
    """Return how many validation tasks diverged at the last step of a trial."""
    return trial.last.diverged_tasks if trial.last is not None else 0


def _place(domain: Domain, value: Any) -> Any:
    return str(value) if domain.is_listed and not domain.is_numeric else value


def _axis(axes: Axes, which: str, domain: Domain) -> None:
    """Show the whole range of a key; logarithmic if its values were drawn or listed so."""
    numbers = domain.values if domain.is_numeric else (0,)
    wide = domain.is_listed and min(numbers) > 0 and max(numbers) / min(numbers) >= 10
    if domain.kind == "loguniform" or wide:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        logarithmic(axes.xaxis if which == "x" else axes.yaxis)
    if not domain.is_listed:
        low, high = domain.values[:2]
        margin = (high / low) ** 0.05 if domain.kind == "loguniform" else 0.05 * (high - low)
        limits = (
            (low / margin, high * margin)
            if domain.kind == "loguniform"
            else (low - margin, high + margin)
        )
        (axes.set_xlim if which == "x" else axes.set_ylim)(*limits)
