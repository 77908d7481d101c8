"""Two or three methods that fit what somebody has, with reasons and a recipe to start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from metatrain.bounds import EXAMPLES
from metatrain.errors import InputError

Kind = Literal["images", "table", "episodes"]


class Need(NamedTuple):
    """What somebody asks for."""

    kind: Kind
    ways: int
    shots: int
    seconds: float  # in which a new task must be learned


class Choice(NamedTuple):
    """A method with the reason for it, and the arguments of `metatrain train` to start from."""

    method: str  # its name in metatrain.methods.METHODS
    reason: str
    start: str
    fits: Callable[[Need], bool]


MANY_WAYS = 10  # from here on a task's head is costly to learn by gradients
MANY_SHOTS = 5  # from here on a class has more to say than the mean of its examples
# Seconds that some gradient steps on a task take on one core, at most: of four blocks of
# convolution, and of a perceptron on rows of a table.
STEPS_TAKE: dict[Kind, float] = {"images": 0.1, "table": 0.01, "episodes": 0.01}

# The first three that fit are suggested.
CHOICES: dict[Kind, tuple[Choice, ...]] = {
    "images": (
        Choice(
            "Prototypical networks",
            "a new task takes one forward pass, and training and test may have other ways",
            "recipes/omniglot_prototypical_5w1s_short.yaml --set family.shots={shots} "
            "--set evaluation.family.ways={ways}",
            lambda need: True,
        ),
        Choice(
            "R2-D2",
            "a regression uses several images of a class better than their mean: 76.1 against "
            "72.0 % on CIFAR-FS with 5 shots and 64 filters (Bertinetto et al. 2019)",
            "recipes/omniglot_ridge_5w1s_short.yaml --set family.shots={shots} "
            "--set evaluation.family.ways={ways}",
            lambda need: need.shots >= MANY_SHOTS,
        ),
        Choice(
            "ANIL",
            "gradient steps of the head alone: 97.4 % on Omniglot 5-way 1-shot after 7 minutes, "
            "where MAML had 95.9 % after 10",
            "recipes/omniglot_anil_5w1s_short.yaml --set family.ways={ways} "
            "--set family.shots={shots}",
            lambda need: need.ways < MANY_WAYS and need.seconds >= STEPS_TAKE["images"],
        ),
        Choice(
            "MAML",
            "gradient steps of all layers reach classes that look like none before",
            "recipes/omniglot_maml_5w1s_short.yaml --set family.ways={ways} "
            "--set family.shots={shots}",
            lambda need: need.ways < MANY_WAYS and need.seconds >= STEPS_TAKE["images"],
        ),
        Choice(
            "first-order MAML",
            "with many ways, second derivatives cost memory and time",
            "recipes/omniglot_maml_20w1s.yaml --set algorithm.first_order=true "
            "--set family.ways={ways} --set family.shots={shots}",
            lambda need: need.ways >= MANY_WAYS and need.seconds >= STEPS_TAKE["images"],
        ),
        Choice(
            "Matching networks",
            "as fast as prototypes, and each image of a class is compared with by itself",
            "recipes/omniglot_matching_5w1s_short.yaml --set family.shots={shots} "
            "--set evaluation.family.ways={ways}",
            lambda need: True,
        ),
    ),
    "table": (
        Choice(
            "MAML",
            "one gradient step on the rows of a new group takes milliseconds",
            "recipes/table.yaml --set family.shots={shots}",
            lambda need: need.seconds >= STEPS_TAKE["table"],
        ),
        Choice(
            "Generated parameters",
            "reads the rows, then makes a step: on sinusoids MSE 0.011 from ten points",
            "recipes/table.yaml --set family.shots={shots} "
            "--set 'algorithm={{name: generated_parameters, inner_lr: 0.01}}'",
            lambda need: need.seconds >= STEPS_TAKE["table"],
        ),
        Choice(
            "Memory (LSTM, GRU)",
            "reads rows one by one and makes no gradient step: on sinusoids MSE 0.07 after five "
            "points and 0.03 after ten, where MAML had 0.30 after ten steps on five",
            "recipes/table.yaml --set family.shots={shots} --set 'algorithm={{name: recurrent}}' "
            "--set 'model.head={{name: memory}}'",
            lambda need: True,
        ),
        Choice(
            "SNAIL",
            "reads rows as a memory does, and looks back at each of them",
            "recipes/table.yaml --set family.shots={shots} "
            "--set 'algorithm={{name: recurrent, losses: last}}' "
            "--set 'model.head={{name: snail, width: 32}}'",
            lambda need: need.seconds < STEPS_TAKE["table"],
        ),
    ),
    "episodes": (
        Choice(
            "Memory (LSTM, GRU)",
            "RL2: acts better within the first episode already, as a memory gets each reward",
            "recipes/bandit_rl2_short.yaml",
            lambda need: True,
        ),
        Choice(
            "MAML",
            "a policy gradient on {shots} episodes adapts any policy, also without a memory",
            "recipes/navigation_maml_short.yaml --set family.episodes={shots}",
            lambda need: need.shots >= MANY_SHOTS,
        ),
        Choice(
            "SNAIL",
            "looks back at every step of the episode, which a memory has to hold",
            "recipes/bandit_rl2_short.yaml --set algorithm.losses=last "
            "--set 'model.head={{name: snail, width: 32}}'",
            lambda need: True,
        ),
    ),
}


# How the recipes above learn your own tasks.
OWN_DATA: dict[Kind, str] = {
    "images": "your own images: metatrain data import mine --source FOLDER, and add --set "
    "family.data=mine --set family.splits=null --set family.invert=false",
    "table": "your own table: add --set family.data=FILE --set family.group=COLUMN --set "
    "family.target=COLUMN\nrows without groups: recipes/tables_short.yaml learns from made "
    "tables, and docs/tables.md says how it reads yours",
    "episodes": "your own environment: write a family for it, as docs/algorithms.md says",
}


def suggest(
    kind: Kind, *, ways: int | None = None, shots: int = 1, seconds_per_task: float | None = None
) -> list[Choice]:
    """Two or three methods that fit, with the arguments filled in, the first one to try first.

    kind: what an example is.
    ways: classes of a task; of images only, 5 by default.
    shots: examples of a class, rows or episodes from which a new task is learned.
    seconds_per_task: in which a new task must be learned on one core; by default any time will do.

    Raises InputError if a number cannot be.
    """
    if kind != "images" and ways is not None:
        raise InputError("ways", got=ways, expected="no number: only images have classes")
    for name, given, least in (("ways", ways or 5, 2), ("shots", shots, 1)):
        if not least <= given <= EXAMPLES:
            raise InputError(name, got=given, expected=f"{least} to {EXAMPLES:,}")
    if seconds_per_task is not None and not seconds_per_task > 0:
        raise InputError("seconds-per-task", got=seconds_per_task, expected="above 0")
    need = Need(kind, ways or 5, shots, seconds_per_task or float("inf"))
    fitting = [choice for choice in CHOICES[kind] if choice.fits(need)][:3]
    filled = {"ways": need.ways, "shots": need.shots}
    return [
        choice._replace(reason=choice.reason.format(**filled), start=choice.start.format(**filled))
        for choice in fitting
    ]
