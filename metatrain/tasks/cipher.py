"""Words and their ciphers: each task has a substitution of letters that nobody has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metatrain.bounds import EXAMPLES, bounded, check_bounds
from metatrain.core import ComputePath, Model, Norm, Split, Task
from metatrain.measures import Measure, mean
from metatrain.metrics import ACCURACY, Metric, accuracy, cross_entropy
from metatrain.problems.supervised import Supervised
from metatrain.tasks.generated import Generated, check_shots, drawn_shots

FIRST = ord("a")


@dataclass(frozen=True, kw_only=True)
class Cipher(Generated):
    """Encipher words as a few pairs of a word and its cipher show it: sequence to sequence.

    A task's key is a random permutation of the alphabet, and words are random letters. An example
    is a letter of a cipher. The network gets the whole word for it, moved so that the letter's
    place is in the middle, and zeros around the word. It has to learn that the middle decides.

    The baseline `lookup` is optimal: a letter that the pairs have is known, and any other becomes
    each letter that is left with the same probability. Accuracy is that of letters. The measure
    `exact_match` is the share of words without a wrong letter, and `best_exact_match` the most that
    can be expected of it. All splits draw from the same distribution; the ticket keeps their tasks
    apart.
    """

    __pydantic_config__ = {"extra": "forbid"}
    metric: ClassVar[Metric] = ACCURACY

    name: Literal["cipher"] = "cipher"
    letters: int = bounded(26, least=2, most=26)
    """Letters of the alphabet, from a on."""
    length: int = bounded(5, least=1, most=32)
    """Letters of a word."""
    shots: tuple[int, int] = bounded((1, 8), least=1, most=EXAMPLES // 32)
    """Least and most pairs of a task's support set; those of a ticket have as many."""
    queries: int = bounded(4, least=1, most=EXAMPLES // 32)
    """Words to encipher."""

    def __post_init__(self) -> None:
        check_bounds(self)
        check_shots(self.shots)

    def sample(self, generator: torch.Generator, count: int, split: Split) -> Task:
        """x [T, words * length, 2 * length - 1] uint8 and the letters' numbers y, int64."""
        shots = drawn_shots(generator, self.shots)
        key = torch.rand(count, self.letters, generator=generator).argsort(1)
        shape = count, shots + self.queries, self.length
        words = torch.randint(self.letters, shape, generator=generator)
        y = key.gather(1, words.flatten(1))
        x = around(words + FIRST).byte().flatten(1, 2)
        read = shots * self.length
        return Task(x[:, :read], y[:, :read], x[:, read:], y[:, read:])

    def bind(self, model: Model, norm: Sequence[Norm], path: ComputePath) -> Supervised:
        return Supervised(
            model=model,
            inputs=(2 * self.length - 1,),
            outputs=self.letters,
            loss=cross_entropy,
            metrics={"accuracy": accuracy},
            norm=norm,
            path=path,
            classes=True,
            lacks_classes=True,
            to_float=lambda x: x.float(),
            baselines={"lookup": self.lookup},
            measures={
                "exact_match": Measure(self.matched, mean),
                "best_exact_match": Measure(lambda _, task: self.best_matched(task), mean),
            },
        )

    def lookup(self, task: Task) -> Tensor:
        """[T] share of letters that the best predictor is expected to have right."""
        seen, asked = self._seen(task), self._plain(task.query_x)
        left = (~seen).sum(1, keepdim=True).clamp(min=1)
        return torch.where(seen.gather(1, asked), 1.0, 1 / left.double()).mean(1)

    def matched(self, logits: Tensor, task: Task) -> Tensor:
        """[T] share of words without a wrong letter."""
        right = logits.argmax(-1) == task.query_y
        return right.unflatten(1, (-1, self.length)).all(-1).double().mean(1)

    def best_matched(self, task: Task) -> Tensor:
        """[T] share of words that the best predictor is expected to have right.

        A word with u different letters that were not seen, of m such, is one of m! / (m - u)!.
        """
        seen, asked = self._seen(task), self._plain(task.query_x)
        used = F.one_hot(asked, self.letters).bool().unflatten(1, (-1, self.length)).any(2)
        unknown, left = (used & ~seen[:, None]).sum(-1), (~seen).sum(1, keepdim=True)
        chance = torch.lgamma(left - unknown + 1.0) - torch.lgamma(left + 1.0)
        return chance.double().exp().mean(1)

    def _seen(self, task: Task) -> Tensor:
        """[T, letters]: whether the support set has a letter."""
        return F.one_hot(self._plain(task.support_x), self.letters).bool().any(1)

    def _plain(self, x: Tensor) -> Tensor:
        """The numbers of the letters in the middle."""
        return x[..., self.length - 1].long() - FIRST


def around(words: Tensor) -> Tensor:
    """[..., length, 2 * length - 1] of words [..., length]: each letter in the middle of a row."""
    length = words.shape[-1]
    return F.pad(words, (length - 1, length - 1)).unfold(-1, 2 * length - 1, 1)
