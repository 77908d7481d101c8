"""The optimizer of the outer loop, tried before it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from metatrain.bounds import RATE
from metatrain.core import InputError


def build(
    name: str,
    lr: float,
    options: Mapping[str, Any],
    groups: Sequence[dict[str, Any]],
    patterns: Mapping[str, Mapping[str, Any]],
) -> torch.optim.Optimizer:
    """Build a class of torch.optim for groups of parameters.

    patterns: pattern -> options, from which the groups were made.

    Raises InputError if it refuses its options, cannot take a step with them, or would go uphill.
    """
    _refuse_uphill("outer.options", options)
    for pattern, changed in patterns.items():
        _refuse_uphill(f"outer.groups.{pattern}", changed)
    try:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(groups, lr=lr, **options)
        _try(getattr(torch.optim, name), lr, options, groups)
    except Exception as error:  # each class of torch.optim raises what it likes
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(
            f"torch.optim.{name} refuses outer.options or outer.groups ({reason})",
            remedy="fix them",
        ) from error
    for pattern, changed in patterns.items():
        unknown = sorted(changed.keys() - optimizer.defaults.keys())
        rate = changed.get("lr", lr)
        if unknown or not (isinstance(rate, int | float) and 0 <= rate <= RATE):
            wrong = f"{unknown[0]}, which is none of its options" if unknown else f"lr = {rate}"
            raise InputError(
                f"outer.groups.{pattern} gives {name} {wrong}",
                remedy=f"choose from its options: {', '.join(optimizer.defaults)}",
            )
    return optimizer


def _refuse_uphill(key: str, options: Mapping[str, Any]) -> None:
    """Refuse options with which steps follow the gradient, so that the meta loss rises."""
    if options.get("maximize"):
        raise InputError(
            f"{key}.maximize", got=options["maximize"], expected="false, since a loss is minimised"
        )
    dampening = options.get("dampening", 0)  # a gradient's weight in SGD is one less it
    if not (isinstance(dampening, int | float) and 0 <= dampening <= 1):
        raise InputError(f"{key}.dampening", got=dampening, expected="0 to 1")


def _try(
    kind: Any, lr: float, options: Mapping[str, Any], groups: Sequence[dict[str, Any]]
) -> None:
    """Take a step with a small parameter of each group: some options fail only then."""
    small = []
    for group in groups:
        p = torch.zeros_like(group["params"][0].flatten()[:1])
        p = p.reshape([1] * group["params"][0].dim()).requires_grad_()
        p.grad = torch.zeros_like(p)
        small.append({**group, "params": [p]})
    kind(small, lr=lr, **options).step()
