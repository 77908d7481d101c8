"""The regret of a policy in bandits beside strategies of exploration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from torch import Tensor

from metatrain.figures.style import as_written
from metatrain.figures.tasks import draw_trial

STYLES = ["--", ":", "-.", (0, (1, 3)), (0, (5, 1))]


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
    for (name, each), style in zip(others.items(), STYLES, strict=False):
        pulls, shown = range(1, len(each) + 1), name.replace("_", " ")
        right.plot(pulls, each.cumsum(0), color="tab:gray", linestyle=style, label=shown)
    sums = [(step, each.cumsum(0)) for step, each in regrets]
    draw_trial(right, sums, {}, ("pull", "mean regret up to it"))
    return figure
