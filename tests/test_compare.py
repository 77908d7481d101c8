"""Two runs are compared by pairs of the same tasks, and refused where the tasks are others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from conftest import SINUSOID, config

from cluster import run

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "compare.py"


def compare(*places: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, places)], capture_output=True, text=True, check=False)


def test_the_difference_is_that_of_the_means_and_a_tie_is_called_one(tmp_path: Path) -> None:
    trained = {}
    for name, changes in (("a", {}), ("b", {"outer__steps": 40}), ("c", {"family__shots": 4})):
        folder, (score,) = run.train(config(SINUSOID, output=str(tmp_path / name), **changes))
        trained[name] = (folder, score.mean)
    (a, mean_a), (b, mean_b) = trained["a"], trained["b"]
    lines = compare(a, b).stdout.splitlines()
    assert lines[0].startswith(f"{a}: {mean_a:.4f} +- ")
    found = re.fullmatch(r"paired difference over 30 tasks: (-?[\d.]+) \+- ([\d.]+): (a tie|a difference)", lines[2])
    assert abs(float(found[1]) - (mean_b - mean_a)) < 2e-4
    assert found[3] == ("a tie" if abs(float(found[1])) <= float(found[2]) else "a difference")
    assert compare(a, a).stdout.splitlines()[2] == "paired difference over 30 tasks: 0.0000 +- 0.0000: a tie"
    refused = compare(a, trained["c"][0])
    assert refused.returncode == 2
    assert "were not tested on the same tasks" in refused.stderr
    assert "Traceback" not in refused.stderr
