"""Curves that ask one question each of a recipe of images, and their pictures.

    python benchmarks/curves.py classes --out runs/curves/classes
    python benchmarks/curves.py ways --out runs/curves/ways --values 2,5,20 --set outer.steps=300

cross_domain  train on each data set, test on each
classes       the number of training classes
shots         support images of a class at test
ways          classes of a task, in training and test
steps         adaptation steps
scratch       adaptation steps, beside the steps of training from scratch
folds         training classes divided at random: each part is tested by what the others trained

Everything is computed in this process. FOLDER gets NAME.json and NAME.png. A point that NAME.json
has is not computed again, and no point begins after --limit minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from curves_pictures import Point, draw

import metatrain
from cluster import run
from cluster.collector import Requests
from cluster.config import RunConfig
from cluster.evaluation import evaluate_for
from cluster.pools.opening import open_pool
from cluster.pools.pool import Snapshot
from cluster.workers.plan import choose_plan
from metatrain import schema
from metatrain.core import InputError, Purpose, Split
from metatrain.evaluate import Score
from metatrain.start import prepare
from metatrain.tasks.fewshot import FewShot

HERE = {"workers": {"max": 0}, "tracking": {"uri": "none"}}
SCRATCH = {"name": "maml", "inner_lr": 0.003, "inner_optimizer": "adam"}
SEED = 0  # of the order in which classes are taken


class Curve(NamedTuple):
    """What a curve is computed from."""

    recipe: Path
    keys: dict[str, Any]  # that the recipe is changed by
    out: Path

    def config(self, keys: Mapping[str, Any]) -> RunConfig:
        """The recipe with further keys changed."""
        tree = schema.read(self.recipe)
        for key, value in {**HERE, **self.keys, **keys}.items():
            schema.put(tree, key, value)
        return schema.parse(RunConfig, tree, str(self.recipe))

    def family(self) -> FewShot:
        """The recipe's tasks."""
        family = self.config({}).family
        if not isinstance(family, FewShot):
            raise InputError("family", got=family.name, expected="fewshot: curves are of images")
        return family

    def train(self, name: str, keys: Mapping[str, Any]) -> str:
        """Train, or resume, the recipe with further keys; its folder."""
        folder = self.out / "runs" / name
        if not (folder / "result.json").exists():
            changed = {**HERE, **self.keys, **keys}
            metatrain.train(self.recipe, resume="auto", output=str(folder), **changed)
        return str(folder)


def measured(folder: str, changes: Mapping[str, Any] | None = None) -> Score:
    """The first score of a run's evaluation, with changed keys."""
    changed = [f"evaluation.{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
    return run.evaluate(folder, [*changed, "workers.max=0"])[0]


def point(x: int, score: Score) -> list[Point]:
    """A score at x, and the family's own baseline."""
    others = {name.replace("_", " "): value for name, value in score.baselines.items()}
    found = [Point(x, "after adaptation", score.mean, score.ci95)]
    return [*found, *(Point(x, name, value) for name, value in others.items())]


def along(label: str, score: Score) -> list[Point]:
    """A score after each adaptation step."""
    values = zip(score.steps, score.curve, score.curve_ci95, strict=True)
    return [Point(step, label, value, width) for step, value, width in values]


Points = dict[str, Callable[[], list[Point]]]  # by name; each is computed when it is called


def cross_domain(curve: Curve, names: list[str]) -> Points:
    ways = curve.family().ways

    def keys_of(data: str) -> dict[str, Any]:
        store = metatrain.open_data(data)
        is_dark = store.shape[0] == 1 and float(store.images[::50].float().mean()) > 127
        # Ink is bright in all of them.
        return {"family.data": data, "family.splits": None, "family.invert": is_dark}

    def one(trained: str, test: str) -> list[Point]:
        score = measured(curve.train(trained, keys_of(trained)), keys_of(test))
        return [Point(test, trained, score.mean, score.ci95)]

    enough = [
        data
        for data in names
        if len(metatrain.open_data(data).scheme(None).classes.get("train", [])) >= ways
    ]
    return {f"{a} to {b}": partial(one, a, b) for a in enough for b in names}


def classes(curve: Curve, counts: list[int]) -> Points:
    def one(count: int) -> list[Point]:
        order = shuffled(curve)
        if count > len(order):
            raise InputError("values", got=count, expected=f"at most {len(order)} classes")
        with divided(curve, {"train": sorted(order[:count])}) as keys:
            return point(count, measured(curve.train(f"classes-{count}", keys)))

    return {str(count): partial(one, count) for count in counts}


def shots(curve: Curve, counts: list[int]) -> Points:
    def one(count: int) -> list[Point]:
        return point(count, measured(curve.train("base", {}), {"family.shots": count}))

    return {str(count): partial(one, count) for count in counts}


def ways(curve: Curve, counts: list[int]) -> Points:
    def one(count: int) -> list[Point]:
        score = measured(curve.train(f"ways-{count}", {"family.ways": count}))
        return [*point(count, score), Point(count, "chance", 1 / count)]

    return {str(count): partial(one, count) for count in counts}


def steps(curve: Curve, counts: list[int]) -> Points:
    def one(most: int) -> list[Point]:
        changes = {"algorithm.inner_steps": most}
        return along("meta-learned", measured(curve.train("base", {}), changes))

    return {str(most): partial(one, most) for most in counts[-1:]}


def scratch(curve: Curve, counts: list[int]) -> Points:
    def one(most: int) -> list[Point]:
        algorithm = SCRATCH | {"inner_steps": most}
        config = curve.config({"algorithm": algorithm, "evaluation.algorithm": {}})
        prepared = prepare(config.recipe())
        plan, _ = choose_plan(prepared, 0.0, 1)
        with open_pool(config.workers, prepared, plan, None) as pool:
            pool.publish(Snapshot(0, prepared.meta))
            requests = Requests(pool, lambda: False, 60.0)
            score, *_ = evaluate_for(prepared, requests, Purpose("score"), 0)
        return along(f"from scratch, Adam with rate {SCRATCH['inner_lr']}", score)

    return {
        "meta-learned": steps(curve, [10])["10"],
        **{f"from scratch {most}": partial(one, most) for most in counts[-1:]},
    }


def folds(curve: Curve, counts: list[int]) -> Points:
    count = counts[-1]

    def one(fold: int) -> list[Point]:
        order = shuffled(curve)
        test = order[fold::count]
        parts: dict[Split, list[int]] = {
            "train": sorted(set(order) - set(test)),
            "test": sorted(test),
        }
        with divided(curve, parts, without="val") as keys:
            folder = curve.train(
                f"fold-{fold + 1}-of-{count}", {**keys, "validation.every_steps": 0}
            )
            score = measured(folder)
        return [Point(fold + 1, "after adaptation", score.mean, score.ci95)]

    return {f"{fold + 1} of {count}": partial(one, fold) for fold in range(count)}


def shuffled(curve: Curve) -> list[int]:
    """The training classes in the order in which they are taken."""
    family = curve.family()
    order = list(family.store.scheme(family.splits).classes["train"])
    random.Random(SEED).shuffle(order)
    return order


@contextmanager
def divided(
    curve: Curve, parts: Mapping[Split, list[int]], without: Split | None = None
) -> Iterator[dict[str, Any]]:
    """The recipe's data set with other splits, in a cache of its own; the keys that name it."""
    family = curve.family()
    store, own = family.store, family.store.scheme(family.splits)
    named = {each: parts.get(each, own.classes[each]) for each in own.classes if each != without}
    rotations = {split: own.rotations[split] for split in named}
    scheme = dataclasses.replace(own, name="divided", classes=named, rotations=rotations)
    before = os.environ.get("METATRAIN_CACHE")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["METATRAIN_CACHE"] = cache
        try:
            dataclasses.replace(store, name="divided", schemes=[scheme]).save()
            yield {"family.data": "divided", "family.splits": "divided"}
        finally:
            os.environ.pop("METATRAIN_CACHE")
            os.environ.update({} if before is None else {"METATRAIN_CACHE": before})


# By name, with the values that are tried if none are given.
CURVES: dict[str, tuple[Callable[[Curve, list[Any]], Points], str]] = {
    "cross_domain": (cross_domain, "glyphs,omniglot,fashion_mnist"),
    "classes": (classes, "5,10,30,100,300,700"),
    "shots": (shots, "1,2,5,10"),
    "ways": (ways, "2,5,10,20"),
    "steps": (steps, "20"),
    "scratch": (scratch, "100"),
    "folds": (folds, "5"),
}


def compute(name: str, curve: Curve, values: str = "", limit: float | None = None) -> Path:
    """Compute the points that are lacking, and draw the picture; its path."""
    points, default = CURVES[name]
    tried: list[Any] = (values or default).split(",")
    if name != "cross_domain":
        try:
            tried = [int(value) for value in tried]
        except ValueError:
            raise InputError("values", got=values, expected="numbers, as 1,5,10") from None
    ends = None if limit is None else time.monotonic() + 60 * limit
    path = curve.out / f"{name}.json"
    config = curve.config({})
    record: dict[str, Any] = {"config": json.loads(json.dumps(schema.dump(config))), "points": {}}
    if path.exists():
        before = json.loads(path.read_text())
        if before["config"] != record["config"]:
            raise InputError(f"{path} is of another recipe", remedy="give another --out")
        record = before
    curve.out.mkdir(parents=True, exist_ok=True)
    found: list[Point] = []
    for key, measure in points(curve, tried).items():
        if key not in record["points"]:
            if ends is not None and time.monotonic() > ends:
                print(f"not computed, as {limit:g} minutes are over: {key}")
                continue
            record["points"][key] = [list(each) for each in measure()]
            path.write_text(json.dumps(record, indent=1) + "\n")
        found += [Point(*each) for each in record["points"][key]]
    if not found:
        raise InputError("limit", got=limit, expected="enough minutes for a point")
    return draw(name, found, config, curve.out / f"{name}.png")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=CURVES, help="What is asked.")
    parser.add_argument("--out", type=Path, required=True, help="The folder of results.")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/demo.yaml"))
    parser.add_argument("--values", default="", help="Data sets or numbers, such as 1,5,10.")
    parser.add_argument("--limit", type=float, help="Minutes after which no point begins.")
    parser.add_argument("--set", action="append", default=[], help="Change a key: KEY=VALUE.")
    given = parser.parse_args()
    pairs = [item.partition("=") for item in given.set]
    keys = {key: yaml.safe_load(value) for key, _, value in pairs}
    curve = Curve(given.recipe, keys, given.out)
    print(f"written to {compute(given.name, curve, given.values, given.limit)}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
