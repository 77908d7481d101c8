"""Networks, built once from what decides them, without touching the caller's random numbers.

The network of a problem is only a shape: parameters are given to each call. So problems that differ
in their tasks, norms or paths share one, and a thread has its own.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from metatrain.core import InputError, Model, Params
from metatrain.models.blocks import fuse
from metatrain.models.normalisation import BatchStatistics, converted
from metatrain.problems.functional import trying


class Spec(NamedTuple):
    """All that decides a network, besides the seed of its numbers."""

    model: Model
    inputs: tuple[int, ...]
    outputs: int
    feedback: int
    fused: bool = False  # computed by the kernels of metatrain.ops

    def build(self) -> nn.Module:
        """A new network, with numbers from torch's generators."""
        how = f"for examples of shape {list(self.inputs)} and {self.outputs} outputs"
        with trying("the model's `module`", how, "it"):
            built = self.model.module(self.inputs, self.outputs, self.feedback)
        module = converted(built)
        if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in module.modules()):
            raise InputError(
                "torch's dropout draws at random in the forward pass, so that a retry of a ticket "
                "would give another result",
                remedy="leave it out of the network",
            )
        return module


class Network(threading.local):
    """A network for each thread: a call puts its parameters into the module while it lasts."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._seed: int | None = None  # of the newest parameters: those trained, and the others
        self._newest: tuple[Params, Params] = {}, {}
        self._second: Network | None = None
        self.module, self.trained = _fused(spec) if spec.fused else _untrained(spec)
        layers = self.module.named_modules()
        self.normalisations = {
            name: layer for name, layer in layers if isinstance(layer, BatchStatistics)
        }

    def fresh(self, generator: torch.Generator, *, trained: bool = True) -> Params:
        """New parameters by the generator's seed: those that are trained, or the others."""
        names = {name for name, _ in self.module.named_parameters()}
        if not (self.trained if trained else names - self.trained):
            return {}
        seed = generator.initial_seed()
        if self._seed != seed:
            self._seed, self._newest = seed, _split(_built(self._spec.build, seed))
        return {name: p.clone() for name, p in self._newest[0 if trained else 1].items()}

    def first(self) -> Params:
        """The parameters that the module was built with."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def again(self) -> Network:
        """The same network, built a second time, to see whether it is."""
        if self._second is None:
            self._second = Network(self._spec)
        return self._second


def network(spec: Spec) -> Network:
    """The network of a spec, the same one each time."""
    try:
        hash(spec)
    except TypeError:  # a model of the user's with a list, or one that is not frozen
        spec = spec._replace(model=_Itself(spec.model))
    return _kept(spec)


class _Itself:
    """A model that cannot be hashed: equal to itself alone, and only while it shows the same."""

    def __init__(self, model: Model) -> None:
        self._model, self._shown = model, repr(model)

    def module(self, inputs: Sequence[int], outputs: int, feedback: int) -> nn.Module:
        return self._model.module(inputs, outputs, feedback)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Itself)
            and other._model is self._model
            and other._shown == self._shown
        )

    def __hash__(self) -> int:
        return hash(self._shown)


@lru_cache(maxsize=8)
def _kept(spec: Spec) -> Network:
    return Network(spec)


def fresh(
    build: Callable[[], nn.Module], generator: torch.Generator, *, trained: bool = True
) -> Params:
    """Build a network with the generator's seed: its trained parameters, or its others."""
    return _split(_built(build, generator.initial_seed()))[0 if trained else 1]


def buffers(module: nn.Module) -> Params:
    """What a network holds besides its parameters."""
    return dict(module.named_buffers())


def same(one: Params, other: Params) -> bool:
    """Whether both have the same numbers under the same names."""
    return one.keys() == other.keys() and all(
        torch.equal(p, other[name]) for name, p in one.items()
    )


def _untrained(spec: Spec) -> tuple[nn.Module, set[str]]:
    """A network whose parameters are never used, and which of them are trained.

    Its buffers are alike in all processes.
    """
    module = _built(spec.build, seed=0)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    return module.requires_grad_(False), trained


def _fused(spec: Spec) -> tuple[nn.Module, set[str]]:
    plain = network(spec._replace(fused=False))
    module = copy.deepcopy(plain.module)
    fuse(module)
    return module, plain.trained


def _built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with _DrawnFrom(torch.Generator().manual_seed(seed)):
        return build()


def _split(module: nn.Module) -> tuple[Params, Params]:
    """Copies of the parameters that are trained, and of the others."""
    named = [(name, p.detach().clone(), p.requires_grad) for name, p in module.named_parameters()]
    return {n: p for n, p, trained in named if trained}, {
        n: p for n, p, trained in named if not trained
    }


class _DrawnFrom(TorchDispatchMode):
    """Draw this thread's random numbers on a CPU from a generator, not from torch's own."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = generator

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; torch would import its compiler, a second in each process."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = args[0].device if args and isinstance(args[0], Tensor) else kwargs.get("device")
        if (
            torch.Tag.nondeterministic_seeded in func.tags
            and torch.device(device or "cpu").type == "cpu"
        ):
            if not _takes_generator(func) and "generator" in func.overloadpacket.overloads():
                func = func.overloadpacket.generator
            if _takes_generator(func) and kwargs.get("generator") is None:
                kwargs["generator"] = self._generator
        return func(*args, **kwargs)


def _takes_generator(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)
