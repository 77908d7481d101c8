"""Refuses tasks and losses of a family that do not fit, before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from metatrain.core import InputError, Params, Task
from metatrain.problems.functional import trying

Loss = Callable[[Tensor, Tensor], Tensor]  # (prediction [T, N, *out], target [T, N, ...]) -> [T]


def check_examples(task: Task, inputs: tuple[int, ...], outputs: int, *, classes: bool) -> None:
    """Refuse tasks that are not T tasks of examples of the shape `inputs` with their targets.

    task: examples as the network gets them.
    outputs: classes, or numbers of a target.
    """
    numbers = () if classes else (outputs,)
    sets = (("support", task.support_x, task.support_y), ("query", task.query_x, task.query_y))
    for name, x, y in sets:
        if x.dim() > 1 and not x.shape[1] and (classes or name == "query"):
            raise InputError(
                f"{name}_x is {shape(x)}, which is no example of a task",
                remedy="give at least one",
            )
        if x.shape[2:] != torch.Size(inputs):
            raise InputError(
                f"{name}_x is {shape(x)}", expected=f"[T, N, {listed(inputs)}], as `bind` says"
            )
        if y.shape != (*x.shape[:2], *numbers):
            of_numbers = f"[T, N, {listed(numbers)}] for T tasks of N examples"
            raise InputError(
                f"{name}_y is {shape(y)} and {name}_x {shape(x)}",
                expected=f"{name}_y as {of_numbers if numbers else '[T, N]'}",
                remedy="add the last dimension with [..., None]"
                if y.dim() == 2 and numbers
                else "correct `sample`",
            )
        floats = [(f"{name}_x", x.dtype), *([(f"{name}_y", y.dtype)] if numbers else [])]
        for wrong, kind in floats:
            if kind != torch.float32:
                raise InputError(
                    f"{wrong} is {kind}",
                    expected="torch.float32",
                    remedy="convert it with .float()",
                )
        if classes and (y.dtype != torch.int64 or not 0 <= int(y.min()) <= int(y.max()) < outputs):
            raise InputError(
                f"{name}_y is {y.dtype} in {y.min()}..{y.max()}",
                expected=f"class numbers below {outputs} as torch.int64",
            )


def check_pixels(task: Task) -> None:
    """Refuse examples, as the network gets them, that are no numbers in 0..1."""
    for name, x in (("support_x", task.support_x), ("query_x", task.query_x)):
        if not 0 <= float(x.min()) <= float(x.max()) <= 1:
            raise InputError(
                f"{name} is in {float(x.min()):g}..{float(x.max()):g}",
                expected="pixels in 0..1, as `bind` says",
                remedy="correct `sample` or `to_float`",
            )


def check_losses(
    losses: Mapping[str, Loss], prediction: Tensor, target: Tensor, params: Params, who: str
) -> None:
    """Refuse a loss or metrics that fail, are not finite, or do not depend on the network.

    losses: "loss" and the metrics.
    prediction: the network's, with a graph to `params`.
    who: the network, in a sentence.
    """
    finite = bool(prediction.isfinite().all())
    gradients: Sequence[Tensor | None] = ()
    for name, loss in losses.items():
        with (
            trying(f"the family's {name}", "on its first tasks", "what `bind` gives"),
            torch.enable_grad(),
        ):
            given = prediction if name == "loss" else prediction.detach()
            value = per_task(name, loss(given, target), len(prediction))
            if name == "loss":
                leaves = list(params.values())
                gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
        if finite and not bool(value.isfinite().all()):
            raise InputError(
                f"the family's {name} is not finite on its first tasks",
                remedy="correct what `bind` gives",
            )
    if all(gradient is None for gradient in gradients):
        raise InputError(
            f"no parameter of {who.removeprefix('the ')} changes the loss",
            remedy="correct its `forward`",
        )


def per_task(name: str, value: Tensor, tasks: int) -> Tensor:
    """A loss or metric [T]; InputError if it is another shape, which would be averaged wrongly."""
    if isinstance(value, Tensor) and value.shape == (tasks,) and not value.is_complex():
        return value if value.is_floating_point() else value.float()
    given = f"{value.dtype} {shape(value)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(
        f"{name} is {given} for {tasks} tasks",
        expected=f"real numbers [{tasks}], a mean for each of them",
    )


def shape(x: Tensor) -> str:
    """A tensor's shape, such as "[4, 1]"."""
    return f"[{listed(x.shape)}]"


def listed(numbers: Sequence[int]) -> str:
    """Numbers of a shape, such as "4, 1"."""
    return ", ".join(map(str, numbers))
