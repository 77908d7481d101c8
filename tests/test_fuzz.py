"""Some of the mutations of fuzz.py: what users give is taken, or refused in one sentence."""

from __future__ import annotations

import fuzz
import pytest

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("recipes", 30),
        ("sweeps", 25),
        ("lines", 12),
        ("images", 20),
        ("archives", 50),
        ("journals", 50),
        ("rows", 50),
    ],
)
def test_mutated_input_is_taken_or_refused_in_one_sentence(kind: str, cases: int) -> None:
    assert list(fuzz.trial(kind, range(cases))) == []


def test_a_damaged_size_in_a_parquet_file_does_not_end_the_process() -> None:
    assert list(fuzz.trial("rows", range(1001190, 1001191))) == []


def test_what_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(chance: object) -> None:
        raise KeyError("no sentence")

    monkeypatch.setitem(fuzz.KINDS, "ends", ends)
    ((seed, found),) = fuzz.trial("ends", range(3, 4))
    assert seed == 3
    assert found.endswith("KeyError: 'no sentence'\n")
    monkeypatch.setitem(fuzz.KINDS, "dies", lambda chance: fuzz.os._exit(7))
    assert [seed for seed, _ in fuzz.trial("dies", range(2))] == [0, 1]
