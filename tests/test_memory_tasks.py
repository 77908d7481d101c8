"""T-mazes and delayed match to sample: what is seen, what pays, and when it ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from metatrain.core import InputError
from metatrain.tasks import DelayedMatch, TMaze
from metatrain.tasks.delayed_match import Delays
from metatrain.tasks.t_maze import Corridors


def steps(family: Any, task: Any, actions: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Observation, reward and end of each step, all of one task, after the first observation."""
    generator = torch.Generator().manual_seed(0)
    state, seen = family.start(task, generator)
    found = [(seen[0], torch.zeros(family.episodes), torch.zeros(family.episodes))]
    for action in actions:
        taken = torch.nn.functional.one_hot(action, family.actions).float()[None]
        state, seen, reward, ended = family.step(task, state, taken, generator)
        found.append((seen[0], reward[0], ended[0]))
    return found


def test_a_cue_at_the_start_says_where_to_turn_at_the_junction() -> None:
    maze = TMaze(shortest=2, longest=2, episodes=8)
    task = Corridors(torch.tensor([2]))
    (start, *_), *_ = steps(maze, task, [])
    sides = start[:, 1].long()
    assert set(sides.tolist()) == {0, 1}
    ahead, bump = torch.zeros(8, dtype=torch.long), torch.ones(8, dtype=torch.long)
    right = torch.where(torch.arange(8) < 6, sides, 1 - sides)
    found = steps(maze, task, [ahead, bump, ahead, ahead, 1 + right])
    corridor, junction = [0, 0, 1, 0], [0, 0, 0, 1]
    for (seen, reward, ended), expected, paid in zip(
        found[1:5], (corridor, corridor, junction, junction), (0, -0.1, 0, -0.1), strict=True
    ):
        assert (seen == torch.tensor(expected)).all()
        torch.testing.assert_close(reward, torch.full((8,), paid, dtype=torch.float32))
        assert not ended.any()
    torch.testing.assert_close(found[5][1], torch.tensor([4.0] * 6 + [-0.1] * 2))
    assert found[5][2].all()
    assert {name: v.item() for name, v in maze.baselines(task).items()} == pytest.approx(
        {"guess": 1.95, "best": 4.0}
    )


def test_a_probe_is_asked_after_the_delay_and_the_right_answer_pays() -> None:
    family = DelayedMatch(pictures=3, shortest=2, longest=2, episodes=64)
    task = Delays(torch.tensor([2]))
    same = torch.ones(64, dtype=torch.long)
    (sample, *_), (blank, early, none), (probe, _, _), (_, reward, ended) = steps(
        family, task, [same, same, same]
    )
    assert (sample.sum(1) == 1).all()
    assert not blank.any()
    assert not early.any()
    assert not none.any()
    matches = (sample == probe).all(1)
    assert torch.equal(reward, matches.float())
    assert 16 < int(matches.sum()) < 48
    assert ended.all()


def test_lengths_are_the_tasks() -> None:
    generator = torch.Generator().manual_seed(0)
    mazes = TMaze(shortest=3, longest=5).sample(generator, 50, "train")
    assert set(mazes.lengths.tolist()) == {3, 4, 5}
    delays = DelayedMatch(shortest=1, longest=2).sample(generator, 50, "test")
    assert set(delays.steps.tolist()) == {1, 2}
    for family in (TMaze, DelayedMatch):
        with pytest.raises(InputError) as error:
            family(shortest=4, longest=3)
        assert (error.value.what, error.value.got) == ("longest", 3)
