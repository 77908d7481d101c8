"""The optimizer of the outer loop: tried before it trains, its state named by parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from metatrain.bounds import RATE
from metatrain.core import InputError, Params

# Classes of torch.optim that move each number by itself; the first have a kernel for all they do.
FUSED = ("Adam", "AdamW", "SGD")
BY_NUMBER = (*FUSED, "Adadelta", "Adagrad", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")


class Leaf:
    """What an optimizer takes for one parameter: one, or several that lie in one array."""

    def __init__(self, params: Params) -> None:
        self._shapes = {name: p.shape for name, p in params.items()}
        first, *others = params.values()
        self.is_one = not others
        self.whole = first if self.is_one else torch.cat([p.flatten() for p in params.values()])
        # A fused optimizer goes by memory: gradients lie as parameters do.
        self.whole.grad = torch.zeros_like(self.whole)

    def parts(self, whole: Tensor) -> Params:
        """The views for the parameters, of an array like `whole`."""
        if self.is_one:
            return dict.fromkeys(self._shapes, whole)
        pieces = whole.split([shape.numel() for shape in self._shapes.values()])
        return {
            name: piece.view(shape)
            for piece, (name, shape) in zip(pieces, self._shapes.items(), strict=True)
        }

    def shared(self, value: Any) -> dict[str, Any]:
        """For each parameter, what an optimizer's state holds of it."""
        if isinstance(value, Tensor) and value.shape == self.whole.shape:
            return dict(self.parts(value))
        return dict.fromkeys(self._shapes, value)


class OuterOptimizer:
    """A class of torch.optim that moves named parameters.

    On a GPU those of a group lie in one array: a step is then few kernels.
    """

    def __init__(
        self,
        params: Params,
        name: str,
        lr: float,
        options: Mapping[str, Any],
        groups: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Raises InputError for options or groups that the optimizer does not take."""
        on_gpu = all(p.is_cuda for p in params.values()) and name in BY_NUMBER
        together = on_gpu and len({p.dtype for p in params.values()}) == 1
        if on_gpu and name in FUSED and not options.keys() & {"foreach", "fused", "capturable"}:
            options = {**options, "fused": True}
        # Whether a step can be skipped for a reason that only the GPU knows.
        self.skips = on_gpu and name in FUSED and bool(options.get("fused"))
        self._leaves: list[Leaf] = []
        given = []
        for pattern, members in _members(params, groups).items():
            held = [members] if together else [{n: p} for n, p in members.items()]
            leaves = [Leaf(each) for each in held]
            self._leaves += leaves
            given.append({"params": [x.whole for x in leaves], **groups.get(pattern, {})})
        views = {n: p for leaf in self._leaves for n, p in leaf.parts(leaf.whole).items()}
        self.params: Params = {n: views[n] for n in params}
        self._optimizer = build(name, lr, options, given, groups)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]

    @property
    def wholes(self) -> list[Tensor]:
        """The arrays of all parameters; their `grad` is what is descended."""
        return [leaf.whole for leaf in self._leaves]

    def grads(self) -> Params:
        """What is descended, for each parameter."""
        return {
            name: part
            for leaf in self._leaves
            if leaf.whole.grad is not None
            for name, part in leaf.parts(leaf.whole.grad).items()
        }

    def step(self, rate: float, skip: Tensor | None = None) -> None:
        """Take a step at a part of the learning rates.

        skip: [] 1.0 on the GPU if the step is to change nothing, else 0.0.
        """
        for group, lr in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = lr * rate
        if skip is not None:
            vars(self._optimizer)["found_inf"] = skip  # as torch.amp has fused optimizers skip
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """Tensors and numbers, each as "optimizer.key.parameter"."""
        found = {}
        for leaf in self._leaves:
            for key, value in self._optimizer.state.get(leaf.whole, {}).items():
                if value is not None:
                    for name, part in leaf.shared(value).items():
                        found[f"optimizer.{key}.{name}"] = part
        return found

    def load(self, saved: Mapping[str, Any]) -> None:
        """Continue from the state of such an optimizer. Changes the parameters.

        Raises InputError for the state of another one.
        """
        saved = {n: v for n, v in saved.items() if n.startswith("optimizer.")}
        self._check(saved)
        fresh = {leaf.whole: dict(self._optimizer.state[leaf.whole]) for leaf in self._leaves}
        self._optimizer.state.clear()
        for leaf in self._leaves:
            state, held = self._optimizer.state[leaf.whole], leaf.parts(leaf.whole)
            for full, value in saved.items():
                _, key, name = full.split(".", 2)
                if name not in held:
                    continue
                like = fresh[leaf.whole].get(key)
                if not isinstance(value, Tensor):
                    state[key] = value
                elif leaf.is_one or (isinstance(like, Tensor) and like.shape != leaf.whole.shape):
                    # torch counts steps on the CPU, unless the optimizer is one kernel
                    device = like.device if isinstance(like, Tensor) else leaf.whole.device
                    state[key] = value.to(device, copy=True)
                else:
                    state.setdefault(key, torch.zeros_like(leaf.whole))
                    leaf.parts(state[key])[name].copy_(value)

    def _check(self, saved: Mapping[str, Any]) -> None:
        """Refuse a state that lacks something that a step of this optimizer leaves.

        Takes such a step: parameters and state have to be replaced.
        """
        if not saved:
            return  # no step had an update
        for whole in self.wholes:
            whole.grad = torch.zeros_like(whole)
        self._optimizer.step()
        own = self.state()
        # A resumed run may do without momentum that it had.
        extra = {n for n in saved if n not in own and n.split(".", 2)[-1] not in self.params}
        for name in sorted(own.keys() | extra):
            if name in extra or _kind(own[name]) != _kind(saved.get(name)):
                raise InputError(
                    f"the checkpoint has another optimizer's state than this run ({name})",
                    remedy="resume with the outer.optimizer that it was trained with",
                )


def _members(params: Params, groups: Mapping[str, Any]) -> dict[str, Params]:
    """The parameters of each group: each goes to the first pattern that matches its name.

    The others go to the group "*". Raises InputError if a pattern matches none.
    """
    members: dict[str, Params] = {pattern: {} for pattern in [*groups, "*"]}
    for name, p in params.items():
        members[next(pattern for pattern in members if fnmatchcase(name, pattern))][name] = p
    for pattern in groups:
        if not members[pattern]:
            raise InputError(
                f"outer.groups has a pattern {pattern!r} that matches no parameter",
                remedy=f"fix it to match one of {', '.join(params)}",
            )
    return {pattern: found for pattern, found in members.items() if found}


def _kind(value: Any) -> tuple[Any, ...]:
    """What two values of an optimizer's state have in common if one can follow the other."""
    return (value.shape, value.dtype) if isinstance(value, Tensor) else (type(value),)


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
