"""What a CUDA graph may repeat: an update that reads nothing that decides another step's."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from cases import CASES, GLYPHS, config, context

from cluster.workers.cuda import Recorder, Replayed, Replays
from cluster.workers.plan import choose_plan
from cluster.workers.staging import Staged
from cluster.workers.watched import SAME as OF_ALL
from cluster.workers.watched import Watched
from cluster.workers.worker import Worker
from metatrain.core import Context, Meta, Ticket, Update, generator_for
from metatrain.start import prepare

CPU = torch.device("cpu")
TASKS = (torch.zeros(1),)
NOTHING = Update(Meta({}, {}, {}), 1, {})
OTHER = Ticket("update", "train", 3, 1)

DEPENDS: dict[str, Callable[[Ticket], Any]] = {
    "attribute": lambda t: t.step,
    "part": lambda t: t.part,
    "getattr": lambda t: getattr(t, "step"),  # noqa: B009
    "attrgetter": operator.attrgetter("step", "part"),
    "index": lambda t: t[2],
    "negative index": lambda t: t[-2],
    "itemgetter": operator.itemgetter(2),
    "slice": lambda t: t[2:],
    "unpacked": lambda t: [*t],
    "assigned": lambda t: (lambda work, split, step, *rest: step)(*t),
    "tuple": tuple,
    "zip": lambda t: dict(zip(Ticket._fields, t, strict=True)),
    "enumerate": lambda t: list(enumerate(t)),
    "reversed": lambda t: list(reversed(t)),
    "equal": lambda t: t == Ticket("update", "train", 0, 0),
    "equal to itself": lambda t: t == copy.copy(t) and t == t and not t != t,  # noqa: SIM202
    "equal from the left": lambda t: Ticket("update", "train", 0, 0) == t,
    "not equal": lambda t: t != ("update", "train", 0, 0),
    "less": lambda t: t < OTHER,
    "more": lambda t: OTHER > t,  # noqa: SIM300
    "hash": hash,
    "in a set": lambda t: t in {OTHER},
    "a key": lambda t: {t: 1}[Ticket("update", "train", 0, 0)],
    "in a list": lambda t: t in [OTHER],
    "contains": lambda t: 0 in t,
    "count": lambda t: t.count(0),
    "find": lambda t: t.index(0),
    "repr": repr,
    "str": str,
    "f-string": lambda t: f"{t}",
    "format": lambda t: f"{t!r:>80}",
    "percent": lambda t: "%s/%s/%d/%x/%s" % t,  # noqa: UP031
    "percent of one": lambda t: "%s" % (t,),  # noqa: UP031
    "added": lambda t: (*t, 1) + (t + (1,)),  # noqa: RUF005
    "added to": lambda t: (1,) + t,  # noqa: RUF005
    "times": lambda t: t * 2,
    "replace": lambda t: t._replace(part=7),
    "asdict": lambda t: t._asdict(),
    "of the same type": lambda t: type(t)(*t),
    "make": lambda t: t._make(t),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda t: pickle.loads(pickle.dumps(t)),
    "generator_for": lambda t: generator_for(0, t, "mine").initial_seed(),
    "sum": lambda t: sum(t[2:4]),
    "max": lambda t: max(t, OTHER),
    "sorted": lambda t: sorted([OTHER, t]),
    "tensor": lambda t: torch.tensor(t[2:4]).tolist(),
}
SAME: dict[str, Callable[[Ticket], Any]] = {
    "nothing": lambda t: None,
    "work": lambda t: t.work,
    "split": lambda t: t.split,
    "length": len,
    "isinstance": lambda t: (
        isinstance(t, Ticket) and isinstance(t, tuple) and t.__class__ is Ticket
    ),
    "truth": bool,
}


def matched(ticket: Ticket) -> Any:
    match ticket:
        case Ticket(step=0):
            return "first"
        case (_, _, step, _):
            return step


def decided(reading: Callable[[Context], Any]) -> tuple[bool, Any]:
    """Whether an update that reads this is replayed, and what it read."""
    found = []

    def step(tasks: Any, context: Context) -> Update:
        found.append(reading(context))
        return NOTHING

    replayed = Replayed(step, Recorder(CPU))
    assert replayed(TASKS, context()) is NOTHING
    if not replayed._replays:
        replayed(TASKS, context())  # as it is: this machine has no GPU that could record it
        assert len(found) == 2
        assert found[0] == found[1]
    return replayed._replays, found[0]


@pytest.mark.parametrize("name", [*DEPENDS, "match"])
def test_an_update_that_reads_its_step_is_not_replayed_and_reads_the_ticket_as_it_is(
    name: str,
) -> None:
    reading = DEPENDS.get(name, matched)
    replays, found = decided(lambda context: reading(context.ticket))
    assert not replays
    assert found == reading(context().ticket)


@pytest.mark.parametrize("name", SAME)
def test_an_update_that_reads_what_all_steps_have_in_common_is_replayed(name: str) -> None:
    reading = SAME[name]
    assert decided(lambda context: reading(context.ticket)) == (True, reading(context().ticket))


def put_back(generator: torch.Generator) -> None:
    """A step that is computed twice takes the same random numbers."""
    before = generator.get_state()
    now = generator.get_state()
    generator.set_state(before)
    generator.set_state(now)


def drawn_in_between(generator: torch.Generator) -> Any:
    before = generator.get_state()
    drawn = torch.rand(2, generator=generator).tolist()
    generator.set_state(before)
    return drawn


@pytest.mark.parametrize(
    ("reading", "replays"),
    [
        (lambda g: None, True),
        (lambda g: isinstance(g, torch.Generator) and g.device.type, True),
        (put_back, True),
        (lambda g: torch.rand(3, generator=g).tolist(), True),  # is drawn before a replay
        (lambda g: torch.randint(9, (3,), generator=g).tolist(), True),
        (lambda g: torch.empty(3).normal_(generator=g).tolist(), False),
        (lambda g: torch.randperm(5, generator=g).tolist(), True),
        (drawn_in_between, False),
        (lambda g: torch.bernoulli(torch.rand(3, generator=g), generator=g).tolist(), False),
        (lambda g: g.initial_seed(), False),
        (lambda g: g.get_state().tolist(), False),
        (lambda g: torch.rand(1, generator=g.clone_state()).tolist(), False),
        (lambda g: torch.rand(1, generator=copy.deepcopy(g)).tolist(), False),
        (
            lambda g: torch.rand(1, generator=torch.Generator().set_state(g.get_state())).tolist(),
            False,
        ),
        (lambda g: torch.Generator().manual_seed(g.initial_seed()).initial_seed(), False),
        (lambda g: torch.rand(1, generator=g.manual_seed(3)).tolist(), False),
    ],
)
def test_an_update_is_not_replayed_if_its_random_numbers_cannot_be_drawn_before(
    reading: Callable[[torch.Generator], Any], replays: bool
) -> None:
    assert decided(lambda context: reading(context.generator)) == (
        replays,
        reading(context().generator),
    )


RECOMPUTED = GLYPHS | {
    "algorithm": {"name": "maml", "inner_lr": 0.4, "inner_steps": 2, "recompute": True}
}


@pytest.mark.parametrize("probe", [*CASES, "recomputed"])
def test_updates_of_this_project_are_replayed(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They decide by nothing but random numbers that can be drawn before: the same bits."""
    recipe = config(CASES.get(probe, RECOMPUTED)).recipe()
    prepared, ticket = prepare(recipe), Ticket("update", "train", 0, 0)
    worker = Worker(prepared, choose_plan(prepared, 0, 1)[0])
    worker.load(0, worker.layout.flatten(prepared.meta))
    plain, _ = worker.compute(ticket)
    update, replays = type(recipe.algorithm).update, []

    def replayed(self: Any, *given: Any) -> Update:
        *bound, tasks, context = given
        step = Replays(partial(update, self, *bound), self, CPU)
        found = step(tasks, context)
        replays.extend(each._replays for each in step._graphs.values())
        return found

    monkeypatch.setattr(type(recipe.algorithm), "update", replayed)
    again, _ = worker.compute(ticket)
    assert isinstance(plain, Update)
    assert isinstance(again, Update)
    # The seed itself draws networks; the ticket's number names its part of a replay memory.
    seeded = ("meta-knowledge", "r2d2", "learned-optimizer", "learned-optimizer-evolution")
    assert replays == [probe not in seeded]
    found = again.direction.flat()
    assert all(torch.equal(found[name], p) for name, p in plain.direction.flat().items())


class Annealed:
    """An algorithm whose updates change at an outer step, of which it draws nothing."""

    def update(self, problem: Any, meta: Meta, tasks: Any, context: Context) -> Update:
        x = (tasks[0] * (1.0 if context.ticket.step < 3 else 0.5)).sum()
        return Update(Meta({"x": x}, {}, {}), 1, {})


class WithPhases(Annealed):
    def phase(self, step: int) -> bool:
        return step < 3


class Recorded:
    """Stands for a CUDA graph: what it repeats was computed for the call that was recorded."""

    def replay(self) -> None:
        Recorded.replays += 1

    replays = 0


def record(replayed: Replayed, tasks: Any, context: Context) -> None:
    watched = Watched(context, replayed._same)
    replayed._tasks = tuple(leaf.clone() for leaf in tasks)
    replayed._numbers = Staged([], CPU)
    replayed._update = replayed._step(tasks, watched.context)
    replayed._replays = not watched.decides()
    replayed._graph = Recorded() if replayed._replays else None  # type: ignore[assignment]


@pytest.mark.parametrize(("algorithm", "replays"), [(WithPhases(), 8), (Annealed(), 0)])
def test_updates_of_a_phased_algorithm_are_replayed_within_a_phase(
    algorithm: Any, replays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two numbers of tasks in turn, in two phases of three steps."""
    monkeypatch.setattr(Replayed, "_record", record)
    monkeypatch.setattr(Recorded, "replays", 0)
    step = partial(algorithm.update, None, Meta({}, {}, {}))
    replay = Replays(step, algorithm, CPU)
    for outer in range(6):
        for size in (2, 3):
            given = Context(Ticket("update", "train", outer, 0), torch.Generator())
            tasks = (torch.ones(size),)
            found = replay(tasks, given).direction.model["x"]
            assert torch.equal(found, step(tasks, given).direction.model["x"])
    assert Recorded.replays == replays


def test_a_phased_algorithm_that_reads_more_of_its_ticket_is_not_replayed() -> None:
    replays = []
    for name in ("step", "part"):
        watched = Watched(context(), OF_ALL | {"step"})
        getattr(watched.context.ticket, name)
        replays.append(not watched.decides())
    assert replays == [True, False]
