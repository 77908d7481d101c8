"""Ciphers: tasks are permutations of an alphabet, and the best that can be known is known."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from cases import SINUSOID, config, trained
from torch import Tensor

from metatrain.core import InputError, Task
from metatrain.start import prepare
from metatrain.tasks import Cipher

FAMILY = Cipher(letters=5, length=3, shots=(2, 2), queries=4)


def drawn(family: Cipher = FAMILY, count: int = 50, seed: int = 0) -> Task:
    return family.sample(torch.Generator().manual_seed(seed), count, "test")


def plain(family: Cipher, x: Tensor) -> Tensor:
    return x[..., family.length - 1].long() - ord("a")


def test_a_task_has_one_key_and_each_letter_has_its_whole_word_around_it() -> None:
    task = drawn()
    assert (task.support_x.shape, task.query_x.shape) == ((50, 6, 5), (50, 12, 5))
    read = torch.cat([plain(FAMILY, task.support_x), plain(FAMILY, task.query_x)], 1)
    said = torch.cat([task.support_y, task.query_y], 1)
    for letters, ciphers in zip(read.tolist(), said.tolist(), strict=True):
        key = dict(zip(letters, ciphers, strict=True))
        assert [key[letter] for letter in letters] == ciphers
        assert len({*key.values()}) == len(key)
    word = read[0, :3] + ord("a")
    around = [[0, 0, *word], [0, *word, 0], [*word, 0, 0]]
    assert task.support_x[0, :3].tolist() == [[int(x) for x in row] for row in around]
    sizes = {drawn(Cipher(shots=(1, 3)), 1, seed).support_x.shape[1] for seed in range(20)}
    assert sizes == {5, 10, 15}


def test_the_best_is_that_of_all_keys_that_the_pairs_allow() -> None:
    """By counting: each key that fits the support set is as probable as any other."""
    task = drawn(count=20)
    keys = torch.tensor([*permutations(range(5))])
    problem = prepare(config(case())).problems[("score", "")]
    for t in range(20):
        read, said = plain(FAMILY, task.support_x[t]), task.support_y[t]
        fitting = keys[(keys[:, read] == said).all(1)]
        answers = fitting[:, plain(FAMILY, task.query_x[t])]  # [keys, letters]
        share = (answers[:, None] == answers[None]).double()
        alone = Task(*(leaf[t : t + 1] for leaf in task))
        assert float(FAMILY.lookup(alone)) == pytest.approx(float(share.mean(0).amax(0).mean()))
        words = share.unflatten(-1, (4, 3)).prod(-1).mean(0).amax(0)
        assert float(FAMILY.best_matched(alone)) == pytest.approx(float(words.mean()))
    logits = torch.nn.functional.one_hot(task.query_y, 5).float()
    assert FAMILY.matched(logits, task).tolist() == [1] * 20
    logits[:, 0] = -logits[:, 0]  # the first letter of the first word
    assert FAMILY.matched(logits, task).tolist() == [0.75] * 20
    assert {"exact_match", "best_exact_match"} == problem.measures.keys()


def case() -> dict[str, object]:
    return SINUSOID | {
        "family": {"name": "cipher", "letters": 4, "length": 2, "shots": [1, 3], "queries": 3},
        "model": {"name": "byte_mlp", "width": 8, "hidden": [32]},
        "algorithm": {"name": "ridge"},
        "outer": {"steps": 60, "tasks_per_step": 16, "tasks_per_ticket": 16, "lr": 0.01},
        "evaluation": {"tasks": 300, "tasks_per_ticket": 300, "family": {"shots": [3, 3]}},
    }


def test_a_cipher_is_read_from_its_pairs_and_no_better_than_it_can_be() -> None:
    scores = trained(config(case()).recipe())
    before, after = scores.curves["none"]["accuracy"].mT
    best = scores.baselines["lookup"]
    assert before.mean() < 0.3  # of four letters
    assert after.mean() > before.mean() + 0.4
    assert after.mean() < best.mean() + 1.96 * (after - best).std() / 300**0.5


def test_bounds_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(InputError) as error:
        Cipher(shots=(3, 2))
    assert error.value.what == "shots"
