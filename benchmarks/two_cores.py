"""What the recipes for two cores reach and cost, with two Ray workers.

    python benchmarks/two_cores.py --run omniglot_relation_5w1s_short demo
    python benchmarks/two_cores.py --collect

--run trains recipes, one after the other, and records each in benchmarks/results/two_cores/.
--collect writes the table of docs/results.md and docs/results.zh.md from the records alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

from metatrain import bundle
from metatrain.errors import InputError

HERE = Path(__file__).parent
RECORDS = HERE / "results" / "two_cores"
PAGES = {"en": HERE.parent / "docs/results.md", "zh": HERE.parent / "docs/results.zh.md"}
START, END = "<!-- written by benchmarks/two_cores.py --collect -->", "<!-- until here -->"
BASELINES = (  # the first that a run has
    *("nearest_neighbour_on_pixels", "random", "guess", "nearest_neighbour", "ridge", "posterior"),
    *("nearest_centroid_of_ngrams", "lookup", "byte_frequencies"),
)
HEADERS = {
    "en": "recipe | result | above the baseline | tasks/s | MB of a worker | parameters | minutes",
    "zh": "配方 | 结果 | 高于基线 | 任务/秒 | 每个 worker 的 MB | 参数 | 分钟",
}
Tree = dict[str, Any]


def run(name: str, folder: Path = Path("runs/two_cores"), records: Path = RECORDS) -> Path:
    """Train a recipe with its two workers by the command of the pages, and record it.

    Minutes are those of the whole command, on the clock: start, training, tests and pictures.
    """
    from measure import machine

    place, hardware = folder / name, machine("ray")
    command = ["metatrain", "train", f"recipes/{name}.yaml", "--set", "tracking.uri=none"]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tuning.cli", *command[1:], "--set", f"output={place}"],
        cwd=HERE.parent,
    )
    memory = 0.0
    while process.poll() is None:
        memory = max(memory, _largest_worker_mb(process.pid))
        time.sleep(0.5)
    if process.returncode:
        raise InputError(f"{' '.join(command)} ended with {process.returncode}")
    minutes = (time.monotonic() - started) / 60
    found = _reached(HERE.parent / place) | {"worker_mb": round(memory)}
    described = dict(zip(("hardware", "versions", "commit"), hardware.split("; "), strict=True))
    record = {
        "command": " ".join(command),
        "date": date.today().isoformat(),
        **described,
        "minutes": round(minutes, 1),
        **found,
    }
    records.mkdir(parents=True, exist_ok=True)
    path = records / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def collect(pages: Mapping[str, Path] = PAGES, records: Path = RECORDS) -> None:
    """Write the table into the pages, by language, from the records."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(records.glob("*.json"))}
    for language, page in pages.items():
        text = page.read_text()
        if START not in text or END not in text:
            raise InputError(f"{page} lacks the lines between which the table stands")
        before, _, rest = text.partition(START)
        header = HEADERS[language]
        lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1)]
        lines += [f"| {' | '.join(_cells(name, each))} |" for name, each in found.items()]
        body = "\n".join(lines)
        page.write_text(f"{before}{START}\n\n{body}\n\n{END}{rest.partition(END)[2]}")


def _cells(name: str, record: Tree) -> list[str]:
    score = record["score"]
    above = [score["differences"][each] for each in BASELINES if each in score["differences"]]
    return [
        f"`{name}`",
        _text(score, score["mean"], score["ci95"])
        + ("" if score["norm"] == "none" else f" {score['norm']}"),
        _text(score, *above[0]) if above else "",
        f"{record['tasks_per_s']:,.0f}",
        f"{record['worker_mb']:,}",
        f"{record['parameters']:,}",
        f"{record['minutes']:.1f}",
    ]


def _text(score: Tree, value: float, width: float) -> str:
    if score["shown"] == "percent":
        return f"{100 * value:.1f} ± {100 * width:.1f} %"
    return f"{score['metric']} {value:.3g} ± {width:.2g}"


def _largest_worker_mb(driver: int) -> float:
    """Resident memory of the largest Ray worker that the driver's own Ray runs."""
    import psutil

    sizes = [0.0]
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any("RayWorker" in part for part in process.cmdline()):
                    sizes.append(process.memory_info().rss / 1e6)
    return max(sizes)


def _reached(place: Path) -> Tree:
    """The score, the speed and the size of a run that has ended."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["step"]]  # a validation may come before them all
    recipe, meta = bundle.load(bundle.find(str(place)) or str(place))
    tasks = recipe.outer.tasks_per_step
    seconds = sum(tasks / line["system/tasks_per_s"] for line in lines)
    processor_ms = sum(tasks * line["system/worker_cpu_ms_per_task"] for line in lines)
    score = json.loads((place / "result.json").read_text())["scores"][0]
    kept = "metric shown norm mean ci95 tasks diverged steps curve curve_ci95 differences protocol"
    return {
        "steps": lines[-1]["step"],
        "tasks_per_s": round(len(lines) * tasks / seconds, 1),
        "workers_processor_minutes": round(processor_ms / 60_000, 2),
        "parameters": sum(
            p.numel() for part in (meta.model, meta.algorithm) for p in part.values()
        ),
        "score": {key: score[key] for key in kept.split()},
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", nargs="+", metavar="RECIPE", help="Train these recipes.")
    what.add_argument("--collect", action="store_true", help="Write the table of the pages.")
    given = parser.parse_args()
    if given.collect:
        collect()
        return
    for name in given.run:
        print(f"written to {run(name)}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
