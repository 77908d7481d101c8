"""Two runs are compared by pairs of the same tasks, and refused where the tasks are others."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from cases import SINUSOID, config

from cluster import run
from metatrain.core import InputError

compare = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "compare.py"))["main"]


def test_the_difference_is_that_of_the_means_and_a_tie_is_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(*places: Path) -> list[str]:
        capsys.readouterr()
        compare(*map(str, places))
        return capsys.readouterr().out.splitlines()

    trained = {}
    for name, changes in (("a", {}), ("b", {"outer__steps": 40}), ("c", {"family__shots": 4})):
        folder, (score,) = run.train(config(SINUSOID, output=str(tmp_path / name), **changes))
        trained[name] = (folder, score.mean)
    (a, mean_a), (b, mean_b) = trained["a"], trained["b"]
    first, _, last = lines(a, b)
    assert first.startswith(f"{a}: {mean_a:.4f} +- ")
    found = re.fullmatch(
        r"paired difference over 30 tasks: (-?[\d.]+) \+- ([\d.]+): (a tie|a difference)", last
    )
    assert abs(float(found[1]) - (mean_b - mean_a)) < 2e-4
    assert found[3] == ("a tie" if abs(float(found[1])) <= float(found[2]) else "a difference")
    assert lines(a, a)[2] == "paired difference over 30 tasks: 0.0000 +- 0.0000: a tie"
    with pytest.raises(InputError, match="were not tested on the same tasks"):
        compare(str(a), str(trained["c"][0]))
