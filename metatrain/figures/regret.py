"""The regret of a policy in bandits beside strategies of exploration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.figure import Figure
from torch import Tensor

from metatrain.figures.style import as_written
from metatrain.figures.tasks import draw_trial

# Of grey lines that lie close to each other: dashes of their own, a mark in a tenth of the pulls.
STYLES = [
    ("-", "o"),
    ("--", "s"),
    (":", "^"),
    ("-.", "D"),
    ((0, (8, 2, 1, 2, 1, 2)), "x"),
]


@as_written
def trial_and_regret(
    rewards: Sequence[tuple[int, Tensor]],
    levels: Mapping[str, float],
    regrets: Sequence[tuple[int, Tensor]],
    others: Mapping[str, Tensor],
    title: str,
) -> Figure:
    """Draw the mean reward of each pull, and the mean regret of all pulls up to it.

    rewards: (adaptation step, [pulls]) each; regrets of each pull likewise.
    levels: rewards to compare with.
    others: regrets [pulls] of each pull to compare with.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    left, right = figure.subplots(1, 2)
    draw_trial(left, rewards, levels, ("pull", "mean reward"))
    styled = zip(others.items(), cycle(STYLES), strict=False)
    for i, ((name, each), (line, mark)) in enumerate(styled):
        every = max(len(each) // 10, 1)
        right.plot(
            range(1, len(each) + 1),
            each.cumsum(0),
            color="tab:gray",
            linestyle=line,
            marker=mark,
            markevery=(i * every // len(STYLES), every),  # not all in the same pulls
            markersize=4,
            label=name.replace("_", " "),
        )
    sums = [(step, each.cumsum(0)) for step, each in regrets]
    draw_trial(right, sums, {}, ("pull", "mean regret up to it"))
    return figure
