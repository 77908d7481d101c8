"""A context that notes what a computation reads of it: the next one may be computed otherwise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cluster.workers.draws import Draw, draw
from metatrain.core import Context, Ticket

# What all tickets have in common that an update is computed for.
SAME = frozenset({"work", "split", "variant", "purpose", "__class__"})
Note = Callable[[], None]


class Watched:
    """Stands for a context: a computation gets `context`, which answers as the given one does.

    same: attributes of the ticket that need no notice, since they decide nothing.
    """

    def __init__(self, given: Context, same: frozenset[str] = SAME) -> None:
        self._noted, self._given = False, given.generator
        self._generator = _Generator(given.generator, self._note)
        self.context = Context(_ticket(given.ticket, self._note, same), self._generator)

    def decides(self, draws: Sequence[Draw] = ()) -> bool:
        """Whether the ticket, or random numbers besides `draws`, may have decided something."""
        return self._noted or self._generator.used(draws)

    def leave(self) -> None:
        """Take the given generator to where the computation has taken its copy."""
        self._given.set_state(torch.Generator.get_state(self._generator))

    def _note(self) -> None:
        self._noted = True


class _Ticket(Ticket):
    """Notes what is read of it, but for what is the same, and answers as the plain ticket."""

    def __new__(cls, *fields: Any, **named: Any) -> Ticket:  # type: ignore[misc]
        return Ticket(*fields, **named)  # for `type(ticket)(...)`, which tells nothing

    def __getattribute__(self, name: str) -> Any:
        mine = object.__getattribute__(self, "__dict__")
        if name not in mine["same"]:
            mine["note"]()
        return getattr(mine["plain"], name)

    def __radd__(self, other: Any) -> Any:
        return other + tuple(self)


def _asked_as(name: str) -> Callable[..., Any]:
    """The method for an operator: those do not go through __getattribute__."""

    def method(self: _Ticket, *arguments: Any) -> Any:
        return getattr(self, name)(
            *(tuple(other) if isinstance(other, _Ticket) else other for other in arguments)
        )

    return method


for _name in (
    "getitem",
    "iter",
    "contains",
    "add",
    "mul",
    "rmul",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "hash",
):
    setattr(_Ticket, f"__{_name}__", _asked_as(f"__{_name}__"))
for _name in ("repr", "str", "format", "reduce", "reduce_ex", "getnewargs"):
    setattr(_Ticket, f"__{_name}__", _asked_as(f"__{_name}__"))


class _Value:
    """A field as "%s" % ticket finds it, which asks nothing of the ticket itself."""

    def __init__(self, plain: Any, note: Note) -> None:
        self._plain, self._note = plain, note

    def __str__(self) -> str:
        self._note()
        return str(self._plain)

    def __repr__(self) -> str:
        self._note()
        return repr(self._plain)

    def __index__(self) -> int:
        self._note()
        index: int = self._plain.__index__()
        return index


def _ticket(plain: Ticket, note: Note, same: frozenset[str]) -> Ticket:
    found = tuple.__new__(_Ticket, [_Value(value, note) for value in plain])
    object.__getattribute__(found, "__dict__").update(plain=plain, note=note, same=same)
    return found


class _Generator(torch.Generator):
    """A copy that notes what is asked of it. A state that is taken and put back before numbers are
    drawn says nothing: steps that are computed twice do so.
    """

    def __new__(cls, given: torch.Generator, note: Note) -> _Generator:
        return super().__new__(cls)

    def __init__(self, given: torch.Generator, note: Note) -> None:
        self._note, self._first = note, given.get_state()
        self._taken: list[Tensor] = []
        super().set_state(self._first)

    def used(self, draws: Sequence[Draw]) -> bool:
        again = torch.Generator()
        again.set_state(self._first)
        draw(draws, again)
        return bool(self._taken) or not torch.equal(super().get_state(), again.get_state())

    def _drawn(self) -> bool:
        return not torch.equal(super().get_state(), self._first)

    def get_state(self) -> Tensor:
        self._taken.append(super().get_state())
        return self._taken[-1]

    def set_state(self, state: Tensor) -> torch.Generator:
        if self._drawn():
            self._note()
        self._taken = [taken for taken in self._taken if taken is not state]
        return super().set_state(state)

    def __getattribute__(self, name: str) -> Any:
        if name in (
            "initial_seed",
            "clone_state",
            "get_offset",
            "graphsafe_get_state",
            "__reduce_ex__",
        ):
            object.__getattribute__(self, "_note")()
        return super().__getattribute__(name)
