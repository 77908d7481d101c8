"""Drawing tasks: 5-way 1-shot tasks with one query a class per second, uint8, on one core.

    python benchmarks/sampling.py [--data omniglot] [--rounds 15]

The peer is the loop that few-shot libraries have, which draws and turns image by image from the
same memory.
"""

from __future__ import annotations

import argparse
import random
from functools import partial

import measure
import torch

from metatrain.core import Split
from metatrain.data.images import Rotations
from metatrain.tasks import FewShot

TASKS = 32


def one_by_one(family: FewShot, rotations: Rotations, split: Split, count: int) -> torch.Tensor:
    """As usual: Python's random numbers, one image after the other, stacked."""
    store = family.store
    members = store.scheme(family.splits).classes[split]
    tasks = []
    for _ in range(count):
        pool = range(len(members) * (4 if rotations == "classes" else 1))
        images = []
        for chosen in random.sample(pool, family.ways):
            index, turn = divmod(chosen, 4) if rotations == "classes" else (chosen, 0)
            turn = random.randrange(4) if rotations == "per-task" else turn
            first, size = int(store.offsets[members[index]]), int(store.sizes[members[index]])
            for example in random.sample(range(size), family.shots + family.queries):
                images.append(torch.rot90(store.images[first + example], turn, dims=(-2, -1)))
        tasks.append(torch.stack(images))
    return torch.stack(tasks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="glyphs", help="an imported data set")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for scheme in FewShot(data=arguments.data).store.schemes:
        family, rotations = (
            FewShot(data=arguments.data, splits=scheme.name),
            scheme.rotations["train"],
        )
        generator = torch.Generator().manual_seed(0)
        candidates = {
            "ours": partial(family.sample, generator, TASKS, "train"),
            "peer": partial(one_by_one, family, rotations, "train", TASKS),
        }
        times = measure.in_turns(candidates, arguments.rounds)
        ours, peer = (
            TASKS / sorted(times[who].wall_s)[arguments.rounds // 2] for who in ("ours", "peer")
        )
        faster = measure.ratio(times["ours"].wall_s, times["peer"].wall_s)
        classes = len(scheme.classes["train"])
        rows.append(
            [scheme.name, str(classes), rotations, f"{ours:,.0f}", f"{peer:,.0f}", f"{faster:.1f}"]
        )
    header = ["splits", "classes", "rotations", "tasks/s", "image by image", "ratio"]
    text = (
        f"{measure.machine()}; one thread; {arguments.data}, {TASKS} tasks a call, "
        f"medians of {arguments.rounds}\n\n"
    )
    measure.write("sampling", text + measure.table(header, rows))


if __name__ == "__main__":
    main()
