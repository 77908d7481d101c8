"""Each step of a metric reaches MLflow once, whoever dies, and a backlog slows nobody."""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from services import until

from cluster.tracking import sender
from cluster.tracking.mlflow_errors import Health
from cluster.tracking.sender import BACKLOG, BATCH, Point, Sender

Metric = namedtuple("Metric", "key value timestamp step")


class Store:
    """Keeps points as MLflow's stores do: one that comes twice with the same time is there once."""

    def __init__(self) -> None:
        self.points: dict[Metric, None] = {}
        self.fails = self.loses = 0.0  # the chance that nobody answers: before, after storing
        self.chance = random.Random(0)
        self.goes_on = threading.Event()
        self.goes_on.set()

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        self.goes_on.wait()
        if self.chance.random() < self.fails:
            raise requests.ConnectionError
        self.points |= dict.fromkeys(metrics)
        if self.chance.random() < self.loses:
            raise requests.Timeout

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        if self.chance.random() < self.fails:
            raise requests.ConnectionError
        return [SimpleNamespace(step=p.step, value=p.value) for p in self.points if p.key == name]

    def history(self, name: str) -> list[tuple[int, float, int]]:
        return sorted((p.step, p.value, p.timestamp) for p in self.points if p.key == name)

    def open(self) -> Sender:
        client: Any = self
        known = {point.key for point in self.points}
        return Sender(client, "run", known, Health("sqlite:///x.db"))


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=Metric))
    monkeypatch.setattr(sender, "DRAIN_S", 0.01)


def line(step: int, start_ms: int, slope: float = 0.5) -> list[Point]:
    """What a run measures of a step: a loss that is always the same, and a time that never is."""
    return [
        Point("loss", slope * step, start_ms + step, step),
        Point("system/seconds", random.random(), start_ms + step, step),
    ]


@pytest.mark.parametrize("seed", range(8))
def test_each_step_is_there_once_after_any_number_of_deaths(seed: int) -> None:
    chance, store, steps = random.Random(seed), Store(), 60
    store.chance, store.fails, store.loses = chance, 0.2, 0.2
    file: list[list[Point]] = []
    for life in range(8):
        file = file[: chance.randrange(len(file) + 1)]  # up to the checkpoint
        driver = store.open()
        driver.put(point for written in file for point in written)
        reached = steps if life == 7 else chance.randrange(len(file), steps + 1)
        for step in range(len(file) + 1, reached + 1):
            file.append(line(step, 1000 * life))
            driver.put(file[-1])
        if life == 7:
            until(lambda driver=driver: not driver.waiting)  # type: ignore[misc]
        driver.close()  # tries once more, as far as it comes
    assert [seen[:2] for seen in store.history("loss")] == [
        (step, 0.5 * step) for step in range(1, steps + 1)
    ]
    assert [step for step, _, _ in store.history("system/seconds")] == list(range(1, steps + 1))


def test_what_is_sent_late_has_the_time_at_which_it_was_measured() -> None:
    store = Store()
    driver = store.open()
    driver.put(point for step in (1, 2, 3) for point in line(step, 7000))
    driver.close()
    assert store.history("loss") == [(1, 0.5, 7001), (2, 1.0, 7002), (3, 1.5, 7003)]


def test_what_a_run_with_other_settings_measures_is_sent_besides() -> None:
    store = Store()
    first = store.open()
    first.put(point for step in range(1, 7) for point in line(step, 0))
    first.close()
    again = store.open()
    again.put(point for step in range(1, 4) for point in line(step, 0))
    again.put(point for step in range(4, 7) for point in line(step, 100, slope=2.0))
    again.close()
    new = [(step, 2.0 * step, 100 + step) for step in (4, 5, 6)]
    assert store.history("loss") == sorted([*((s, 0.5 * s, s) for s in range(1, 7)), *new])
    assert len(store.history("system/seconds")) == 6


def test_a_round_sends_what_is_new_and_a_part_of_the_backlog(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sender, "DRAIN_S", 3600.0)
    store = Store()
    driver = store.open()
    store.fails = 1.0
    driver.put(point for step in range(1, 10 * BACKLOG) for point in line(step, 0))
    driver._send(BACKLOG)
    assert store.points == {}
    store.fails = 0.0
    driver.put(point for step in range(10 * BACKLOG, 10 * BACKLOG + 50) for point in line(step, 0))
    driver._send(BACKLOG)
    assert BACKLOG + 100 <= len(store.points) < BACKLOG + 100 + BATCH
    assert driver.close() == 0
    assert len(store.points) == 2 * (10 * BACKLOG + 49)


def test_the_end_waits_with_a_word_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "QUIET_S", 0.05)
    monkeypatch.setattr(sender, "SILENT_S", 0.3)
    caplog.set_level(logging.INFO)
    store = Store()
    driver = store.open()
    store.goes_on.clear()
    driver.put(line(1, 0))
    started = time.monotonic()
    assert driver.close() == 2
    assert time.monotonic() - started < 20
    assert "waiting for MLflow" in caplog.messages
    assert "MLflow failed (no answer in 0.3 s): 2 metrics wait" in caplog.messages
    store.goes_on.set()


def test_a_trial_flushes_again_once_somebody_answers() -> None:
    store = Store()
    driver = store.open()
    store.fails = 1.0
    driver.put(line(1, 0))
    until(lambda: driver._health.away)
    store.fails = 0.0
    until(lambda: not driver._health.away)
    assert store.points
    driver.put(line(2, 0))
    driver.flush()
    assert len(store.points) == 4
    driver.close()
