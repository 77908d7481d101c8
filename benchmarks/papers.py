"""The papers' numbers beside ours: runs a row, and writes the tables of docs/results.md.

    python benchmarks/papers.py --run omniglot_maml_5w1s --seeds 0,1,2
    python benchmarks/papers.py --run omniglot_maml_5w5s --limit 30 --set outer.lr=0.002
    python benchmarks/papers.py --collect

A row is a recipe, the paper's number and what differs, in papers.yaml. --run trains it, resumes it
where an earlier one ended, and writes results/papers/ROW.json. --limit shortens training, so that
each seed takes about that many minutes. --collect needs the JSON files alone: neither data nor
torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from papers_table import RESULTS, Tree, collect, read_rows

from metatrain.errors import InputError

HERE = Path(__file__).parent
# Keys that say where and how something is computed, and not what is learned; steps are recorded.
ELSEWHERE = (
    "outer.steps",
    "outer.tasks_per_ticket",
    "workers",
    "tracking",
    "checkpoint",
    "validation.tasks",
    "validation.every_steps",
)


def run(
    name: str,
    seeds: Sequence[int],
    limit: float | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    output: Path = Path("runs/papers"),
    results: Path = RESULTS,
) -> Path:
    """Train a row's recipe once for each seed, and write what --collect needs; the file's path.

    limit: minutes that training with one seed may take; None: as long as the recipe says.
    changes: further keys of the recipe.
    """
    from measure import machine  # imports torch

    import metatrain

    known = read_rows()["rows"]
    if name not in known:
        raise InputError("row", got=name, expected=f"one of {', '.join(known)}")
    row, changes = known[name], dict(changes or {})
    recipe = HERE.parent / "recipes" / f"{row['recipe']}.yaml"
    command = _command(name, seeds, limit, changes)
    keys = {"name": name, **row.get("set", {}), **changes}
    full = configured(recipe, row.get("set", {})).outer.steps
    # A run resumes in the folder of its settings, and one with other settings has another folder.
    settings = json.dumps([recipe.read_text(), keys, row.get("short"), limit])
    folder = output / name / hashlib.sha256(settings.encode()).hexdigest()[:8]
    if limit is not None:
        short = {key: value for key, value in row.get("short", {}).items() if key not in changes}
        short = shortened(recipe, keys, short, limit, folder / f"seed-{seeds[0]}" / "config.yaml")
        changes, keys = short | changes, keys | short
    began_on = folder / "machine.txt"  # and by which commit; --run may record an earlier run
    if not began_on.exists():
        folder.mkdir(parents=True, exist_ok=True)
        began_on.write_text(machine("ray"))
    found = []
    for seed in seeds:
        place = folder / f"seed-{seed}"
        if not (place / "result.json").exists():
            metatrain.train(recipe, resume="auto", seed=seed, output=str(place), **keys)
        found.append({"seed": seed, **_measured(place)})
    hardware, versions, commit = began_on.read_text().split("; ")
    record = {
        "row": name,
        "date": date.today().isoformat(),
        "command": command,
        "commit": commit,
        "hardware": hardware,
        "versions": versions,
        "full_steps": full,
        "changed": {key: changes[key] for key in changes if not key.startswith(ELSEWHERE)},
        "seeds": found,
    }
    path = results / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def configured(recipe: Path, keys: Tree) -> Any:
    """The RunConfig of a recipe with some keys changed."""
    from cluster.config import RunConfig
    from metatrain import schema

    tree = schema.read(recipe)
    for key, value in keys.items():
        schema.put(tree, key, value)
    return schema.parse(RunConfig, tree, str(recipe))


def shortened(recipe: Path, keys: Tree, short: Tree, limit: float, began: Path) -> Tree:
    """The further keys of a run that takes about `limit` minutes; none if all of it fits.

    began: the config.yaml of an interrupted run, whose keys are chosen already.
    """
    from cluster.dry_run import estimate
    from metatrain.start import prepare

    full = configured(recipe, keys).outer.steps
    if began.exists():
        steps = yaml.safe_load(began.read_text())["outer"]["steps"]
        return {**short, "outer.steps": steps} if steps < full else {}
    config = configured(recipe, keys | short)
    found = estimate(config, prepare(config.recipe()))
    others_s = found.total_s - full * found.step_s  # validations and the evaluation
    steps = int((60 * limit - others_s) / found.step_s)
    if steps < 1:
        raise InputError(
            "limit",
            got=limit,
            expected=f"more than the {others_s / 60:.1f} minutes of the evaluations",
            remedy="set evaluation.tasks lower",
        )
    return {**short, "outer.steps": steps} if steps < full else {}


def _command(name: str, seeds: Sequence[int], limit: float | None, changes: Tree) -> str:
    """What was run, without where it was recorded, which is of one machine."""
    parts = ["python benchmarks/papers.py --run", name, "--seeds", ",".join(map(str, seeds))]
    parts += [] if limit is None else ["--limit", f"{limit:g}"]
    for key, value in changes.items():
        if not key.startswith("tracking"):
            parts += ["--set", shlex.quote(f"{key}={json.dumps(value)}")]
    return " ".join(parts)


def _measured(place: Path) -> Tree:
    """Scores, training time and speed of a run that has ended, from its files."""
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["step"]]  # a validation may come before them all
    config = yaml.safe_load((place / "config.yaml").read_text())
    tasks = config["outer"]["tasks_per_step"]
    seconds = sum(tasks / line["system/tasks_per_s"] for line in lines)
    scores = json.loads((place / "result.json").read_text())["scores"]
    kept = (
        "metric",
        "shown",
        "norm",
        "mean",
        "ci95",
        "tasks",
        "diverged",
        "steps",
        "curve",
        "curve_ci95",
        "protocol",
    )
    return {
        "steps": lines[-1]["step"],
        "minutes": round(seconds / 60, 1),
        "tasks_per_s": round(len(lines) * tasks / seconds, 1),
        "scores": [{key: score[key] for key in kept} for score in scores],
    }


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="ROW", help="Train this row of papers.yaml.")
    what.add_argument("--collect", action="store_true", help="Write the tables of the pages.")
    parser.add_argument("--limit", type=float, help="Minutes that one seed may take.")
    parser.add_argument("--seeds", default="0", help="Training seeds, such as 0,1,2.")
    parser.add_argument("--set", action="append", default=[], help="Change a key: KEY=VALUE.")
    given = parser.parse_args()
    if given.collect:
        collect()
        return
    changes = {}
    for item in given.set:
        key, _, value = item.partition("=")
        changes[key] = yaml.safe_load(value)
    try:
        seeds = [int(seed) for seed in given.seeds.split(",")]
    except ValueError:
        raise InputError("seeds", got=given.seeds, expected="whole numbers, as 0,1,2") from None
    if len(set(seeds)) < len(seeds):
        raise InputError("seeds", got=given.seeds, expected="each seed once")
    from metatrain import Diverged, Interrupted, WorkersLost

    try:
        print(f"written to {run(given.run, seeds, given.limit, changes)}")
    except (Diverged, Interrupted, WorkersLost) as error:
        sys.exit(f"{str(error).partition('; ')[0]}; the same command continues")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
