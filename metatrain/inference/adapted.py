"""A network that was adapted to a few examples, and predicts others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metatrain.core import Context, InputError, Norm, Params, RawNumbers, Task
from metatrain.inference.given import examples_of
from metatrain.inference.predictions import Numbers, Predictions, some
from metatrain.isolation import isolated
from metatrain.names import counted
from metatrain.problems.supervised import Supervised

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metatrain.core import TaskFamily

# Examples that are predicted at once if they do not depend on each other: bounds the memory.
CHUNK = 100


@dataclass(frozen=True, kw_only=True, repr=False)
class Adapted:
    """A network adapted to a support set. Threads may share it."""

    classes: list[Any] | None  # labels of the support set, sorted; None if targets are numbers
    norm: Norm  # whose statistics normalise a prediction; "transductive": of all given at once
    seconds: float  # of the inner loop
    steps: int  # of adaptation
    threads: int
    problem: Supervised
    family: TaskFamily
    support: Task  # T = 1
    context: Context  # of an evaluation
    before: Params  # of the one task, before and after the inner loop
    after: Params

    @property
    def shots(self) -> int:
        """Examples of the support set."""
        return int(self.support.support_x.shape[1])

    def predict(self, examples: Any) -> Any:
        """Return Predictions or Numbers for N examples of the kind that `adapt` took.

        With norm "transductive" a prediction depends on all examples that are given together; with
        other norms it depends on its own example alone.
        """
        return self.predictions(self.outputs(self.after, self.examples(examples)))

    def predictions(self, outputs: Tensor) -> Any:
        """Return what outputs [N, outputs] of the network say: Predictions or Numbers."""
        if self.classes is not None:
            return Predictions(self.classes, outputs[:, : len(self.classes)].softmax(-1))
        if isinstance(self.family, RawNumbers):
            return Numbers(self.family.predictions(outputs))
        numbers = self.problem.point(outputs)
        return Numbers(numbers[:, 0] if self.problem.feedback == 1 else numbers)

    def examples(self, raw: Any) -> Tensor:
        """Return N examples, which may be none, as the network gets them: [N, *in]."""
        with isolated(self.threads):
            return examples_of(self.family, self.problem, raw)

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """Return the network's outputs [N, outputs] with the parameters `before` or `after`."""
        if not len(x):
            raise InputError("there is nothing to predict", remedy="give at least one example")
        at_once = len(x) if self.norm == "transductive" else CHUNK
        if self.norm == "none":  # a network that reads the support set does it for each part
            at_once = max(CHUNK, self.shots)
        with isolated(self.threads), torch.no_grad():
            tasks = [self.support._replace(query_x=part[None]) for part in x.split(at_once)]
            parts = [self.problem.predict(params, task, self.context) for task in tasks]
            return torch.cat(parts, dim=1)[0]

    def picture(
        self,
        images: Any,
        labels: Sequence[str | None],
        title: str,
        captions: Sequence[str] | None = None,
    ) -> Figure:
        """Draw the support set, and images with their predictions before and after adaptation.

        If an image's label is None, its prediction is not marked right or wrong. `captions` stand
        above the images; default: the labels.
        """
        from metatrain import figures

        x = self.examples(images)
        classes = [str(c) for c in self.classes or []]
        names = [classes[y] for y in self.support.support_y[0].tolist()]
        return figures.episode(
            support=list(zip(self.support.support_x[0], names, strict=True)),
            query=list(zip(x, labels, captions or [label or "" for label in labels], strict=True)),
            classes=classes,
            before=self.outputs(self.before, x).softmax(-1),
            after=self.outputs(self.after, x).softmax(-1),
            title=title,
        )

    def __repr__(self) -> str:
        examples = counted(self.shots, "example")
        classes = self.classes or []
        of = f" of {len(classes)} classes ({some(classes)})" if classes else ""
        return f"<adapted to {examples}{of} in {1000 * self.seconds:.1f} ms>"
