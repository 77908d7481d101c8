"""What wrong tickets do to each aggregation, and what privacy costs.

    python benchmarks/robust.py poisoned --out runs/robust
    python benchmarks/robust.py privacy --out runs/robust

poisoned  every fifth ticket of a step points the other way, TIMES as far; each aggregation learns
          with these tickets and without
privacy   runs whose noise differs: accuracy against the privacy that they spent

Prototypical networks of 8 filters learn to tell glyphs apart, 5-way 1-shot, in this process. FOLDER
gets NAME.json and, of privacy, privacy.png. A run that NAME.json has is not computed again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cluster import loop
from cluster.collector import Requests
from cluster.evaluation import evaluate_for
from cluster.pools.local_pool import LocalPool
from cluster.pools.pool import Contribution, Failure, Snapshot
from cluster.workers.plan import choose_plan
from metatrain import privacy, schema
from metatrain.aggregation import Private
from metatrain.core import Purpose, Update
from metatrain.evaluate import Score
from metatrain.learner import Diverged, Learner
from metatrain.recipe import Recipe
from metatrain.start import prepare

RECIPE: dict[str, Any] = {
    "name": "robust",
    "family": {"name": "fewshot", "data": "glyphs", "ways": 5, "shots": 1, "queries": 3},
    "model": {"name": "conv4", "filters": 8, "pool": "stride"},
    "algorithm": {"name": "prototypical"},
    "outer": {"tasks_per_ticket": 1, "optimizer": "Adam", "lr": 0.02},
    "evaluation": {"tasks": 300},
}
TIMES = 10
POISONED = {"steps": 100, "tasks_per_step": 10}
PRIVACY = {"steps": 30, "tasks_per_step": 64}
CLIP, BOUND = 1.0, 1.0  # below the usual norm of a task's direction
WAYS: dict[str, dict[str, Any]] = {
    "mean": {"name": "mean"},
    "median": {"name": "median"},
    "trimmed_mean, trim 0.2": {"name": "trimmed_mean", "trim": 0.2},
    f"norm_bounded, bound {BOUND}": {"name": "norm_bounded", "bound": BOUND},
}
NOISE = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)

Answer = Contribution | Failure | None


def poisoned(came: Answer) -> Answer:
    """A ticket's update, which points the other way and farther if the ticket is a fifth one."""
    if not isinstance(came, Contribution) or not isinstance(came.result, Update):
        return came
    if came.ticket.part % 5:
        return came
    model = {name: -TIMES * p for name, p in came.result.direction.model.items()}
    direction = came.result.direction._replace(model=model)
    return came._replace(result=came.result._replace(direction=direction))


class Spoiling(LocalPool):
    """A pool some of whose workers answer with anything."""

    spoil: Callable[[Answer], Answer] = staticmethod(lambda came: came)

    def next(self, timeout_s: float) -> Answer:
        return self.spoil(super().next(timeout_s))


def learned(outer: dict[str, Any], spoil: Callable[[Answer], Answer]) -> tuple[Score, Recipe]:
    """Train as the keys of the outer loop say, and measure what was learned."""
    tree = RECIPE | {"outer": RECIPE["outer"] | outer}
    recipe = schema.parse(Recipe, tree, "benchmarks/robust.py")
    prepared = prepare(recipe)
    pool = Spoiling(prepared, choose_plan(prepared, 0, 1)[0])
    pool.spoil = spoil
    learner = Learner(prepared.meta, recipe.outer, recipe.seed)
    requests = Requests(pool)
    hooks = loop.Hooks(lambda step, metrics: None, lambda: None)
    try:
        loop.train(prepared, learner, pool, requests, hooks, save_every=10**9)
    except Diverged as error:
        print(error, file=sys.stderr)
    pool.publish(Snapshot(learner.version, learner.scored()))
    return evaluate_for(prepared, requests, Purpose("score"), learner.version)[0], recipe


def poison(done: dict[str, Any], save: Callable[[], None]) -> None:
    """A run for each aggregation, with wrong tickets and without."""
    for name, how in WAYS.items():
        for kind, spoil in (("clean", Spoiling.spoil), ("poisoned", poisoned)):
            if f"{name}; {kind}" in done:
                continue
            started = time.process_time()
            score, _ = learned(POISONED | {"aggregate": how}, spoil)
            done[f"{name}; {kind}"] = {
                "accuracy": score.mean,
                "ci95": score.ci95,
                "cpu_s": time.process_time() - started,
                "protocol": score.protocol,
            }
            save()
    print("| aggregate | accuracy | a fifth poisoned |\n|---|---|---|")
    for name in WAYS:
        clean, wrong = (done[f"{name}; {kind}"] for kind in ("clean", "poisoned"))
        print(f"| {name} | {shown(clean)} | {shown(wrong)} |")


def privately(done: dict[str, Any], save: Callable[[], None]) -> None:
    """A run for each level of noise; the one without noise bounds directions all the same."""
    for noise in NOISE:
        if str(noise) in done:
            continue
        started = time.process_time()
        how = {"name": "private", "clip": CLIP, "noise_multiplier": noise}
        score, recipe = learned(PRIVACY | {"aggregate": how}, Spoiling.spoil)
        aggregate = recipe.outer.aggregate
        assert isinstance(aggregate, Private)
        spent = privacy.epsilon(aggregate, PRIVACY["tasks_per_step"], PRIVACY["steps"])
        once = privacy.epsilon(aggregate, PRIVACY["tasks_per_step"], 1)
        done[str(noise)] = {
            "accuracy": score.mean,
            "ci95": score.ci95,
            "epsilon": spent if math.isfinite(spent) else None,
            "epsilon_of_one_step": once if math.isfinite(once) else None,
            "cpu_s": time.process_time() - started,
            "protocol": score.protocol,
        }
        save()
    if "untrained" not in done:
        score, _ = learned(PRIVACY | {"lr": 0.0, "steps": 1}, Spoiling.spoil)
        done["untrained"] = {"accuracy": score.mean, "ci95": score.ci95}
        save()
    print("| noise_multiplier | epsilon | of one step | accuracy |\n|---|---|---|---|")
    for noise in NOISE:
        row = done[str(noise)]
        spent = [row[key] for key in ("epsilon", "epsilon_of_one_step")]
        cells = ["none" if each is None else f"{each:.2f}" for each in spent]
        print(f"| {noise:g} | {' | '.join(cells)} | {shown(row)} |")
    print(f"untrained: {shown(done['untrained'])}")


def draw(done: dict[str, Any], path: Path) -> None:
    """Accuracy against the privacy spent."""
    from matplotlib.figure import Figure

    from metatrain import figures
    from metatrain.figures.style import logarithmic

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = sorted(
        (row for row in done.values() if row.get("epsilon") is not None),
        key=lambda row: row["epsilon"],
    )
    axes.errorbar(
        [row["epsilon"] for row in rows],
        [row["accuracy"] for row in rows],
        [row["ci95"] for row in rows],
        marker="o",
        capsize=3,
        label="private, 95 % interval of the test tasks",
    )
    for name, label, style in (("0.0", "no noise", "--"), ("untrained", "untrained", ":")):
        axes.axhline(done[name]["accuracy"], color="gray", linestyle=style, label=label)
    axes.set_xscale("log")
    logarithmic(axes.xaxis)
    axes.set_xlabel(
        "epsilon at delta 1e-05, of an owner with a task in each step: less is more private"
    )
    axes.set_ylabel("accuracy")
    axes.set_title(
        f"Glyphs, 5-way 1-shot: {PRIVACY['steps']} steps of {PRIVACY['tasks_per_step']} tasks"
    )
    axes.legend()
    figures.save(figure, path)


def shown(row: dict[str, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} ± {100 * row['ci95']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=("poisoned", "privacy"))
    parser.add_argument("--out", type=Path, default=Path("runs/robust"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.name}.json"
    done = json.loads(path.read_text()) if path.is_file() else {}

    def save() -> None:
        path.write_text(json.dumps(done, indent=1) + "\n")

    if arguments.name == "poisoned":
        poison(done, save)
        return
    privately(done, save)
    draw(done, arguments.out / "privacy.png")


if __name__ == "__main__":
    main()
